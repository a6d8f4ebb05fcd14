// The gradient of a bias on Hopper GPUs, for calls with no other option and no segments. A CTA has 128 rows and keys of it and goes
// over all sequences and heads that repeat it (and over all rows, if one row is repeated): S = Q K^T and dP = dO V^T of pieces
// of 64 columns, which a warp loads by TMA; dS is summed in registers, 64 rows a warpgroup. Every element is written once, and
// has its terms in one order. The bias itself is the same all the while: it is in shared memory, in base 2.
#pragma once

#include "attention/backward/bias_part.cuh"
#include "attention/hopper/backward/launch.h"
#include "attention/hopper/traits.cuh"
#include "attention/score.cuh"
#include "attention/sequence.cuh"
#include "device/elect.cuh"
#include "device/math.cuh"
#include "device/mbarrier.cuh"
#include "device/memory.cuh"
#include "device/tma.cuh"
#include "device/wgmma.cuh"

namespace jax_baracuda {

// What is added to a part at once: 128 rows of a sequence and head.
struct BiasStep {
  Visibility visible;
  int64_t stats;  // of the sequence's first row
  int row;        // the first one, -1: there are no more
  bool whole;     // all rows see all keys
};

// A sequence that meets the part.
struct BiasSequence {
  Visibility visible;
  int pack, q_row, k_row;  // its first ones within the pack
};

struct BiasGradientTraits {
  static constexpr int kSide = 128, kColumns = 64, kStages = 4;
  using Piece = PanelTile<kSide, kColumns>;
  static constexpr int kConsumers = 256, kThreads = kConsumers + 128;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  // A row's 8 bytes a lane, of four rows, are in different banks.
  static constexpr int kPitch = (kSide + 8) * 4;  // of the bias, bytes
  static constexpr int kStageBytes = 2 * Piece::kBytes;
  static constexpr int kBiasOffset = kStages * kStageBytes;
  static constexpr int kControlOffset = kBiasOffset + kSide * kPitch;

  struct Control {
    uint64_t full[kStages], empty[kStages];
    uint64_t step_full[kStages];
    BiasPart part;
    BiasSequence sequence;   // that is gone over, the producer's: it has few registers
    BiasStep step[kStages];  // loading is less far ahead: a step has two pieces at least
  };
  static constexpr int kSharedBytes = kControlOffset + sizeof(Control);
  static_assert(kSharedBytes <= 232448, "an SM has 227 KB");

  static __device__ __forceinline__ int pieces(int dim) { return (dim + kColumns - 1) / kColumns; }
};

// The warp that loads, and finds out what meets the part.
struct BiasGradientProducer {
  using Traits = BiasGradientTraits;

  const HopperBiasGradParams& launch;
  const BiasGradParams& p;
  Traits::Control& control;
  const uint32_t shared;
  RingPlace<Traits::kStages> place, step_place;

  __device__ __forceinline__ BiasGradientProducer(const HopperBiasGradParams& launch,
                                                  Traits::Control& control, uint32_t shared)
      : launch(launch), p(launch.problem), control(control), shared(shared) {}

  // Whether 128 rows all see the keys of the part.
  __device__ __forceinline__ bool is_whole(int row) const {
    const Visibility& visible = control.sequence.visible;
    const int last = row + Traits::kSide - 1;
    return last < visible.q_len && visible.keys_of_rows(last, last + 1).begin <= control.part.key &&
           control.part.key + Traits::kSide <= visible.keys_of_rows(row, row + 1).end;
  }

  // Says what comes next. One lane.
  __device__ __forceinline__ void announce(int row, int head) {
    BiasStep& step = control.step[step_place.stage];
    step.row = row;
    if (row >= 0) {
      const BiasSequence& s = control.sequence;
      step.visible = s.visible;
      step.whole = is_whole(row);
      step.stats = (static_cast<int64_t>(s.pack) * p.heads + head) * p.q_rows + s.q_row;
    }
    mbarrier_arrive(shared_address(&control.step_full[step_place.stage]));
  }

