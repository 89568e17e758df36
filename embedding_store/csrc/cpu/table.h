// What every CPU op reads: the index, the segments and where their rows are, checked against the tensors' sizes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "../common/decode.h"
#include "../common/index.h"
#include "../common/layout.h"
#include "../common/names.h"
#include "mapping.h"

namespace embedding_store {

using torch::stable::Tensor;

// Bytes of one tensor, with the mapping they lie in, if any.
struct Bytes {
  explicit Bytes(const Tensor& storage);  // uint8 [bytes]

  // The same bytes if they still need checking, else nullptr.
  Mapping* unchecked() const { return mapping != nullptr && !mapping->all_checked() ? mapping : nullptr; }

  // Whether `count` bytes from `start` exist, in one file.
  bool contain(int64_t start, int64_t count) const;
  // The same where files that follow each other count as one, as the pieces of an index do.
  bool contain_joined(int64_t start, int64_t count) const;

  const uint8_t* data;
  int64_t size;
  Mapping* mapping;
};

// A hash index in memory. Without buckets there is none.
struct Index {
  // The bucket in which the search for an id begins that has this hash.
  const Bucket* home(uint64_t hash) const { return buckets + home_bucket(hash, home_buckets); }

  const Bucket* buckets = nullptr;  // [total_buckets]
  int64_t home_buckets = 0, total_buckets = 0, seed = 0;
};

struct TableView {
  // `storage` holds segment 0, `cold` all other segments: the same tensor unless the table is tiered. Which of them holds
  // index and overlay the layout says.
  // Throws InvalidIndexError (as raise_corrupt does) if `layout` places the buckets outside of them.
  TableView(
      const Tensor& storage,  // uint8 [bytes]
      const Tensor& cold,     // uint8 [bytes]
      const Tensor& layout,   // int64 [8 + 4 * S], or 4 more with an overlay
      int64_t dim, const std::string& dtype);

  const Bytes& bytes_of(uint64_t segment) const { return segment == 0 ? storage : cold; }

  // Whether a segment lies within the stored bytes. Looked at when a location first leads there: a table may have
  // thousands of segments, a lookup one id. Throws InvalidIndexError if it does not. Threads may race: both look.
  void require_segment(uint64_t number) const {
    const uint64_t bit = uint64_t{1} << (number % 64);
    std::atomic<uint64_t>& word = good_segments_[number / 64];
    if (word.load(std::memory_order_relaxed) & bit) return;
    check_segment(number);
    word.fetch_or(bit, std::memory_order_relaxed);
  }

  // An entry of an index points to no row.
  [[noreturn]] void raise_location(const Index& one, int64_t id, uint64_t location) const;

  Bytes storage, cold;
  bool index_cold;  // which of these holds the indexes
  Index index;
  Index overlay;  // what it says of an id counts instead of what the index does
  const Segment* segments;  // [segment_count]
  uint64_t segment_count;
  int64_t dim;
  Dtype dtype;
  RowForm form;

 private:
  Index index_at(const int64_t* numbers) const;
  std::string path_of(const Index& one) const;
  std::string path_at(int64_t start) const;
  void check_segment(uint64_t number) const;

  std::unique_ptr<std::atomic<uint64_t>[]> good_segments_;  // a bit each
};

}  // namespace embedding_store
