s=open('sweep.cu').read()
s=s.replace('TREE(fi) TREE(nw) TREE(c1) TREE(nd)','TREE(fi) TREE(ta) TREE(ve) TREE(ov) TREE(el)')
s=s.replace('(k.tree == 0 ? fi_launch : k.tree == 1 ? nw_launch : k.tree == 2 ? c1_launch : nd_launch)','kLaunch[k.tree]')
s=s.replace('static float* g_ws;','static float* g_ws;\nstatic decltype(&fi_launch) const kLaunch[] = {fi_launch, ta_launch, ve_launch, ov_launch, el_launch};\nstatic const char* kTree[] = {"", "ta:", "ve:", "ov:", "el:"};')
s=s.replace('k.tree == 0 ? "" : k.tree == 1 ? "*" : k.tree == 2 ? "c1:" : "nodeq:"','kTree[k.tree]')
s=s.replace('k.streamed == 2 ? "w" : k.streamed','k.streamed == 4 ? "t" : k.streamed == 2 ? "w" : k.streamed')
a=s.index('template <class T> void checks()'); b=s.index('static double mid')
s=s[:a]+'''static bool covered(const Kind& k, int group, bool bf) { const bool g128 = group == 128 || group == 0; if (k.tree == 3) return bf ? k.medium && k.tile == 8 && (g128 || group == 64 || group == 192) : k.medium && k.tile >= 4 && k.tile != 6 && group != 32; if (k.tree == 1) return k.streamed == 4 && g128; return k.tree == 2; }
template <class T> void checks() {
  const int before = g_failures; int n = 0; const double start = elapsed(); const bool bf = dtype_of<T>() == DType::kBF16;
  for (int group : {128, 64, 0, 32, 192}) for (int tree : {2, 3, 1}) {
    const auto with = [&](Kind k, Case c) { k.tree = tree; if (!covered(k, group, bf) || elapsed() > 85) return; c.group = group; if ((c.ic + 127) / 128 < k.splits) return; check<T>(name_of(k).c_str(), launch_of(k), c); ++n; };
    const int ic = group == 192 ? 1152 : 1096;
    for (int tile = 0; tile < 9; ++tile) for (int sp : {1, 2, 3, 4, 8}) for (int w : {0, 2}) { const auto& t = kMediumTiles[tile]; if (sp == 1 && w || sp == 3 && !w || !w && sp > 1 && !t.clusters(sp)) continue; const Kind k = {tree, 1, tile, sp, w};
      with(k, {t.n * 2 + 13, ic, 136, 0, 15, true, 20}); with(k, {t.n - 5, group == 192 ? 1344 : 1280, 251, 0, -1, true, -1}); with(k, {t.n, group == 192 ? 2304 : 2112, 1032, 0, -1, false, -1});
      if (sp < 3) { with(k, {33, group == 192 ? 384 : 200, 66, 0, 16, true, 0}); with(k, {7, 8, 72, 0, 3, true, -1}); with(k, {t.n + 1, group == 192 ? 576 : 712, 520, 0, 16, true, 3}); } }
    for (int s : {0, 1}) { with({tree, 0, 1, 1, s}, {513, group == 192 ? 2112 : 2056, 520, 0, -1, true, 512}); with({tree, 0, 1, 1, s}, {300, 1152, 8324, 0, 16, true, 99}); with({tree, 0, 1, 1, s}, {700, 384, 5003, 0, -1, true, 100}); }
    for (int sp : {1, 2, 4, 8}) with({tree, 0, 0, sp, 0}, {200, ic, 328, 0, 16, true, 20});
    with({tree, 0, 1, 1, 4}, {1000, 1152, 9000, 0, -1, true, 999}); with({tree, 0, 1, 1, 4}, {513, 384, 17003, 0, 16, true, 512}); with({tree, 0, 1, 1, 4}, {260, 1152, 17920, 0, 16, false, -1});
  }
  printf("%s: %d cases, %d failures, %.1f s\\n", bf ? "bf16" : "f16", n, g_failures - before, elapsed() - start); fflush(stdout);
}
'''+s[b:]
a=s.index('  if (what == "diag") {'); b=s.index('  std::vector<Kind> all;')
s=s[:a]+'''  if (what == "b" || what == "bf") {
    struct C { int ic, oc, m; std::vector<std::array<int, 4>> k; };
    const std::array<int, 4> m8 = {1, 8, 1, 0}, m82 = {1, 8, 2, 0}, m5 = {1, 5, 1, 0}, m52 = {1, 5, 2, 0}, m84w = {1, 8, 4, 2}, m7 = {1, 7, 1, 0}, ls = {0, 1, 1, 1}, lt = {0, 1, 1, 4}, l1 = {0, 1, 1, 0};
    const std::vector<C> cs = {{4096, 4096, 512, {m8}}, {4096, 4096, 256, {m5, m82}}, {4096, 4096, 128, {m52}}, {4096, 4096, 64, {{1, 2, 1, 0}}}, {4096, 4096, 32, {{1, 2, 2, 0}}}, {4096, 4096, 192, {m5}}, {4096, 4096, 384, {m8}},
      {14336, 4096, 512, {m8}}, {14336, 4096, 256, {m82}}, {14336, 4096, 128, {m84w}}, {14336, 4096, 32, {{1, 1, 4, 2}}}, {4096, 14336, 1024, {ls, lt}}, {4096, 14336, 512, {ls, lt}}, {4096, 14336, 256, {m7, l1}}, {4096, 14336, 128, {m8}}, {4096, 14336, 32, {{1, 1, 1, 0}}}, {4096, 14336, 384, {m8}},
      {8192, 28672, 128, {m7}}, {8192, 28672, 64, {{1, 6, 2, 0}}}, {8192, 28672, 32, {{1, 3, 2, 0}}}, {8192, 28672, 256, {ls, lt}}, {8192, 28672, 512, {ls, lt}}, {8192, 28672, 384, {m7}}, {5120, 13824, 1024, {ls, lt, l1}}, {5120, 13824, 2048, {ls, lt, l1}}, {8192, 8192, 128, {m82}}, {8192, 8192, 512, {m7}}};
    int li = 0, lo = 0;
    const auto go = [&](auto zero) { using T = decltype(zero); Layer<T>* layer = nullptr;
      for (auto& c : cs) { if (elapsed() > limit) { printf("out of time\\n"); break; } if (c.ic != li || c.oc != lo) { delete layer; layer = new Layer<T>(c.ic, c.oc, 128, 2048, have); li = c.ic; lo = c.oc; }
        const Int4Shape s = layer->shape(c.m); int a[4]; fi_plan(&s, a); std::vector<Kind> k = {{0, a[0], a[1], a[2], a[3]}};
        for (auto& q : c.k) for (int tree = 0; tree < 5; ++tree) { const Kind x = {tree, q[0], q[1], q[2], q[3]}; if (tree == 0 && (q == std::array<int, 4>{a[0], a[1], a[2], a[3]} || q[3] == 4)) continue; if (run(x, s, layer->params(c.m, 0), nullptr) != cudaSuccess) { cudaGetLastError(); continue; } CHECK(cudaDeviceSynchronize()); k.push_back(x); }
        std::vector<std::vector<double>> t(k.size() + 1), g(k.size() + 1);
        for (int r = 0; r < 5; ++r) for (size_t j = 0; j <= k.size(); ++j) { const size_t i = r % 2 ? k.size() - j : j; if (i == k.size()) t[i].push_back(layer->time_cublas(cublas, c.m, 3, 2000)); else t[i].push_back(layer->time(launch_of(k[i]), c.m, 3, 2500)); g[i].push_back(g_ghz); }
        printf("%dx%d M%-4d cuBLAS %.1f (%.2f)", c.ic, c.oc, c.m, mid(t.back()), mid(g.back())); for (size_t i = 0; i < k.size(); ++i) printf(" | %s %.2f %.3fx %+.1f%% (%.2f)", name_of(k[i]).c_str(), mid(t[i]), mid(t.back()) / mid(t[i]), (mid(t[i]) / mid(t[0]) - 1) * 100, mid(g[i])); printf("\\n"); fflush(stdout); }
      delete layer; };
    if (what == "b") go(__half()); else go(__nv_bfloat16());
    printf("%.1f s\\n", elapsed()); return 0;
  }
'''+s[b:]
s=s.replace('for (int sp : {1, 2, 4}) all.push_back({1, 0, 2, sp, 0});','for (int sp : {}) all.push_back({1, 0, 2, sp, 0});')
a=s.index('  struct L { int ic'); b=s.rindex('  printf("%.1f s')
s=s[:a]+s[b:]
open('rb.cu','w').write(s)
