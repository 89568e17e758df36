// The way of many ids through memory: while a group's rows are copied, the buckets of the next group are on their way
// from memory; while those are searched, the rows that they lead to are.
#pragma once

#include <algorithm>
#include <cstdint>

#include "rows.h"
#include "table.h"

namespace embedding_store {

constexpr int64_t kGroup = 16;  // ids: some 8 KiB of float32 rows of 128 values in flight, well within the first cache
constexpr int64_t kGrain = 1024;  // ids a thread, at least: waking one costs some microseconds

inline void prefetch(const void* address, int64_t bytes) {
  const auto* byte = static_cast<const char*>(address);
  for (int64_t i = 0; i < bytes; i += kCacheLine) __builtin_prefetch(byte + i);
  __builtin_prefetch(byte + bytes - 1);
}

// Where the ids of one table are.
class Finder {
 public:
  explicit Finder(const TableView& table)
      : table_(table), storage_unchecked_(table.storage.unchecked()), cold_unchecked_(table.cold.unchecked()) {}

  // The id's hash in the index; the buckets to look into first are on their way.
  uint64_t hash(int64_t id) const {
    const uint64_t hash = hash_id(id, table_.index.seed);
    __builtin_prefetch(table_.index.home(hash));
    if (is_overlaid()) __builtin_prefetch(table_.overlay.home(overlay_hash(id, hash)));
    return hash;
  }

  // kEmpty where the id is not in the snapshot; `from`: the index that says so. Throws ChecksumError.
  uint64_t location(int64_t id, uint64_t hash, const Index** from) const {
    if (is_overlaid()) {
      const uint64_t location = probe_checked(table_.overlay, overlay_hash(id, hash), id);
      if (location != kEmpty) {
        *from = &table_.overlay;
        return location == kAbsent ? kEmpty : location;
      }
    }
    *from = &table_.index;
    return probe_checked(table_.index, hash, id);
  }

  // The row, checked; row.vector is nullptr if the id is not in the snapshot.
  // Throws InvalidIndexError or ChecksumError, as raise_corrupt does.
  Row find(int64_t id, uint64_t hash, uint64_t* segment) const {
    const Index* from;
    const uint64_t location = this->location(id, hash, &from);
    if (location == kEmpty) return {nullptr, nullptr, nullptr};
    *segment = location_segment(location);
    const uint64_t row = location_row(location);
    if (*segment >= table_.segment_count) table_.raise_location(*from, id, location);
    table_.require_segment(*segment);
    if (row >= static_cast<uint64_t>(table_.segments[*segment].rows)) table_.raise_location(*from, id, location);
    return place(*segment, static_cast<int64_t>(row));
  }

  // A row on its way.
  void fetch(const Row& row) const {
    if (row.scale != nullptr) {
      __builtin_prefetch(row.scale);
      __builtin_prefetch(row.offset);
    }
    prefetch(row.vector, table_.form.bytes);
  }

 private:
  bool is_overlaid() const { return table_.overlay.buckets != nullptr; }

  uint64_t overlay_hash(int64_t id, uint64_t hash) const {
    return table_.overlay.seed == table_.index.seed ? hash : hash_id(id, table_.overlay.seed);
  }

  uint64_t probe_checked(const Index& index, uint64_t hash, int64_t id) const {
    return probe(index.buckets, index.total_buckets, index.home(hash) - index.buckets, id, [&](int64_t number) {
      if (storage_unchecked_ != nullptr) storage_unchecked_->require(index.buckets + number, sizeof(Bucket));
    });
  }

  // The row's addresses, its bytes checked.
  Row place(uint64_t number, int64_t row) const {
    const Segment& segment = table_.segments[number];
    const uint8_t* base = table_.bytes_of(number).data;
    Row found{base + segment.vector + row * table_.form.stride, nullptr, nullptr};
    if (is_quantised(table_.dtype)) {
      found.scale = reinterpret_cast<const float*>(base + segment.scale + row * table_.form.scale_stride);
      found.offset = reinterpret_cast<const float*>(base + segment.offset + row * table_.form.scale_stride);
    }
    if (Mapping* unchecked = number == 0 ? storage_unchecked_ : cold_unchecked_) {
      unchecked->require(found.vector, table_.form.bytes);
      if (found.scale != nullptr) {
        unchecked->require(found.scale, sizeof(float));
        unchecked->require(found.offset, sizeof(float));
      }
    }
    return found;
  }

  const TableView& table_;
  Mapping* storage_unchecked_;
  Mapping* cold_unchecked_;
};

// Calls consume(i, row, segment) for each id in turn; row.vector is nullptr if the id is not found.
// Throws what Finder::find does.
template <class Consume>
void find_all(
    const Finder& finder,
    const int64_t* ids,  // [count]
    int64_t count, const Consume& consume) {
  uint64_t hashes[2][kGroup];
  Row rows[2][kGroup];
  uint64_t segments[2][kGroup] = {};
  // Each step hashes one group, copies the one two before it, and searches for the one between, in three plain loops:
  // the processor looks ahead across their ids by itself, too.
  for (int64_t hashed = 0; hashed < count + 2 * kGroup; hashed += kGroup) {
    const int64_t side = hashed / kGroup % 2;
    for (int64_t id = hashed; id < std::min(hashed + kGroup, count); ++id) {
      hashes[side][id - hashed] = finder.hash(ids[id]);
    }
    const int64_t copied = hashed - 2 * kGroup, searched = hashed - kGroup;
    for (int64_t id = std::max<int64_t>(copied, 0); id < std::min(copied + kGroup, count); ++id) {
      consume(id, rows[side][id - copied], segments[side][id - copied]);
    }
    for (int64_t id = std::max<int64_t>(searched, 0); id < std::min(searched + kGroup, count); ++id) {
      const int64_t i = id - searched;
      rows[1 - side][i] = finder.find(ids[id], hashes[1 - side][i], &segments[1 - side][i]);
      if (rows[1 - side][i].vector != nullptr) finder.fetch(rows[1 - side][i]);
    }
  }
}

}  // namespace embedding_store
