// Ids to rows, up to 32 at a time: a tile of 4 lanes reads one bucket of 64 bytes, each lane one slot of 16.
#pragma once

#include "../common/index.h"
#include "arguments.h"
#include "warp.h"

namespace embedding_store::cuda {

constexpr int kTiles = warp::kLanes / kSlots;  // buckets that a warp reads with one access
constexpr uint32_t kTileMask = (1u << kSlots) - 1;
constexpr uint32_t kLastSlots = 0x88888888u;  // of each tile the lane that has the last slot

// Number i of a table's layout, from either place where it may be. A kernel calls it for each i before anything else
// and keeps the numbers in memory that all its lanes read: they would take a thread's registers.
ES_DEVICE int64_t table_number(const TableView& table, int i) {
  if (table.layout == nullptr) return table.numbers.values[i];
  return i < table.layout_values ? warp::load(table.layout + i) : 0;
}

// As the first `kLayoutValues` threads that call it write them.
ES_DEVICE void read_numbers(const TableView& table, int thread, TableNumbers* numbers) {
  if (thread < kLayoutValues) numbers->values[thread] = table_number(table, thread);
}

struct IndexView {
  const uint8_t* buckets;
  int64_t home_buckets;
  int64_t total_buckets;
  int64_t seed;
};

// Whether the index and the overlay lie with the cold rows, in memory of the host.
ES_DEVICE bool is_index_cold(const TableNumbers& numbers) { return numbers.values[kIndexColdAt] != 0; }

// The index whose numbers are at `index`, among those of the table. Without the memory that it should be in, one without
// buckets.
ES_DEVICE IndexView index_at(const TableView& table, const TableNumbers& numbers, const int64_t* index) {
  const uint8_t* base = is_index_cold(numbers) ? table.cold : table.storage;
  return {base + index[0], index[1], base == nullptr ? 0 : index[2], index[3]};
}

ES_DEVICE IndexView index_view(const TableView& table, const TableNumbers& numbers) {
  return index_at(table, numbers, numbers.values);
}

ES_DEVICE bool is_overlaid(const TableNumbers& numbers) { return numbers.values[kOverlaidAt] != 0; }

// How many segments the numbers have; what a wrong layout says does not lead out of them.
ES_DEVICE int segments_of(const TableNumbers& numbers) {
  const auto segments = static_cast<uint64_t>(numbers.values[kSegmentsAt]);
  const int most = is_overlaid(numbers) ? kMaxParts - 1 : kMaxParts;
  return segments < static_cast<uint64_t>(most) ? static_cast<int>(segments) : most;
}

// The numbers of the overlay's index, of a table that is overlaid.
ES_DEVICE const int64_t* overlay_of(const TableNumbers& numbers) {
  return numbers.values + kLayoutHeader + 4 * segments_of(numbers);
}

ES_DEVICE int64_t home_of(const IndexView& index, int64_t id) {
  return home_bucket(hash_id(id, index.seed), index.home_buckets);
}

ES_DEVICE const uint8_t* bucket_address(const IndexView& index, int64_t number) {
  return index.buckets + number * static_cast<int64_t>(sizeof(Bucket));
}

// Ask for the first bucket of an id ahead of its use; not over the bus, where it might come twice.
ES_DEVICE void prefetch_bucket(const TableView& table, const TableNumbers& numbers, int64_t id) {
  if (is_index_cold(numbers)) return;
  const IndexView index = index_view(table, numbers);
  warp::prefetch(bucket_address(index, home_of(index, id)));
}

// Lane i's of what is counted, number i of kCounts.
ES_DEVICE int count_of(int lane, int hot, int cold, int missing, int crossed) {
  return lane == 0 ? hot : lane == 1 ? cold : lane == 2 ? missing : crossed;
}

// A row in memory. Without one: some zeros to read, and numbers with which they decode to zeros.
struct Row {
  const uint8_t* values;
  bool found;
  float scale;
  float offset;
};

// Which of the buckets that a warp reads at once are whose: number q, which tile q % kTiles reads in round q / kTiles,
// belongs to the id of lane q % kIds, and is the one q / kIds buckets after that which its search has come to. With few
// ids a warp there is room for each one's next bucket, too: one search in ten goes on to it, hardly any further.
template <int kIds>
struct Shares {
  static_assert(kIds == 4 || kIds == 8 || kIds == 16 || kIds == 32, "no such step");
  static constexpr int kAhead = kIds < warp::kLanes ? 2 : 1;  // adjacent buckets of an id that are read together
  static constexpr int kRounds = kIds * kAhead / kTiles;

  ES_DEVICE static int owner(int round, int tile) { return (round * kTiles + tile) % kIds; }
  ES_DEVICE static int ahead(int round, int tile) { return (round * kTiles + tile) / kIds; }

