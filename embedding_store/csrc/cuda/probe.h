// Ids to rows, 32 at a time: a tile of 4 lanes reads one bucket of 64 bytes, each lane one slot of 16.
#pragma once

#include "../common/index.h"
#include "arguments.h"
#include "warp.h"

namespace embedding_store::cuda {

constexpr int kTiles = warp::kLanes / kSlots;         // buckets a warp reads at once
constexpr int kRounds = warp::kLanes / kTiles;        // ids of a tile: all their buckets are in flight together
constexpr uint32_t kTileMask = (1u << kSlots) - 1;

struct IndexView {
  const uint8_t* buckets;
  int64_t home_buckets;
  int64_t total_buckets;
  int64_t seed;
};

ES_DEVICE IndexView index_at(const TableView& table, const int64_t* numbers) {
  return {table.storage + warp::load(numbers), warp::load(numbers + 1), warp::load(numbers + 2),
          warp::load(numbers + 3)};
}

ES_DEVICE IndexView index_view(const TableView& table) { return index_at(table, table.layout); }

ES_DEVICE bool is_overlaid(const TableView& table) { return warp::load(table.layout + kOverlaidAt) != 0; }

// Where the layout of a table that is overlaid has the overlay's numbers.
ES_DEVICE int64_t overlay_at(const TableView& table) {
  return kLayoutHeader + warp::load(table.layout + kSegmentsAt) * 4;
}

ES_DEVICE int64_t home_of(const IndexView& index, int64_t id) {
  return home_bucket(hash_id(id, index.seed), index.home_buckets);
}

ES_DEVICE const uint8_t* bucket_address(const IndexView& index, int64_t number) {
  return index.buckets + number * static_cast<int64_t>(sizeof(Bucket));
}

// A row in memory. Without one: null, and numbers that decode to zero.
struct Row {
  const uint8_t* values = nullptr;
  float scale = 0;
  float offset = 0;
  bool hot = false;
};

// Whether a tile's search is over, from the lanes that hit and those whose slot is occupied.
ES_DEVICE bool search_ends(uint32_t hits, uint32_t occupied, int tile) {
  const bool found = (hits >> tile * kSlots & kTileMask) != 0;
  const bool full = (occupied >> (tile * kSlots + kSlots - 1) & 1u) != 0;  // empty slots are the last ones
  return found || !full;
}

// The location of lane i's id in lane i; kEmpty where there is none or the id is not wanted. All searches advance
// together, so that a lane need not remember ids and buckets of its tile's rounds: their owners do.
ES_DEVICE uint64_t probe_ids(const IndexView& index, int64_t id, bool wanted, int lane) {
  const int slot = lane % kSlots;
  const int tile = lane / kSlots;
  const uint32_t all_wanted = warp::ballot(wanted);
  int64_t bucket = home_of(index, id);  // of this lane's own id
  uint64_t location = kEmpty;           // likewise
  uint32_t searching = 0;  // bit r: the tile's search of round r, for the id of lane r * kTiles + tile, goes on
  ES_UNROLL
  for (int r = 0; r < kRounds; ++r) searching |= (all_wanted >> (r * kTiles + tile) & 1u) << r;
  while (warp::ballot(searching != 0) != 0) {
    warp::Words<16> slots[kRounds];
    ES_UNROLL
    for (int r = 0; r < kRounds; ++r) {
      const int64_t number = warp::shuffle(bucket, r * kTiles + tile);
      if (number >= index.total_buckets) searching &= ~(1u << r);
      // A search that is over reads the first bucket, which is near by then: loads without conditions are all under
      // way before the first is waited for.
      const uint8_t* address = bucket_address(index, (searching >> r & 1u) != 0 ? number : 0);
      slots[r] = warp::load<16>(address + slot * sizeof(Slot));
    }
    ES_UNROLL
    for (int r = 0; r < kRounds; ++r) {
      const uint32_t* words = slots[r].words;
      const int64_t stored = static_cast<int64_t>(words[0] | static_cast<uint64_t>(words[1]) << 32);
      const uint64_t there = words[2] | static_cast<uint64_t>(words[3]) << 32;
      const bool same = stored == warp::shuffle(id, r * kTiles + tile);
      const uint32_t hits = warp::ballot(same && there != kEmpty && (searching >> r & 1u) != 0);
      const uint32_t occupied = warp::ballot(there != kEmpty);
      if (search_ends(hits, occupied, tile)) searching &= ~(1u << r);
      // To the owner, if one of its tile's lanes hit.
      const uint32_t answers = hits >> lane % kTiles * kSlots & kTileMask;
      const int from = answers != 0 ? warp::lowest_bit(answers) : 0;
      const uint64_t answer = warp::shuffle(there, lane % kTiles * kSlots + from);
      if (lane / kTiles == r && answers != 0) location = answer;
    }
    ++bucket;
  }
  return location;
}

// As probe_ids, in the overlay first if there is one: what it says of an id, kAbsent too, counts.
ES_DEVICE uint64_t locate_ids(
    const TableView& table, int64_t id, bool wanted, int lane) {
  uint64_t location = kEmpty;
  // One copy of the search, and an index that is read anew: both spare the registers of lookups without an overlay.
  int64_t numbers = is_overlaid(table) ? overlay_at(table) : 0;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (bool last = false; !last; numbers = 0) {
    last = numbers == 0;
    const uint64_t found = probe_ids(index_at(table, table.layout + numbers), id, wanted && location == kEmpty, lane);
    if (location == kEmpty) location = found;
  }
  return location;
}

// The row at a location. One outside its segment, which loading refuses, is no row: nothing is read beyond the columns.
// Nor is kAbsent one.
template <Dtype kDtype>
ES_DEVICE Row row_at(const TableView& table, uint64_t location) {
  Row row;
  const uint64_t number = location_segment(location);
  if (location == kEmpty || number >= static_cast<uint64_t>(table.segments)) return row;
  if (number >= static_cast<uint64_t>(warp::load(table.layout + kSegmentsAt))) return row;  // an overlay's numbers
  const int64_t* segment = table.layout + kLayoutHeader + static_cast<int64_t>(number) * 4;
  const int64_t index = static_cast<int64_t>(location_row(location));
  if (index >= warp::load(segment + 3)) return row;
  row.hot = number == 0;
  const uint8_t* base = row.hot || table.cold == nullptr ? table.storage : table.cold;
  row.values = base + warp::load(segment) + index * table.row_bytes;
  if constexpr (kDtype == Dtype::kInt8 || kDtype == Dtype::kInt4) {
    const int64_t stride = warp::load(table.layout + 5) == 8 ? 8 : 4;
    row.scale = warp::load(reinterpret_cast<const float*>(base + warp::load(segment + 1) + index * stride));
    row.offset = warp::load(reinterpret_cast<const float*>(base + warp::load(segment + 2) + index * stride));
  }
  return row;
}

}  // namespace embedding_store::cuda
