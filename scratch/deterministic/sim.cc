// Discrete-event simulation of the main kernel's order: makespan and misses of an LRU cache.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <list>
#include <queue>
#include <string>
#include <unordered_map>
#include <vector>
using namespace std;
struct Cfg { int slots=132; double T=2.4, over=3.0, poll=.45, rd=.35, add=.9, pas=.5, jit=.1; int adders=3; double mb=30; int unitkb=64; int per=2; };
struct Tile { int row, n; bool back; };
struct Out { double eff, miss, T; };
// rank = place order in the row when det
Out run(const Cfg& c, int rows, int N, int G, bool causal, const vector<Tile>& places, bool det, bool byhead=false) {
  int M = N * c.per;
  vector<vector<int>> order(rows);
  for (auto& t : places) order[t.row].push_back(t.n);
  // rank position of tile in row
  vector<int> pos(rows * N);
  for (int r = 0; r < rows; ++r) for (int i = 0; i < (int)order[r].size(); ++i) pos[r * N + order[r][i]] = i;
  vector<int> turn; // computed lazily: number of tiles before in order which see m: tile n sees m if !causal or m>=per*n
  struct U { int done = 0; double at = 0; int waiter = -1; };
  vector<U> unit((size_t)rows * M * G);
  vector<vector<pair<int,int>>> waiting(unit.size());
  // turn of (row, n, m)
  vector<vector<int>> prefix; 
  auto turn_of = [&](int r, int n, int m) { int k = 0; for (int o : order[r]) { if (o == n) break; if (!causal || m >= c.per * o) ++k; } return k; };
  unordered_map<long long,int> memo;
  struct C { int row=-1, n, m, h, lo; bool back; double free_at=0; vector<double> rel; int k=0; };
  vector<C> ctas(c.slots);
  for (auto& x : ctas) x.rel.assign(c.adders, 0);
  typedef pair<double,int> Ev; // time, cta ; state in cta
  priority_queue<Ev, vector<Ev>, greater<Ev>> q;
  size_t next = 0; double busy = 0, end = 0; unsigned long long seed = 1;
  auto rnd = [&] { seed = seed * 6364136223846793005ull + 1442695040888963407ull; return (seed >> 33) / double(1ull << 31) - .5; };
  // LRU
  list<int> lru; unordered_map<int, list<int>::iterator> at; size_t cap = size_t(c.mb * 1024 / c.unitkb); long miss = 0, acc = 0;
  auto touch = [&](int u) { ++acc; auto it = at.find(u); if (it != at.end()) { lru.erase(it->second); } else { ++miss; if (at.size() >= cap) { at.erase(lru.back()); lru.pop_back(); } } lru.push_front(u); at[u] = lru.begin(); };
  vector<char> fresh(c.slots, 1);
  // turns per tile cached
  vector<vector<int>> turns(c.slots);
  auto begin = [&](int i, double t) {
    C& x = ctas[i];
    while (next < places.size()) {
      Tile& p = const_cast<Tile&>(places[next++]);
      x.row = p.row; x.n = p.n; x.back = p.back; x.lo = causal ? c.per * p.n : 0; x.h = 0; x.m = x.back ? M - 1 : x.lo;
      if (x.lo >= M) continue;
      if (det) { turns[i].assign(M, 0); vector<int> add(M + 1, 0); for (int o : order[x.row]) { if (o == x.n) break; add[causal ? c.per * o : 0]++; } int s = 0; for (int m = 0; m < M; ++m) { s += add[m]; turns[i][m] = s; } }
      double T = c.T * (1 + c.jit * rnd()); busy += c.T + c.over;
      q.push({t + c.over + T, i});
      touch((x.row * M + x.m) * G + x.h);
      return;
    }
    end = max(end, t); x.row = -1;
  };
  for (int i = 0; i < c.slots; ++i) begin(i, 0);
  vector<char> resumed(c.slots, 0);
  while (!q.empty()) {
    auto [t, i] = q.top(); q.pop();
    C& x = ctas[i];
    int u = (x.row * M + x.m) * G + x.h;
    double go = t;
    if (det) {
      U& un = unit[u];
      go = max(go, x.free_at); // buffer free
      if (un.done != turns[i][x.m]) { waiting[u].push_back({i, 0}); ctas[i].lo = ctas[i].lo; x.free_at = max(x.free_at, go); continue; }
      double issue = max(max(go, x.rel[x.k % c.adders]), un.at) + c.poll;
      x.free_at = issue + c.rd;
      double rel = issue + c.add + c.pas;
      x.rel[x.k % c.adders] = rel; x.k++;
      un.done++; un.at = rel; end = max(end, rel);
      for (auto it = waiting[u].begin(); it != waiting[u].end(); ++it)
        if (turns[it->first][x.m] == un.done) { q.push({rel, it->first}); waiting[u].erase(it); break; }
    }
    // the CTA goes on at go (time it handed over): next unit
    double T = c.T * (1 + c.jit * rnd());
    bool over = false;
    if (byhead) { x.m += x.back ? -1 : 1; if (x.m < x.lo || x.m >= M) { x.m = x.back ? M - 1 : x.lo; if (++x.h == G) over = true; } }
    else if (++x.h == G) { x.h = 0; x.m += x.back ? -1 : 1; over = x.m < x.lo || x.m >= M; }
    if (over) begin(i, go); else { busy += c.T; touch((x.row * M + x.m) * G + x.h); q.push({go + T, i}); }
  }
  for (size_t u = 0; u < waiting.size(); ++u) if (!waiting[u].empty()) { printf("DEADLOCK\n"); break; }
  return {busy / (end * c.slots), double(miss) / acc, end};
}
vector<Tile> sections(int rows, int N, int section, int last, int reverse, auto tile_of) {
  vector<Tile> p; int before = rows - last;
  auto emit = [&](int first, int end, int sec) {
    for (int f = first; f < end; f += sec) { int R = min(sec, end - f);
      for (int w = 0; w < R * N; ++w) p.push_back(tile_of(f, R, w)); } };
  emit(0, before, section); emit(before, rows, max(last, 1)); return p;
}
int main(int argc, char** argv) {
  struct Sh { int B, S, Hq, Hkv; bool causal; };
  vector<Sh> shapes;
  for (bool causal : {true, false}) for (auto s : vector<Sh>{{8,4096,8,2},{2,16384,8,2},{2,8192,32,8},{1,4096,32,8},{4,8192,8,1},{4,4096,16,2},{1,16384,16,2},{8,4096,8,8},{4,4096,16,16},{1,16384,16,16},{1,16384,8,8}}) { Sh x = s; x.causal = causal; shapes.push_back(x); }
  Cfg c; if (argc > 1 && !strcmp(argv[1], "pair")) { c.slots = 66; c.T = 3.0; c.unitkb = 128; c.over = 6; c.adders = 1; }
  if (argc > 1 && !strcmp(argv[1], "d64")) { c.per = 1; c.T = 2.8; }
  for (auto& s : shapes) {
    int N = s.S / 128, rows = s.B * s.Hkv, G = s.Hq / s.Hkv, slots = c.slots;
    if (argc > 1 && !strcmp(argv[1], "d64")) ;
    int two = (2 * slots + N - 1) / N;
    auto simple = [&](int reverse, auto back) { return [=](int f, int R, int w) { int r = f + w % R; int t = w / R; return Tile{r, r < reverse ? N - 1 - t : t, back(r, w)}; }; };
    printf("%s %d,%d,%d/%d:", s.causal ? "causal" : "full  ", s.B, s.S, s.Hq, s.Hkv);
    Out o; double base;
    auto show = [&](const char* n, Out o) { printf(" %s %.2f m%.2f r%.2f |", n, o.eff, o.miss, base / o.T); fflush(stdout); };
    {  // non-deterministic
      vector<Tile> p;
      bool waves = s.causal && N >= 16 && !(argc > 1 && !strcmp(argv[1], "pair"));
      if (waves) { int sec = max(2 * slots / N, 1); int last = min(rows, sec + rows % sec); p = sections(rows, N, sec, last, 0, simple(0, [=](int, int w) { return w / slots % 2 == 0; })); }
      else p = sections(rows, N, 1, min(rows, two), 0, simple(0, [](int, int) { return false; }));
      o = run(c, rows, N, G, s.causal, p, false, argc > 1 && !strcmp(argv[1], "pair")); base = o.T; show("free", o);
    }
    {  // present
      int sec = clamp(slots / N, 1, max(rows, 1)), last = min(rows, max(two, sec)), rev = s.causal ? rows - last : 0;
      show("now", run(c, rows, N, G, s.causal, sections(rows, N, sec, last, rev, simple(rev, [=](int r, int) { return r >= rev; })), true));
    }
    for (int k : {1, 2}) {  // waves: there descending, back ascending
      int sec = max(k * slots / N, 1), last = min(rows, sec + rows % sec);
      auto f = [=](int first, int R, int w) { int wave = w / slots; int lo = wave * slots, hi = min(lo + slots, R * N); int x = wave % 2 == 0 ? hi - 1 - (w - lo) : w; return Tile{first + x % R, x / R, wave % 2 == 0}; };
      char name[20]; sprintf(name, "wave%d", k);
      show(name, run(c, rows, N, G, s.causal, sections(rows, N, sec, last, 0, f), true));
      if (k == 2) { auto p = sections(rows, N, sec, last, 0, f); Out o = run(c, rows, N, G, s.causal, p, false); show("w2free", o); 
        auto g = [=](int first, int R, int w) { int wave = w / slots; return Tile{first + w % R, w / R, wave % 2 == 0}; };
        show("asc", run(c, rows, N, G, s.causal, sections(rows, N, sec, last, 0, g), true)); }
    }
    printf("\n");
  }
}