  // The lanes that read the buckets of `lane`'s id in this round.
  ES_DEVICE static uint32_t readers(int round, int lane) {
    if (round * kTiles % kIds != lane / kTiles * kTiles) return 0;
    const uint32_t tile = kTileMask << lane % kTiles * kSlots;
    return kIds < kTiles ? tile | tile << kIds * kSlots : tile;
  }
};

// The location of lane i's id in lane i; kEmpty where there is none or the id is not wanted, as none is from lane kIds
// on. All searches advance together, each lane knowing how far that of its own id has come.
template <int kIds>
ES_DEVICE uint64_t probe_ids(const IndexView& index, int64_t id, bool wanted, int lane) {
  using Shares = Shares<kIds>;
  const int slot = lane % kSlots;
  const int tile = lane / kSlots;
  int64_t bucket = home_of(index, id);
  uint64_t location = kEmpty;
  bool searching = wanted;
  while (const uint32_t all = warp::ballot(searching)) {
    warp::Words<16> slots[Shares::kRounds];
    uint32_t read = 0;  // bit r: this lane has read a slot in round r
    ES_UNROLL
    for (int r = 0; r < Shares::kRounds; ++r) {
      const int owner = Shares::owner(r, tile);
      const int64_t number = warp::shuffle(bucket, owner) + Shares::ahead(r, tile);
      const bool there = (all >> owner & 1u) != 0 && number < index.total_buckets;
      slots[r] = warp::load_if(there, bucket_address(index, number) + slot * sizeof(Slot));
      read |= static_cast<uint32_t>(there) << r;
    }
    bool full = true;  // all buckets of this lane's id
    ES_UNROLL
    for (int r = 0; r < Shares::kRounds; ++r) {
      const uint32_t* words = slots[r].words;
      const int64_t stored = static_cast<int64_t>(words[0] | static_cast<uint64_t>(words[1]) << 32);
      const uint64_t there = words[2] | static_cast<uint64_t>(words[3]) << 32;
      const bool occupied = (read >> r & 1u) != 0 && there != kEmpty;
      const bool same = stored == warp::shuffle(id, Shares::owner(r, tile));
      const uint32_t readers = Shares::readers(r, lane);
      const uint32_t hits = warp::ballot(occupied && same) & readers;
      const uint32_t last = warp::ballot(occupied) & kLastSlots;  // empty slots are the last ones of a bucket
      const uint64_t answer = warp::shuffle(there, hits != 0 ? warp::lowest_bit(hits) : 0);
      if (searching && hits != 0) location = answer;
      if ((readers & kLastSlots & ~last) != 0) full = false;
    }
    searching = searching && full && location == kEmpty;
    bucket += Shares::kAhead;
  }
  return location;
}

// As probe_ids, in the overlay first if there is one: what it says of an id, kAbsent too, counts.
template <int kIds>
ES_DEVICE uint64_t locate_ids(const TableView& table, const TableNumbers& numbers, int64_t id, bool wanted, int lane) {
  uint64_t location = kEmpty;
  // One copy of the search, and an index that is read anew: both spare the registers of lookups without an overlay.
  const int64_t* index = is_overlaid(numbers) ? overlay_of(numbers) : numbers.values;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (bool last = false; !last; index = numbers.values) {
    last = index == numbers.values;
    const uint64_t found = probe_ids<kIds>(index_at(table, numbers, index), id, wanted && location == kEmpty, lane);
    if (location == kEmpty) location = found;
  }
  return location;
}

// With the step of a plan.
ES_DEVICE uint64_t locate_ids(
    const TableView& table, const TableNumbers& numbers, int64_t id, bool wanted, int ids_per_warp, int lane) {
  if (ids_per_warp == 4) return locate_ids<4>(table, numbers, id, wanted, lane);
  if (ids_per_warp == 8) return locate_ids<8>(table, numbers, id, wanted, lane);
  if (ids_per_warp == 16) return locate_ids<16>(table, numbers, id, wanted, lane);
  return locate_ids<32>(table, numbers, id, wanted, lane);
}

// Scale and offset of a quantised row with both in front of it: one access, to memory that the values are about to be
// read from.
ES_DEVICE void read_scale(Row* row) {
  const warp::Words<8> pair = warp::load_past<8>(row->values - kScaleBytes);
  row->scale = from_bits(pair.words[0]);
  row->offset = from_bits(pair.words[1]);
}

// Whether there is a row at a location: one outside its segment, which loading refuses, is none, nor is kAbsent.
ES_DEVICE bool is_row(const TableNumbers& numbers, uint64_t location) {
  const uint64_t number = location_segment(location);
  if (number >= static_cast<uint64_t>(segments_of(numbers))) return false;
  return static_cast<int64_t>(location_row(location)) < numbers.values[kLayoutHeader + static_cast<int>(number) * 4 + 3];
}

// The row at a location; `base` is where its segment's columns are counted from, `place` any number (see warp::zeros).
// Unless there is one, nothing is read.
template <Dtype kDtype>
ES_DEVICE Row row_at(
    const TableView& table, const TableNumbers& numbers, uint64_t location, const uint8_t* base, uint32_t place) {
  Row row{warp::zeros(place), false, 0.0f, 0.0f};
  if (!is_row(numbers, location)) return row;
  const int64_t* segment = numbers.values + kLayoutHeader + static_cast<int>(location_segment(location)) * 4;
  const int64_t index = static_cast<int64_t>(location_row(location));
  const int64_t stride = numbers.values[kStrideAt];
  row.found = true;
  row.values = base + segment[0] + index * (is_in_row(stride) ? stride : table.row_bytes);
  if constexpr (kDtype == Dtype::kInt8 || kDtype == Dtype::kInt4) {
    if (is_in_row(stride)) {
      read_scale(&row);
    } else {
      row.scale = warp::load(reinterpret_cast<const float*>(base + segment[1]) + index);
      row.offset = warp::load(reinterpret_cast<const float*>(base + segment[2]) + index);
    }
  }
  return row;
}

}  // namespace embedding_store::cuda
