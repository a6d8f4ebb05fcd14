s=open('bench.cu').read()
def r(a,b,n=1):
    global s
    assert s.count(a)>=1,(a,s.count(a)); s=s.replace(a,b)
r('''  if (params.order.counter && v.name[0] == 'w')''','''  if (tile.features == kBias) CHECK(encode_bias(p, tile, &params.bias));
  if (params.order.counter && v.name[0] == 'w')''')
r('if (x.plan.tile->dim == dim && x.plan.tile->features == features)','if (x.plan.tile->dim == dim && (x.plan.tile->features != 0) == features)')
r('[i * p.bias.row_stride + j + h * p.bias.head_stride]','[i * p.bias.row_stride + j + h * p.bias.head_stride + b * p.bias.sequence_stride]')
r('''  float up = 0, down = 0;
  for (int d = threadIdx.x''','''  __syncthreads();
  if (p.dropout_seed) {
    const uint4 seed = p.dropout_seed[b * p.heads + h];
    for (int j = first + threadIdx.x; j < last; j += blockDim.x) {
      const uint4 x = philox(make_uint4(i / 16 * 8 + i % 8, j / 16 * 8 + j % 8, seed.z, seed.w), make_uint2(seed.x, seed.y));
      const uint32_t word[4] = {x.x, x.y, x.z, x.w};
      w[j] = word[2 * (i / 8 % 2) + j / 8 % 2] < p.dropout_threshold ? 0.0f : w[j] * p.dropout_scale;
    }
    __syncthreads();
  }
  float up = 0, down = 0;
  for (int d = threadIdx.x''')
r('''      auto add = [&](const char* n, auto change) { ForwardParams p = p0; change(p);''','''      auto add = [&](const char* n, auto change) { ForwardParams p = p0; change(p);
        const int f = (p.soft_cap > 0) * 1 + (p.alibi_slopes != nullptr) * 2 + (p.bias.type != BiasType::kNone) * 4 + (p.dropout_seed != nullptr) * 8;
        if (x.plan.tile->features != kAllFeatures && x.plan.tile->features != f) return;''')
r('''          if (!o.p.dropout_seed) check(o.v, b, o.name.c_str());''','''          check(o.v, b, o.name.c_str());''')
r('''float* d_slopes; CHECK(cudaMalloc(&d_slopes, 4 * slopes.size()));''','''float* d_slopes; for (int i = 0; i < p0.heads; ++i) slopes[i] = exp2f(-8.0f * (i + 1) / p0.heads); CHECK(cudaMalloc(&d_slopes, 4 * slopes.size()));''')
r('''  static const HopperTile joined = {false, 128, 128, 128, 2, 2, true, true, 0, 0}, tiles = {false, 128, 128, 128, 2, 1, true, true, 0, 0};
  if (dim == 128) return keys >= 2048 ? &joined : &tiles;
''','')
r('''      add("all", [&]''','''      if (std::getenv("COMBINED")) add("all", [&]''')
r('''      add("bias f16", ''','''      if (std::getenv("COMBINED")) add("bias f16", ''')
i=s.index('    std::printf("features D%d %s %d:"'); j=s.index('\n',s.index('std::printf("\\n"); std::fflush(stdout);',i))
s=s[:i]+'''    std::sort(ones[0].t.begin(), ones[0].t.end());
    std::printf("features D%d %s %d (of plain %.0f us):", dim, causal ? "causal" : "full", s, ones[0].t[ones[0].t.size() / 2]);
    for (const char* what : {"none", "alibi", "cap", "dropout", "bias", "bias f16", "all"}) {
      std::printf("\\n   %-8s", what);
      for (auto& o : ones) {
        if (o.name.size() <= std::strlen(what) || o.name.substr(o.name.find(' ') + 1) != what) continue;
        std::sort(o.t.begin(), o.t.end()); const double us = o.t[o.t.size() / 2], u0 = ones[0].t[ones[0].t.size() / 2]; std::printf(" | %s %.0f x%.3f", o.name.substr(0, o.name.find(' ')).c_str(), us, us / u0); }
    }
    std::printf("\\n"); std::fflush(stdout);'''+s[j:]
