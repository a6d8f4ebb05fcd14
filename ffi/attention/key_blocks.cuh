// The blocks of kN keys that a block of query rows visits, from the last to the first.
#pragma once

#include "attention/sequence.cuh"

namespace jax_baracuda {

template <int kN>
struct KeyBlocks {
  int first, last;  // blocks [first, last) and [0, sinks)
  int sinks;
  int whole_first, whole_last;  // of those, [whole_first, whole_last) are seen by every row

  // Rows [i0, i1) of the sequence.
  __device__ __forceinline__ KeyBlocks(const Visibility& visible, int i0, int i1) {
    const Visibility::Keys range = visible.keys_of_rows(i0, i1);
    last = range.end > range.begin ? (range.end + kN - 1) / kN : 0;
    first = min(range.begin / kN, last);
    sinks = (range.sink_end + kN - 1) / kN;
    last = max(last, sinks);
    whole_first = whole_last = 0;
    if (i1 <= visible.q_len) {
      whole_first = (visible.keys_of_rows(i1 - 1, i1).begin + kN - 1) / kN;
      whole_last = visible.keys_of_rows(i0, i0 + 1).end / kN;
    }
  }

  // The block before `block`, -1 if there is none. Start from `last`.
  __device__ __forceinline__ int before(int block) const {
    --block;
    return block < first && block >= sinks ? sinks - 1 : block;
  }
  // How many there are, and the one that `place` others come before.
  __device__ __forceinline__ int count() const {
    return sinks < first ? last - first + sinks : last;
  }
  __device__ __forceinline__ int at(int place) const {
    const int block = last - 1 - place;
    return block < first && sinks < first ? block - (first - sinks) : block;
  }
  __device__ __forceinline__ bool whole(int block) const {
    return block >= whole_first && block < whole_last;
  }
};

// The same with segments: blocks of other segments are passed over.
struct SegmentBlocks {
  Segments segments;
  int row_begin, row_end, keys;

  SegmentBlocks() = default;
  __device__ __forceinline__ SegmentBlocks(const Segments& segments, const Visibility& visible,
                                           int i0, int i1)
      : segments(segments), row_begin(i0), row_end(min(i1, visible.q_len)), keys(visible.kv_len) {}

  template <int kN>
  __device__ __forceinline__ Overlap overlap(int block) const {
    return segments.overlap(row_begin, row_end, block * kN, min((block + 1) * kN, keys));
  }
  template <int kN>
  __device__ __forceinline__ int before(const KeyBlocks<kN>& blocks, int block) const {
    do block = blocks.before(block);
    while (block >= 0 && overlap<kN>(block) == Overlap::kNone);
    return block;
  }
};

}  // namespace jax_baracuda
