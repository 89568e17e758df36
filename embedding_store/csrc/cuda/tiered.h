// The lookup of one warp in a tiered table: as lookup.h, rows of the second segment from the host's memory, and counts.
#pragma once

#include "lookup.h"

namespace embedding_store::cuda {

// Where the ids of a tiered lookup were found.
struct Hits {
  int64_t hot = 0;
  int64_t cold = 0;
  int64_t missing = 0;
};

// As lookup_warp. The same numbers in every lane of the result.
template <Dtype kDtype, OutDtype kOut, int kValues>
ES_DEVICE Hits lookup_tiered_warp(
    const LookupArguments& arguments, const TableNumbers& numbers, int64_t id, int64_t warp, int64_t warps, int lane) {
  Hits hits;
  const TableView& table = arguments.table;
  const int chunks = arguments.dim / kValues;
  const Cursor cursor(lane, chunks);
  const int64_t out_row_bytes = static_cast<int64_t>(arguments.dim) * kOutBytes<kOut>;
  const int64_t step = warps * arguments.ids_per_warp;
  for (int64_t first = warp * arguments.ids_per_warp; first < arguments.count; first += step) {
    const int64_t left = arguments.count - first;
    const int count = left < arguments.ids_per_warp ? static_cast<int>(left) : arguments.ids_per_warp;
    const bool wanted = lane < count;
    const int64_t next_id = id_at(arguments, first + step, lane);
    uint64_t location = locate_ids(table, numbers, id, wanted, arguments.ids_per_warp, lane);
    const bool in_storage = location_segment(location) == 0;
    if (!in_storage && table.cold == nullptr) location = kEmpty;  // without cold rows none is read
    const Row row = row_at<kDtype>(table, numbers, location, in_storage ? table.storage : table.cold,
                                  static_cast<uint32_t>(first) + lane);
    const bool found = row.found;
    if (wanted) warp::store_once(arguments.found + first + lane, found);
    const int all = warp::count_bits(warp::ballot(found));
    const int hot = warp::count_bits(warp::ballot(found && in_storage));
    hits.hot += hot;
    hits.cold += all - hot;
    hits.missing += count - all;
    if (first + step < arguments.count) {
      const IndexView index = index_view(table, numbers);
      warp::prefetch(bucket_address(index, home_of(index, next_id)));
    }
    copy_rows<kDtype, kOut, kValues>(row, count, chunks, cursor, arguments.vectors + first * out_row_bytes, lane);
    id = next_id;
  }
  return hits;
}

}  // namespace embedding_store::cuda
