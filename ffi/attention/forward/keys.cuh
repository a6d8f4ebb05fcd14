// Where the keys and values of a head come from: the kernel's parameter that tells contiguous operands from pages.
#pragma once

#include "attention/sequence.cuh"
#include "device/page_table.cuh"
#include "device/tile.cuh"

namespace jax_baracuda {

// A source loads blocks of keys and values to shared memory. prefetch() starts what load() of a block needs, one turn of
// the loop ahead; commit() ends it, before the barrier that comes before that load().

// Operands [B, K, Hkv, D], read by strides.
template <class Traits>
class ContiguousKeys {
  using T = typename Traits::T;

 public:
  static constexpr bool kLooksAhead = false;
  struct Shared {};

  __device__ __forceinline__ ContiguousKeys(const AttentionProblem& p, const Sequence& s,
                                            int kv_head, Shared&)
      : k_(rows(p, p.key, s, kv_head, p.dim, p.vector_q)),
        v_(rows(p, p.value, s, kv_head, p.dim_v, p.vector_v)) {}

  __device__ __forceinline__ void prefetch(const AttentionProblem&, int) {}
  __device__ __forceinline__ void commit() {}

  __device__ __forceinline__ void load(uint32_t to, int first) {
    constexpr bool kVector = !Traits::kFeatures;
    load_tile<Traits::kThreads, kVector>(typename Traits::Key(to), k_, first, threadIdx.x);
    load_tile<Traits::kThreads, kVector>(typename Traits::Value(to + Traits::Key::kBytes), v_,
                                         first, threadIdx.x);
  }

 private:
  static __device__ __forceinline__ GlobalRows<T> rows(const AttentionProblem& p, const void* data,
                                                       const Sequence& s, int kv_head, int dim,
                                                       int vector) {
    const int64_t stride = static_cast<int64_t>(p.kv_heads) * dim;
    return {static_cast<const T*>(data) + s.k_first * stride + static_cast<int64_t>(kv_head) * dim,
            stride, s.kv_len, dim, vector != 0};
  }

  GlobalRows<T> k_, v_;
};

// A paged store. A thread looks up one key of a block, and all threads find the rows in shared memory.
template <class Traits>
class PagedKeys {
  using T = typename Traits::T;
  static_assert(Traits::kN <= Traits::kThreads, "a thread a key");

 public:
  static constexpr bool kLooksAhead = true;
  struct Shared {
    uint32_t rows[2][Traits::kN];  // of the store, for this block and the next one
  };

  __device__ __forceinline__ PagedKeys(const AttentionProblem& p, const Sequence& s, int kv_head,
                                       Shared& shared)
      : shared_(shared),
        key_(static_cast<const T*>(p.key)),
        value_(static_cast<const T*>(p.value)),
        dim_(p.dim),
        keys_(s.kv_len),
        vector_(p.vector_q && p.vector_v),
        first_entry_(s.first_entry),
        head_row_(kv_head * p.pages.head_stride) {}

  __device__ __forceinline__ void prefetch(const AttentionProblem& p, int first) {
    const int key = first + static_cast<int>(threadIdx.x);
    found_ = head_row_;
    if (threadIdx.x < Traits::kN && key < keys_)
      found_ += store_row(p.pages, page_of(p.pages, first_entry_, key), key);
  }
  __device__ __forceinline__ void commit() {
    if (threadIdx.x < Traits::kN) shared_.rows[slot_][threadIdx.x] = found_;
    slot_ ^= 1;
  }

  __device__ __forceinline__ void load(uint32_t to, int first) {
    const uint32_t* rows = shared_.rows[load_slot_];
    load_slot_ ^= 1;
    const GatheredRows<T> both = {key_, value_, rows, keys_ - first, dim_, vector_};
    gather_tiles<Traits::kThreads, !Traits::kFeatures>(
        typename Traits::Key(to), typename Traits::Value(to + Traits::Key::kBytes), both,
        threadIdx.x);
  }

 private:
  Shared& shared_;
  const T *key_, *value_;
  int dim_, keys_;
  bool vector_;
  int first_entry_;
  uint32_t head_row_, found_;
  int slot_ = 0, load_slot_ = 0;
};

}  // namespace jax_baracuda
