// The lookup of one warp in many tables, each id in one of its own.
#pragma once

#include "rows.h"

namespace embedding_store::cuda {

// As probe_ids, each lane's id in an index of its own.
ES_DEVICE uint64_t probe_each(const IndexView& index, int64_t id, bool wanted, int lane) {
  const int slot = lane % kSlots;
  const int tile = lane / kSlots;
  using Shares = Shares<warp::kLanes>;
  const int64_t home = wanted ? home_of(index, id) : 0;
  uint64_t address = reinterpret_cast<uint64_t>(bucket_address(index, home));
  int64_t left = index.total_buckets - home;
  uint64_t location = kEmpty;
  bool searching = wanted;
  while (const uint32_t all = warp::ballot(searching && left > 0)) {
    warp::Words<16> slots[Shares::kRounds];
    ES_UNROLL
    for (int r = 0; r < Shares::kRounds; ++r) {
      const int owner = Shares::owner(r, tile);
      const uint64_t bucket = warp::shuffle(address, owner);
      const auto* from = reinterpret_cast<const uint8_t*>(bucket) + slot * sizeof(Slot);
      slots[r] = warp::load_if((all >> owner & 1u) != 0, from);
    }
    bool full = false;
    ES_UNROLL
    for (int r = 0; r < Shares::kRounds; ++r) {
      const uint32_t* words = slots[r].words;
      const int owner = Shares::owner(r, tile);
      const int64_t stored = static_cast<int64_t>(words[0] | static_cast<uint64_t>(words[1]) << 32);
      const uint64_t there = words[2] | static_cast<uint64_t>(words[3]) << 32;
      const bool occupied = (all >> owner & 1u) != 0 && there != kEmpty;
      const bool same = stored == warp::shuffle(id, owner);
      const uint32_t readers = Shares::readers(r, lane);
      const uint32_t hits = warp::ballot(occupied && same) & readers;
      const uint32_t last = warp::ballot(occupied) & readers & kLastSlots;
      const uint64_t answer = warp::shuffle(there, hits != 0 ? warp::lowest_bit(hits) : 0);
      if (searching && hits != 0) location = answer;
      full = full || last != 0;
    }
    searching = searching && full && location == kEmpty;
    address += sizeof(Bucket);
    --left;
  }
  return location;
}

// As locate_ids, where each lane has a table, null: none.
ES_DEVICE uint64_t locate_each(const TableNumbers* numbers, const uint8_t* storage, int64_t id, int lane) {
  TableView table{};
  table.storage = storage;
  uint64_t location = kEmpty;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (bool overlay = true;; overlay = false) {
    const bool wanted = numbers != nullptr && location == kEmpty && (!overlay || is_overlaid(*numbers));
    if (warp::ballot(wanted) != 0) {
      IndexView index{};
      if (wanted) index = index_at(table, *numbers, overlay ? overlay_of(*numbers) : numbers->values);
      const uint64_t found = probe_each(index, id, wanted, lane);
      if (location == kEmpty) location = found;
    }
    if (!overlay) return location;
  }
}

// One without an address where there is none of this number.
ES_DEVICE VersionView version_at(const VersionTables& tables, int64_t number) {
  return number >= 0 && number < tables.count ? tables.views[number] : VersionView{};
}

// The row of each lane's id in its table.
template <Dtype kDtype>
ES_DEVICE Row row_of_each(const VersionTables& tables, const VersionView& version, int64_t id, int lane) {
  const uint64_t location = locate_each(version.numbers, version.storage, id, lane);
  if (location == kEmpty) return {warp::zeros(lane), false, 0.0f, 0.0f};
  TableView table{};
  table.row_bytes = tables.row_bytes;
  return row_at<kDtype>(table, *version.numbers, location, version.storage, lane);
}

// kValues divides dim.
template <Dtype kDtype, OutDtype kOut, int kValues>
ES_DEVICE void versions_warp(const VersionsArguments& arguments, int64_t warp, int64_t warps, int lane) {
  const uint32_t chunks = static_cast<uint32_t>(arguments.dim) / kValues;
  const Cursor cursor(lane, chunks);
  const int64_t out_row_bytes = static_cast<int64_t>(arguments.dim) * kOutBytes<kOut>;
  for (int64_t first = warp * warp::kLanes; first < arguments.count; first += warps * warp::kLanes) {
    const int64_t left = arguments.count - first;
    const int count = left < warp::kLanes ? static_cast<int>(left) : warp::kLanes;
    const bool wanted = lane < count;
    const int64_t id = wanted ? warp::load_once(arguments.ids + first + lane) : 0;
    const int64_t choice = wanted ? warp::load_once(arguments.choice + first + lane) : -1;
    const Row row = row_of_each<kDtype>(arguments.tables, version_at(arguments.tables, choice), id, lane);
    if (wanted) warp::store_once(arguments.found + first + lane, row.found);
    copy_rows<kDtype, kOut, kValues>(row, count, chunks, cursor, arguments.vectors + first * out_row_bytes, lane);
  }
}

}  // namespace embedding_store::cuda
