// The lookup of one warp in a tiered table: as lookup.h, rows of the second segment from the host's memory, and counts.
// Then the repeats of cold rows, which crossed the bus once for all ids of the batch: copies within the device.
#pragma once

#include "claims.h"
#include "lookup.h"

namespace embedding_store::cuda {

// As lookup_warp, of up to kMostPositions ids; the rows of repeats are left zeros.
template <Dtype kDtype, OutDtype kOut, int kValues>
ES_DEVICE void lookup_tiered_warp(
    const LookupArguments& arguments, const TableNumbers& numbers, const Claims& claims,
    int* counts,  // [kCounts], which the block's warps add to
    int64_t id,   // first_id
    int64_t warp, int64_t warps, int lane) {
  const TableView& table = arguments.table;
  const uint32_t chunks = arguments.dim / kValues;
  const Cursor cursor(lane, chunks);
  const int64_t out_row_bytes = static_cast<int64_t>(arguments.dim) * kOutBytes<kOut>;
  const int64_t step = warps * arguments.ids_per_warp;
  for (int64_t first = warp * arguments.ids_per_warp; first < arguments.count; first += step) {
    const int here = warp::opaque(lane);
    const int64_t left = arguments.count - first;
    const int count = left < arguments.ids_per_warp ? static_cast<int>(left) : arguments.ids_per_warp;
    const bool wanted = here < count;
    const int64_t next_id = id_at(arguments, first + step, here);
    const uint64_t location = locate_ids(table, numbers, id, wanted, arguments.ids_per_warp, here);
    const bool hot = location_segment(location) == 0;
    const bool found = is_row(numbers, location) && (hot || table.cold != nullptr);
    const auto position = static_cast<uint32_t>(first + here);
    uint32_t reader = position;
    if (found && !hot && claims.slots != nullptr) reader = claim(claims, location, position);
    const bool repeats = reader != position;
    const Row row = row_at<kDtype>(
        table, numbers, found && !repeats ? location : kEmpty, hot ? table.storage : table.cold, position);
    if (wanted) warp::store_once(arguments.found + first + here, found);
    const int all = warp::count_bits(warp::ballot(found));
    const int cold = warp::count_bits(warp::ballot(found && !hot));
    const int repeated = note_repeats(claims, repeats, position, reader, here);
    if (here < kCounts) warp::add(counts + here, count_of(here, all - cold, cold, count - all, cold - repeated));
    if (first + step < arguments.count) prefetch_bucket(table, numbers, next_id);
    copy_rows<kDtype, kOut, kValues>(row, count, chunks, cursor, arguments.vectors + first * out_row_bytes, here);
    id = next_id;
  }
}

// Copy to every repeat the row of the id that read it. kBytes, of an access, divides a row's bytes.
template <int kBytes>
ES_DEVICE void copy_repeats_warp(
    const Claims& claims, int64_t row_bytes, uint8_t* vectors, int64_t warp, int64_t warps, int lane) {
  constexpr int kInFlight = 4;  // within the device that is enough
  const auto total = static_cast<int64_t>(warp::load(claims.repeat_count) + 1);
  const auto chunks = static_cast<uint32_t>(row_bytes / kBytes);
  for (int64_t first = warp * warp::kLanes; first < total; first += warps * warp::kLanes) {
    const int count = total - first < warp::kLanes ? static_cast<int>(total - first) : warp::kLanes;
    const uint64_t repeat = lane < count ? warp::load(claims.repeats + first + lane) : 0;
    const int items = count * static_cast<int>(chunks);
    Cursor cursor(lane, chunks);
    for (int item = lane; item - lane < items; item += kInFlight * warp::kLanes) {
      warp::Words<kBytes> values[kInFlight];
      int64_t targets[kInFlight];
      ES_UNROLL
      for (int i = 0; i < kInFlight; ++i) {
        const uint64_t from_to = warp::shuffle(repeat, cursor.row % warp::kLanes);
        const auto column = static_cast<int64_t>(cursor.chunk) * kBytes;
        targets[i] = static_cast<int64_t>(from_to >> 32) * row_bytes + column;
        const uint8_t* source = vectors + static_cast<int64_t>(from_to & 0xffffffffu) * row_bytes + column;
        // Beyond the end none of the vectors: another warp may be writing it, and of what is written nothing may be read.
        values[i] = warp::load_past<kBytes>(item + i * warp::kLanes < items ? source : warp::zeros(lane));
        cursor.advance(chunks);
      }
      ES_UNROLL
      for (int i = 0; i < kInFlight; ++i) {
        if (item + i * warp::kLanes < items) warp::store_once<kBytes>(vectors + targets[i], values[i]);
      }
    }
  }
}

}  // namespace embedding_store::cuda