  // A piece of Q and K, or of dO and V. One lane.
  __device__ __forceinline__ void load_piece(const CUtensorMap& rows, const CUtensorMap& keys,
                                             int column, int row, int head) const {
    const BiasSequence& s = control.sequence;
    const uint32_t full = shared_address(&control.full[place.stage]);
    const uint32_t to = shared + place.stage * Traits::kStageBytes;
    mbarrier_arrive_expect(full, Traits::kStageBytes);
    tma_load(to, &rows, full, column, s.q_row + row, head, s.pack, kEvictNormal);
    tma_load(to + Traits::Piece::kBytes, &keys, full, column, s.k_row + control.part.key,
             head / p.group, s.pack, kEvictNormal);
  }
  __device__ __forceinline__ void load_pieces(const CUtensorMap& rows, const CUtensorMap& keys,
                                              int dim, int row, int head, bool begins) {
#pragma unroll 1
    for (int column = 0; column < dim; column += Traits::kColumns) {
      mbarrier_wait(shared_address(&control.empty[place.stage]), place.parity ^ 1);
      if (elect_lane()) {
        if (begins && column == 0) announce(row, head);
        load_piece(rows, keys, column, row, head);
      }
      __syncwarp();
      place.next();
    }
  }

  // Rows of a sequence that see some of the keys.
  __device__ __forceinline__ Visibility::Rows find_rows(int index) {
    const Sequence s = find_sequence(p, index);
    BiasSequence found;
    found.visible = Visibility(p, s);
    found.pack = s.pack;
    found.q_row = static_cast<int>(s.q_first - static_cast<int64_t>(s.pack) * p.q_rows);
    found.k_row = static_cast<int>(s.k_first - static_cast<int64_t>(s.pack) * p.k_rows);
    __syncwarp();
    if (elect_lane()) control.sequence = found;
    __syncwarp();
    return found.visible.rows_of_keys(control.part.key, control.part.key + Traits::kSide);
  }

  __device__ __forceinline__ void run() {
    constexpr int kSide = Traits::kSide;
    const bool all_rows = p.bias.row_stride == 0;
    const int last_sequence =
        control.part.sequence < 0 ? p.packs * p.sequences : control.part.sequence + 1;
    const int last_head = control.part.head < 0 ? p.heads : control.part.head + 1;
#pragma unroll 1
    for (int index = max(control.part.sequence, 0); index < last_sequence; ++index) {
      const Visibility::Rows rows = find_rows(index);
      const int end = all_rows ? rows.end : min(rows.end, control.part.row + kSide);
#pragma unroll 1
      for (int row = all_rows ? rows.begin / kSide * kSide : control.part.row; row < end;
           row += kSide) {
        if (row + kSide <= rows.begin) continue;
#pragma unroll 1
        for (int head = max(control.part.head, 0); head < last_head; ++head) {
          load_pieces(launch.query, launch.key, p.dim, row, head, true);
          load_pieces(launch.dout, launch.value, p.dim_v, row, head, false);
          step_place.next();
        }
      }
    }
    if (elect_lane()) announce(-1, 0);
  }
};

// A warpgroup: 64 rows. A lane has two rows of its warp's 16 and of 8 keys two, as accumulators have them.
template <class T>
struct BiasGradientConsumer {
  using Traits = BiasGradientTraits;
  using Block = float[Traits::kSide / 2];
  static constexpr int kKeys = Traits::kSide;

  const BiasGradParams& p;
  Traits::Control& control;
  const uint32_t shared, bias;  // bias: of the lane's first row and key
  const int group, warp, lane;
  RingPlace<Traits::kStages> place, step_place;

  __device__ __forceinline__ BiasGradientConsumer(const BiasGradParams& p, Traits::Control& control,
                                                  uint32_t shared, int group)
      : p(p),
        control(control),
        shared(shared),
        bias(shared + Traits::kBiasOffset +
             (64 * group + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4) * Traits::kPitch +
             threadIdx.x % 4 * 8),
        group(group),
        warp(threadIdx.x % 128 / 32),
        lane(threadIdx.x % 32) {}

