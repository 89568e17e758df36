// Whether a layout's numbers stay within the memory that they lead into: asked before anything is read there, by the
// host code of both libraries.
#pragma once

#include <cstdint>

#include "decode.h"
#include "index.h"

namespace embedding_store {

constexpr int64_t kMostBuckets = int64_t{1} << 46;  // products stay within int64
constexpr int kNothingWrong = -1;

// Whether `count` bytes from `start` on are some of `size`.
inline bool is_within(int64_t start, int64_t count, int64_t size) {
  return start >= 0 && count >= 0 && start <= size && count <= size - start;
}

// How the rows of a table lie.
struct RowForm {
  bool quantised;
  bool in_row;
  int64_t bytes;         // of a row's values
  int64_t stride;        // from a row to the next one
  int64_t scale_stride;  // and from its scale to the next one's, or its offset
};

// `stride`: the layout's.
inline RowForm row_form(Dtype dtype, int64_t dim, int64_t stride) {
  const int64_t bytes = row_bytes(dtype, dim);
  const bool in_row = is_in_row(stride);
  return {is_quantised(dtype), in_row, bytes, in_row ? stride : bytes, in_row ? stride : int64_t{sizeof(float)}};
}

// Which of an index's numbers is wrong: its first bucket (0), home buckets (1), total buckets (2). `alignment` is what
// reads of buckets need; `contains(start, bytes)` says whether these bytes are there.
template <class Contains>
int wrong_in_index(const int64_t* index, int64_t alignment, const Contains& contains) {
  const int64_t start = index[0], home_buckets = index[1], total_buckets = index[2];
  if (home_buckets < 1) return 1;
  if (total_buckets < home_buckets || total_buckets >= kMostBuckets) return 2;
  const bool there = contains(start, total_buckets * static_cast<int64_t>(sizeof(Bucket)));
  return there && start % alignment == 0 ? kNothingWrong : 0;
}

// Which of a segment's numbers is wrong, as Segment has them. `alignment` is what reads of values need, `size` how many
// bytes there are at most.
template <class Contains>
int wrong_in_segment(
    const Segment& segment, const RowForm& form, int64_t alignment, int64_t size, const Contains& contains) {
  if (segment.rows < 0) return 3;
  if (segment.rows == 0) return kNothingWrong;  // no location leads there
  // Whether all rows' numbers, `count` bytes of each, `stride` apart, are there.
  const auto holds = [&](int64_t start, int64_t element, int64_t count, int64_t stride) {
    if (start % element != 0 || (form.in_row && stride % element != 0)) return false;
    return segment.rows - 1 <= size / stride && contains(start, (segment.rows - 1) * stride + count);
  };
  constexpr int64_t kFloat = sizeof(float);
  if (!holds(segment.vector, alignment, form.bytes, form.stride)) return 0;
  if (form.quantised && !holds(segment.scale, kFloat, kFloat, form.scale_stride)) return 1;
  if (form.quantised && !holds(segment.offset, kFloat, kFloat, form.scale_stride)) return 2;
  return kNothingWrong;
}

}  // namespace embedding_store
