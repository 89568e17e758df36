// The lookup of one warp in many tables, each id in several versions of its own.
#pragma once

#include <cstdint>

#include "versions.h"

namespace embedding_store::cuda {

// timestamp - as_of; int64's largest where it is more: a timestamp may ask for the newest.
ES_DEVICE int64_t age_of(int64_t timestamp, int64_t as_of) {
  const auto age = static_cast<int64_t>(static_cast<uint64_t>(timestamp) - static_cast<uint64_t>(as_of));
  return ((timestamp ^ as_of) & (timestamp ^ age)) < 0 ? INT64_MAX : age;
}

// kValues divides dim. A lane has a place of an id: lanes of one id that are neighbours read it with one access.
template <Dtype kDtype, OutDtype kOut, int kValues>
ES_DEVICE void history_warp(const HistoryArguments& arguments, int64_t warp, int64_t warps, int lane) {
  const uint32_t chunks = static_cast<uint32_t>(arguments.dim) / kValues;
  const Cursor cursor(lane, chunks);
  const int64_t out_row_bytes = static_cast<int64_t>(arguments.dim) * kOutBytes<kOut>;
  const int64_t places = arguments.count * arguments.k;
  for (int64_t first = warp * warp::kLanes; first < places; first += warps * warp::kLanes) {
    const int64_t left = places - first;
    const int count = left < warp::kLanes ? static_cast<int>(left) : warp::kLanes;
    const bool wanted = lane < count;
    int64_t id = 0, version = -1, timestamp = 0;
    if (wanted) {
      const auto place = static_cast<uint64_t>(first + lane);
      const auto owner = static_cast<int64_t>(place / static_cast<uint32_t>(arguments.k));
      id = warp::load_once(arguments.ids + owner);
      const int64_t newest = warp::load_once(arguments.newest + owner);
      timestamp = warp::load_once(arguments.timestamps + owner);
      if (newest >= 0 && newest < arguments.versions) version = newest - (first + lane - owner * arguments.k);
    }
    VersionView table{};
    int64_t age = 0;
    if (version >= 0) {
      table = version_at(arguments.tables, warp::load(arguments.numbers + version));
      age = age_of(timestamp, warp::load(arguments.as_of + version));
    }
    const Row row = row_of_each<kDtype>(arguments.tables, table, id, lane);
    if (wanted) {
      warp::store_once(arguments.mask + first + lane, row.found);
      warp::store_once(arguments.ages + first + lane, row.found ? age : 0);
    }
    copy_rows<kDtype, kOut, kValues>(row, count, chunks, cursor, arguments.vectors + first * out_row_bytes, lane);
  }
}

}  // namespace embedding_store::cuda
