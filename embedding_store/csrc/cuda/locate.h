// Where the ids of one warp are, without their rows.
#pragma once

#include "probe.h"

namespace embedding_store::cuda {

ES_DEVICE void locate_warp(
    const LocateArguments& arguments, const TableNumbers& numbers, int64_t warp, int64_t warps, int lane) {
  const int64_t step = warps * arguments.ids_per_warp;
  for (int64_t first = warp * arguments.ids_per_warp; first < arguments.count; first += step) {
    const bool wanted = lane < arguments.ids_per_warp && first + lane < arguments.count;
    const int64_t id = wanted ? warp::load_once(arguments.ids + first + lane) : 0;
    const uint64_t location = locate_ids(arguments.table, numbers, id, wanted, arguments.ids_per_warp, lane);
    const uint64_t answer = location == kAbsent ? kEmpty : location;
    if (wanted) warp::store_once(arguments.locations + first + lane, static_cast<int64_t>(answer));
  }
}

}  // namespace embedding_store::cuda
