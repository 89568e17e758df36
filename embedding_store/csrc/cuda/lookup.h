// The lookup of one warp: up to 32 ids a step, all probed before the first row is copied.
#pragma once

#include "rows.h"

namespace embedding_store::cuda {

// Where the ids of a tiered lookup were found.
struct Hits {
  int64_t hot = 0;
  int64_t cold = 0;
  int64_t missing = 0;
};

// This lane's id of the step from `first` on; 0 if the lane has none.
ES_DEVICE int64_t id_at(const LookupArguments& arguments, int64_t first, int lane) {
  const bool wanted = lane < arguments.ids_per_warp && first + lane < arguments.count;
  return wanted ? warp::load_once(arguments.ids + first + lane) : 0;
}

// kValues divides dim: 16 bytes of output where it can. The same numbers in every lane of the result.
template <Dtype kDtype, OutDtype kOut, int kValues>
ES_DEVICE Hits lookup_warp(const LookupArguments& arguments, int64_t warp, int64_t warps, int lane) {
  Hits hits;
  const int chunks = arguments.dim / kValues;
  const int64_t out_row_bytes = static_cast<int64_t>(arguments.dim) * kOutBytes<kOut>;
  const int64_t step = warps * arguments.ids_per_warp;
  int64_t first = warp * arguments.ids_per_warp;
  int64_t id = id_at(arguments, first, lane);
  for (; first < arguments.count; first += step) {
    const int64_t left = arguments.count - first;
    const int count = left < arguments.ids_per_warp ? static_cast<int>(left) : arguments.ids_per_warp;
    const bool wanted = lane < count;
    const int64_t next_id = id_at(arguments, first + step, lane);
    const Row row = row_at<kDtype>(arguments.table, locate_ids(arguments.table, id, wanted, lane));
    const bool found = row.values != nullptr;
    if (wanted) warp::store_once(arguments.found + first + lane, found);
    if (arguments.count_hits) {
      const int all = warp::count_bits(warp::ballot(found));
      const int hot = warp::count_bits(warp::ballot(row.hot));
      hits.hot += hot;
      hits.cold += all - hot;
      hits.missing += count - all;
    }
    const IndexView index = index_view(arguments.table);
    // While this step's rows travel, the next step's buckets come closer.
    if (first + step < arguments.count) warp::prefetch(bucket_address(index, home_of(index, next_id)));
    uint8_t* out = arguments.vectors + first * out_row_bytes;
    copy_rows<kDtype, kOut, kValues>(row, index.buckets, count, chunks, out, lane);
    id = next_id;
  }
  return hits;
}

}  // namespace embedding_store::cuda
