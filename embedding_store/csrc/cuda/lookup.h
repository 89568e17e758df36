// The lookup of one warp: up to 32 ids a step, all probed before the first row is copied.
#pragma once

#include "rows.h"

namespace embedding_store::cuda {

// This lane's id of the step from `first` on; 0 if the lane has none.
template <class Arguments>
ES_DEVICE int64_t id_at(const Arguments& arguments, int64_t first, int lane) {
  const bool wanted = lane < arguments.ids_per_warp && first + lane < arguments.count;
  return wanted ? warp::load_once(arguments.ids + first + lane) : 0;
}

// This lane's id of a warp's first step.
template <class Arguments>
ES_DEVICE int64_t first_id(const Arguments& arguments, int64_t warp, int lane) {
  return id_at(arguments, warp * arguments.ids_per_warp, lane);
}

// kValues divides dim: 16 bytes of output where it can.
template <Dtype kDtype, OutDtype kOut, int kValues>
ES_DEVICE void lookup_warp(
    const LookupArguments& arguments, const TableNumbers& numbers,
    int64_t id,  // first_id
    int64_t warp, int64_t warps, int lane) {
  const uint32_t chunks = static_cast<uint32_t>(arguments.dim) / kValues;
  const Cursor cursor(lane, chunks);
  const int64_t out_row_bytes = static_cast<int64_t>(arguments.dim) * kOutBytes<kOut>;
  const int64_t step = warps * arguments.ids_per_warp;
  for (int64_t first = warp * arguments.ids_per_warp; first < arguments.count; first += step) {
    const int here = warp::opaque(lane);
    const int64_t left = arguments.count - first;
    const int count = left < arguments.ids_per_warp ? static_cast<int>(left) : arguments.ids_per_warp;
    const bool wanted = here < count;
    const int64_t next_id = id_at(arguments, first + step, here);
    const uint64_t location = locate_ids(arguments.table, numbers, id, wanted, arguments.ids_per_warp, here);
    const Row row = row_at<kDtype>(
        arguments.table, numbers, location, arguments.table.storage, static_cast<uint32_t>(first) + here);
    if (wanted) warp::store_once(arguments.found + first + here, row.found);
    // While this step's rows travel, the next step's buckets come closer.
    if (first + step < arguments.count) prefetch_bucket(arguments.table, numbers, next_id);
    copy_rows<kDtype, kOut, kValues>(row, count, chunks, cursor, arguments.vectors + first * out_row_bytes, here);
    id = next_id;
  }
}

}  // namespace embedding_store::cuda
