// The second consumer warpgroup of a CTA of a pair: dP^T = V dO^T of its 64 keys, gradients of the scores, which it leaves
// in the shared memory of both CTAs, dK += dS^T Q. What the tensor cores get from it, of row block i:
//   dP(i), dQ(i - 1) | dK(i) | dP(i + 1), dQ(i) ...
// It computes dS(i) with dQ(i - 1) under way, and adds that with dK(i) under way.
#pragma once

#include "attention/hopper/backward/bias_sums.cuh"
#include "attention/hopper/backward/pair_group.cuh"

namespace jax_baracuda {

template <class Traits>
struct PairGradients : PairGroup<Traits, 1> {
  using Base = PairGroup<Traits, 1>;
  using Base::Base, Base::control, Base::count, Base::lane, Base::p, Base::query_stage, Base::rank,
      Base::shared, Base::tiles, Base::wait, Base::warp;
  using typename Base::DOut;
  using typename Base::Gradient;
  using typename Base::Operand;
  using typename Base::Query;
  using typename Base::T;
  using typename Base::Value;
  static constexpr int kRows = Traits::kRows;

  struct State {
    typename Base::Scores dp;
    typename Base::Operand gradients;
    typename Base::QuerySum dq;
    float dk[Traits::kDim / 2];
    BiasSums<Traits> of_bias;
  };

  // Before the delta of the rows of a lane's scores.
  __device__ __forceinline__ uint32_t delta_address() const {
    return shared + Traits::kDeltaOffset + this->stat_offset();
  }

  // dP, which is there, to dS.
  __device__ __forceinline__ void differentiate_rows(State& r) const {
    wait(control.weights_full, count & 1);
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
      const uint4 w = load_shared_16(this->weight_address() + i * 512);
      if constexpr (Traits::kOption == kDropout)
        differentiate_signed<T>(i, {w.x, w.y, w.z, w.w}, r.dp, delta_address());
      else
        differentiate<Traits>(i, {w.x, w.y, w.z, w.w}, r.dp, delta_address());
    }
    this->release(control.weights_empty);
    pack_scores<Traits>(r.dp, r.gradients);
  }

  // The gradient of a bias that all rows share, of the head of the row block before.
  __device__ __forceinline__ void end_bias_sums(State& r, const KeyTile& tile) const {
    r.of_bias.end(p, tile, this->due_block().head,
                  tile.first_key + Traits::kCtaKeys * rank() + 16 * warp, lane);
  }
  __device__ __forceinline__ void add_bias_sums(State& r, const KeyTile& tile,
                                                const RowBlock& block, bool due) const {
    if (!Traits::kSumsBias) return;
    if (__any_sync(0xffffffffu, due && block.head != this->due_block().head))
      end_bias_sums(r, tile);
    r.of_bias.template add<0, kRows>(r.gradients);
  }

  // dS to both CTAs.
  __device__ __forceinline__ void publish(const Operand& gradients) const {
    const int stage = this->gradient_stage(count);
    wait(control.gradient_empty[stage], this->gradient_parity(count) ^ 1);
    const uint32_t panel = shared + Traits::kGradientOffset + stage * Gradient::kBytes +
                           rank() * Gradient::kPanelBytes;
    store_score_gradients<Traits>(panel, gradients, warp, lane);
    fence_async_shared();
    named_barrier_sync(Base::kNamedBarrier, 128);
    if (warp == 0 && lane == 0) {
      const uint32_t full = shared_address(&control.gradient_full[stage]);
      mbarrier_arrive_expect(full, Gradient::kPanelBytes);  // of the other CTA
      bulk_copy_to_cta(panel, Gradient::kPanelBytes, full, rank() ^ 1);
    }
    __syncwarp();
  }

  // A row block, and dQ of the one before. `due`: there is one. Returns whether this is the last one.
  __device__ __forceinline__ bool process_rows(State& r, const KeyTile& tile, bool due) {
    const RowBlock& block = this->wait_query(count);
    warpgroup_wait<0>();  // dK: its operand's registers are needed
    if (due) this->release_in_both(control.query_empty[query_stage(count - 1)]);
    if (Traits::kBeginsWithDelta) begin_with_statistics<Traits>(r.dp, delta_address());
    this->wait_dout(tile, block);
    warpgroup_arrive();
    multiply_rows<T, Value, DOut>(r.dp, shared + Traits::kValueOffset, this->dout_address(),
                                  !Traits::kBeginsWithDelta);
    warpgroup_commit();
    this->issue_query_sum(r.dq, due);
    warpgroup_wait<1>();
    hold(r.dp);
    this->release_in_both(control.dout_empty[this->dout_stage(count)]);
    differentiate_rows(r);
    publish(r.gradients);
    warpgroup_arrive();
    multiply_weights<T, Query, kRows>(r.dk, r.gradients, this->query_address(count), due);
    warpgroup_commit();
    add_bias_sums(r, tile, block, due);
    warpgroup_wait<1>();
    hold(r.dq);
    if (due) this->add_query_sum(r.dq);
    this->set_due(block);
    ++count;
    return __any_sync(0xffffffffu, block.flags & kLastRows);
  }

  // A block of keys, from its first row block to the last.
  __device__ __forceinline__ void process(State& r, const KeyTile& tile) {
    wait(control.value_full, tiles & 1);
    if (tile.padded)
      this->template clear<Value>(shared + Traits::kValueOffset,
                                  tile.visible.kv_len - tile.first_key - Traits::kCtaKeys * rank());
    r.of_bias.begin();
    bool due = false;
#pragma unroll 1
    while (!process_rows(r, tile, due)) due = true;
    this->release(control.value_empty);
    end_bias_sums(r, tile);
    this->issue_query_sum(r.dq, true);
    warpgroup_wait<0>();
    hold(r.dq);
    hold(r.dk);
    this->release_in_both(control.query_empty[query_stage(count - 1)]);
    this->release(control.key_empty[0]);
    this->add_query_sum(r.dq);
  }

  __device__ __forceinline__ void run() {
    while (true) {
      wait(control.key_full[0], tiles & 1);
      const KeyTile& tile = control.tile[tiles % 3];
      if (__any_sync(0xffffffffu, tile.kind == KeyTileKind::kNone)) break;
      State r;
      if (__any_sync(0xffffffffu, tile.kind == KeyTileKind::kSeen)) {
        process(r, tile);
      } else {
        this->release(control.key_empty[0]);
        this->release(control.value_empty);
      }
      this->template store<Traits::kDim>(p.dk, p.dim, r.dk, gradient_scale<Traits>(p, p.scale),
                                         tile);
      ++tiles;
    }
    this->end_turns();
  }
};

}  // namespace jax_baracuda