r('''int main_(int n, char** a) {''','''// Every feature at awkward sizes, with windows, lengths, groups, biases of heads and batch entries; repeated.
void stress_features(int dim) {
  struct Case { const char* name; int b, s, k, h, hk; bool causal; float scale; int len, window; };
  const Case cases[] = {{"causal", 2, 1000, 1000, 4, 4, true, 1, 0, -1}, {"full", 2, 1000, 1536, 4, 4, false, 1, 0, -1}, {"full more rows", 1, 1333, 704, 4, 2, false, 1, 0, -1},
      {"causal more keys", 1, 700, 2048, 4, 1, true, 1, 0, -1}, {"scale 8", 1, 640, 1024, 4, 4, true, 8, 0, -1}, {"lengths", 3, 500, 904, 4, 2, false, 1, 333, -1},
      {"lengths causal", 3, 900, 904, 4, 2, true, 1, 640, -1}, {"window", 1, 2048, 2048, 4, 2, true, 1, 0, 300}, {"more rows than keys", 1, 1024, 600, 4, 4, true, 1, 0, -1}};
  int wrong = 0, done = 0;
  for (const Case& c : cases) {
    Buffers b(c.b, c.s, c.k, c.h, c.hk, dim, c.causal);
    b.p.scale *= c.scale;
    b.p.window_left = c.window;
    std::vector<int> lens(c.b, c.len);
    if (c.len) {
      for (int i = 0; i < c.b; ++i) lens[i] = c.len + 77 * i;
      int* d; CHECK(cudaMalloc(&d, 4 * c.b)); b.own.push_back(d);
      CHECK(cudaMemcpy(d, lens.data(), 4 * c.b, cudaMemcpyHostToDevice));
      b.p.kv_lengths = d;
    }
    const ForwardParams p0 = b.p;
    std::vector<float> slopes = {0.3f, 0.02f, 0.001f, 0.0f};
    float* d_slopes; CHECK(cudaMalloc(&d_slopes, 16)); b.own.push_back(d_slopes);
    CHECK(cudaMemcpy(d_slopes, slopes.data(), 16, cudaMemcpyHostToDevice));
    const int64_t plane = int64_t{c.s} * c.k;
    T* bias = b.random(plane * c.h * c.b, 9);
    __half* bias16; CHECK(cudaMalloc(&bias16, plane * c.h * c.b * 2)); b.own.push_back(bias16);
    to_half<<<512, 256>>>(bias, bias16, plane * c.h * c.b);
    std::vector<uint4> seeds; for (int i = 0; i < c.b * c.h; ++i) seeds.push_back(uint4{77, 123456789, uint32_t(i % c.h), uint32_t(i / c.h)});
    uint4* d_seeds; CHECK(cudaMalloc(&d_seeds, 16 * seeds.size())); b.own.push_back(d_seeds);
    CHECK(cudaMemcpy(d_seeds, seeds.data(), 16 * seeds.size(), cudaMemcpyHostToDevice));
    for (auto& v : of_dim(dim, true)) for (int f = 0; f < 10; ++f) {
      b.p = p0;
      const int kind[] = {1, 1, 2, 4, 4, 4, 4, 8, 8, 8};
      const char* names[] = {"cap 30", "cap 2", "alibi", "bias", "bias f16 heads", "bias batch", "bias both", "dropout .1", "dropout .9", "dropout 0"};
      if (v.plan.tile->features != kAllFeatures && v.plan.tile->features != kind[f]) continue;
      if (f < 2) b.p.soft_cap = f ? 2.0f : 30.0f;
      if (f == 2) b.p.alibi_slopes = d_slopes;
      if (kind[f] == 4) {
        b.p.bias.data = f == 4 ? (void*)bias16 : bias; b.p.bias.type = f == 4 ? BiasType::kF16 : BiasType::kBF16; b.p.bias.row_stride = c.k;
        if (f == 4) b.p.bias.head_stride = plane;
        if (f == 5) b.p.bias.sequence_stride = plane;
        if (f == 6) b.p.bias.head_stride = plane, b.p.bias.sequence_stride = plane * c.h;
        b.p.bias.rows = c.s, b.p.bias.keys = c.k;
      }
      if (kind[f] == 8) { const double rate = f == 7 ? .1 : f == 8 ? .9 : 0; b.p.dropout_seed = d_seeds; b.p.dropout_threshold = uint32_t(rate * 4294967296.0); b.p.dropout_scale = 1 / (1 - rate); }
      const std::string what = std::string(c.name) + " " + names[f];
      check(v, b, what.c_str());
      std::vector<T> x(b.elements), y(b.elements);
      CHECK(cudaMemcpy(x.data(), b.p.out, b.elements * 2, cudaMemcpyDeviceToHost));
      for (int r = 0; r < 2; ++r) {
        launch(v, b);
        CHECK(cudaMemcpy(y.data(), b.p.out, b.elements * 2, cudaMemcpyDeviceToHost));
        if (std::memcmp(x.data(), y.data(), b.elements * 2)) { ++wrong; std::printf("  NOT REPEATED %s %s\\n", v.name.c_str(), what.c_str()); break; }
      }
      ++done;
    }
    b.p = p0;
  }
  std::printf("stress of features D%d: %d done, %d not repeated\\n", dim, done, wrong);
}
int main_(int n, char** a) {''')
r('''  if (mode == "features")''','''  if (mode == "stressf") stress_features(atoi(a[2]));
  if (mode == "features")''')
open('bench.cu','w').write(s)