  // The part of the bias, in base 2, by both warpgroups; zeros outside of it.
  __device__ __forceinline__ void load_bias() const {
    constexpr int kAtOnce = 32;  // rows of a thread
    const BiasPart& part = control.part;
    const ScoreModifier modify(p, find_sequence(p, max(part.sequence, 0)), max(part.head, 0));
    const int key = threadIdx.x % Traits::kSide, first = threadIdx.x / Traits::kSide - 1;
    const int rows = p.bias.row_stride == 0 ? Traits::kSide : p.bias_rows - part.row;
    const bool inside = part.key + key < p.bias_keys;
    modify.with_bias([&](auto bias_at) {
#pragma unroll 1
      for (int begin = first; begin < Traits::kSide; begin += 2 * kAtOnce) {
        float x[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int row = begin + 2 * i;
          x[i] = inside && row < rows ? bias_at(part.row + row, part.key + key) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)
          store_shared_4(shared + Traits::kBiasOffset + (begin + 2 * i) * Traits::kPitch + key * 4,
                         __float_as_uint(x[i]));
      }
    });
    named_barrier_sync(1, Traits::kConsumers);
  }

  // Says that the piece before has been read.
  __device__ __forceinline__ void release_before() const {
    mbarrier_arrive_warp(shared_address(&control.empty[place.before().stage]));
  }

  // A product over so many pieces, which is under way then.
  __device__ __forceinline__ void multiply_pieces(Block& d, int pieces, bool releases) {
    using Piece = Traits::Piece;
#pragma unroll 1
    for (int piece = 0; piece < pieces; ++piece) {
      mbarrier_wait(shared_address(&control.full[place.stage]), place.parity);
      const uint32_t at = shared + place.stage * Traits::kStageBytes;
      const uint64_t rows = Piece::descriptor(at + Piece::row_offset(64 * group));
      const uint64_t keys = Piece::descriptor(at + Piece::kBytes);
      warpgroup_arrive();
#pragma unroll
      for (int k = 0; k < Traits::kColumns; k += 16)
        WarpgroupMma<T, kKeys>::shared(d, advance(rows, Piece::column_offset(k)),
                                       advance(keys, Piece::column_offset(k)), piece > 0 || k > 0);
      warpgroup_commit();
      warpgroup_wait<1>();
      if (releases || piece > 0) release_before();
      place.next();
    }
  }

  // Adds dS of what is seen.
  template <bool kWhole>
  __device__ __forceinline__ void add(Block& total, const Block& s, const Block& d,
                                      const BiasStep& step) const {
    const Visibility& visible = step.visible;
    const float scale = p.scale * kLog2E;
    const int first_key = control.part.key + 2 * (lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = step.row + 64 * group + 16 * warp + lane / 4 + 8 * half;
      const bool counts = row < visible.q_len;
      const float of_row = counts ? p.lse[step.stats + row] : negative_infinity();
      const float lse = of_row == negative_infinity() ? -negative_infinity() : of_row * kLog2E;
      const float delta = counts ? p.delta[step.stats + row] : 0.0f;
      const Visibility::Keys keys = visible.keys_of_rows(row, row + 1);
      const int sinks = keys.sink_end - first_key, begin = keys.begin - first_key;
      const auto count = static_cast<unsigned>(keys.end - keys.begin);
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        const float2 added = load_shared_float2(bias + half * 8 * Traits::kPitch + n * 32);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int at = 4 * n + 2 * half + e, key = 8 * n + e;
          const float weight = exp2_approx(fmaf(s[at], scale, (e ? added.y : added.x) - lse));
          const float gradient = weight * (d[at] - delta);
          const bool seen = kWhole || key < sinks || static_cast<unsigned>(key - begin) < count;
          if (seen) total[at] += gradient;
        }
      }
    }
  }

  // To the warp's own rows of shared memory, and from there as whole rows.
  __device__ __forceinline__ void store(const Block& total) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        store_shared_float2(bias + half * 8 * Traits::kPitch + n * 32,
                            make_float2(total[4 * n + 2 * half], total[4 * n + 2 * half + 1]));
    __syncwarp();
    const int own = 64 * group + 16 * warp;
    const int64_t start = bias_start(p, control.part);
#pragma unroll 1
    for (int row = own; row < own + 16 && control.part.row + row < p.bias_rows; ++row) {
      float x[kKeys / 32];
#pragma unroll
      for (int i = 0; i < kKeys / 32; ++i)
        x[i] = load_shared_float(shared + Traits::kBiasOffset + row * Traits::kPitch +
                                 (lane + 32 * i) * 4);
      const int64_t to = start + (control.part.row + row) * p.bias.row_stride;
#pragma unroll
      for (int i = 0; i < kKeys / 32; ++i) {
        const int key = control.part.key + lane + 32 * i;
        if (key < p.bias_keys) store_bias(p, to + key, x[i]);
      }
    }
  }

  // The same of sums over the rows: those of a warp's rows to its own row of shared memory, then all of them.
  __device__ __forceinline__ void store_sums(const Block& total) const {
    named_barrier_sync(1, Traits::kConsumers);  // nobody needs the bias any more
    const uint32_t sums = shared + Traits::kBiasOffset;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float sum = butterfly_sum<4, 16>(total[4 * n + e] + total[4 * n + 2 + e]);
        if (lane < 4)
          store_shared_4(sums + (4 * group + warp) * Traits::kPitch + (8 * n + 2 * lane + e) * 4,
                         __float_as_uint(sum));
      }
    named_barrier_sync(1, Traits::kConsumers);
    const int key = threadIdx.x - 128;
    if (key >= kKeys || control.part.key + key >= p.bias_keys) return;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Traits::kConsumers / 32; ++i)
      sum += load_shared_float(sums + i * Traits::kPitch + key * 4);
    store_bias(p, bias_start(p, control.part) + control.part.key + key, sum);
  }

  // Whether there is a step still.
  __device__ __forceinline__ bool await_step() const {
    mbarrier_wait(shared_address(&control.step_full[step_place.stage]), step_place.parity);
    return !__any_sync(0xffffffffu, control.step[step_place.stage].row < 0);
  }

  __device__ __forceinline__ void run() {
    if (await_step()) load_bias();
    Block total;
#pragma unroll
    for (float& x : total) x = 0.0f;
#pragma unroll 1
    while (await_step()) {
      const BiasStep& step = control.step[step_place.stage];
      Block s, d;
      multiply_pieces(s, Traits::pieces(p.dim), false);
      multiply_pieces(d, Traits::pieces(p.dim_v), true);
      warpgroup_wait<0>();
      release_before();
      hold(s);
      hold(d);
      if (step.whole)
        add<true>(total, s, d, step);
      else
        add<false>(total, s, d, step);
      step_place.next();
    }
    if (p.bias.row_stride == 0)
      store_sums(total);
    else
      store(total);
  }
};

template <class T>
__global__ void __launch_bounds__(BiasGradientTraits::kThreads, 1)
    hopper_bias_gradient_kernel(const __grid_constant__ HopperBiasGradParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // wgmma exists on sm_90a alone
  using Traits = BiasGradientTraits;
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const uint32_t shared = shared_address(shared_memory);
  auto& control = *reinterpret_cast<Traits::Control*>(shared_memory + Traits::kControlOffset);
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (threadIdx.x == 0) {
    control.part = find_bias_part<Traits::kSide>(p.problem);
    for (int i = 0; i < Traits::kStages; ++i) {
      mbarrier_init(shared_address(&control.full[i]), 1);
      mbarrier_init(shared_address(&control.step_full[i]), 1);
      mbarrier_init(shared_address(&control.empty[i]), Traits::kConsumers / 32 * kWarpArrivals);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  if (warpgroup == 0) {
    registers_lower<Traits::kProducerRegisters>();
    if (threadIdx.x < 32) BiasGradientProducer(p, control, shared).run();
  } else {
    registers_raise<Traits::kConsumerRegisters>();
    BiasGradientConsumer<T>(p.problem, control, shared, warpgroup - 1).run();
  }
#endif
}

}  // namespace jax_baracuda
