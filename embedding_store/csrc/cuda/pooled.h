// The pooled lookup of one warp: a bag a step, its rows summed in float32 as they arrive.
#pragma once

#include "rows.h"

namespace embedding_store::cuda {

// How the lanes share a row: `width` lanes take a chunk each, so that 32 / width rows are read at once.
struct Share {
  int width;   // a power of 2
  int groups;  // rows at once
  int group;   // this lane's
  int chunk;   // this lane's within its group

  ES_DEVICE Share(int chunks, int lane) : width(1) {
    while (width < warp::kLanes && width < chunks) width *= 2;
    groups = warp::kLanes / width;
    group = lane / width;
    chunk = lane % width;
  }
};

// Add the weighted rows of up to 32 lanes to `sums`, this lane's chunk of the columns.
template <Dtype kDtype, int kValues>
ES_DEVICE void add_rows(
    const Row& row,  // lane i's is row i
    float weight,    // lane i's
    int count,       // 1 .. 32
    const Share& share,
    int chunk,      // this lane's; beyond `chunks`: none
    int chunks,     // of kValues values, in a row
    float* sums) {  // [kValues]
  constexpr int kInFlight = 8;
  const uint64_t address = reinterpret_cast<uint64_t>(row.values);
  const uint32_t found = warp::ballot(row.found);
  for (int first = 0; first < count; first += kInFlight * share.groups) {
    Stored<kDtype, kValues> stored[kInFlight];
    uint32_t present = 0;
    ES_UNROLL
    for (int i = 0; i < kInFlight; ++i) {
      const int owner = first + i * share.groups + share.group;
      const uint8_t* values = reinterpret_cast<const uint8_t*>(warp::shuffle(address, owner % warp::kLanes));
      const bool there = owner < count && (found >> owner & 1u) != 0 && chunk < chunks;
      present |= static_cast<uint32_t>(there) << i;
      stored[i] = load_chunk<kDtype, kValues>(values, there ? chunk : 0);
    }
    ES_UNROLL
    for (int i = 0; i < kInFlight; ++i) {
      const int owner = first + i * share.groups + share.group;
      const float scale = kQuantised<kDtype> ? warp::shuffle(row.scale, owner % warp::kLanes) : 0.0f;
      const float offset = kQuantised<kDtype> ? warp::shuffle(row.offset, owner % warp::kLanes) : 0.0f;
      const float factor = warp::shuffle(weight, owner % warp::kLanes);
      if ((present >> i & 1u) != 0) {
        float values[kValues];
        decode_chunk<kDtype, kValues>(stored[i], scale, offset, (chunk & 1) != 0, values);
        ES_UNROLL
        for (int v = 0; v < kValues; ++v) sums[v] += factor * values[v];
      }
    }
  }
}

// The bag's ids from `begin` to `end`; no more than there are, whatever the offsets say.
ES_DEVICE void bag_bounds(const PooledArguments& arguments, int64_t bag, int64_t* begin, int64_t* end) {
  const int64_t first = warp::load(arguments.offsets + bag);
  const int64_t last = warp::load(arguments.offsets + bag + 1);
  *begin = first < 0 ? 0 : first > arguments.count ? arguments.count : first;
  *end = last < *begin ? *begin : last > arguments.count ? arguments.count : last;
}

template <int kValues>
ES_DEVICE void store_pooled(const PooledArguments& arguments, int64_t bag, int chunk, const float* values) {
  const int64_t first = bag * arguments.dim + static_cast<int64_t>(chunk) * kValues;
  if (arguments.out == OutDtype::kFloat32) {
    warp::store_once<kValues * 4>(arguments.pooled + first * 4, encode_chunk<OutDtype::kFloat32, kValues>(values));
  } else if (arguments.out == OutDtype::kFloat16) {
    warp::store_once<kValues * 2>(arguments.pooled + first * 2, encode_chunk<OutDtype::kFloat16, kValues>(values));
  } else {
    warp::store_once<kValues * 2>(arguments.pooled + first * 2, encode_chunk<OutDtype::kBfloat16, kValues>(values));
  }
}

// A bag's columns, 32 chunks of them: the sum over its rows. Returns how many ids were found.
template <Dtype kDtype, int kValues>
ES_DEVICE int64_t pool_columns(
    const PooledArguments& arguments, const TableNumbers& numbers, int64_t bag, const Share& share, int first_chunk,
    int lane) {
  const int chunks = arguments.dim / kValues;
  const int chunk = first_chunk + share.chunk;
  int64_t begin, end;
  bag_bounds(arguments, bag, &begin, &end);
  int64_t found = 0;
  float sums[kValues] = {};
  for (int64_t first = begin; first < end; first += warp::kLanes) {
    const int count = end - first < warp::kLanes ? static_cast<int>(end - first) : warp::kLanes;
    const bool wanted = lane < count;
    const int64_t id = wanted ? warp::load(arguments.ids + first + lane) : 0;
    const uint64_t location = locate_ids(arguments.table, numbers, id, wanted, warp::kLanes, lane);
    const Row row = row_at<kDtype>(arguments.table, numbers, location, arguments.table.storage,
                                    static_cast<uint32_t>(first) + lane);
    const bool weighted = row.found && arguments.weights != nullptr;
    const float weight = weighted ? warp::load(arguments.weights + first + lane) : 1.0f;
    found += warp::count_bits(warp::ballot(row.found));
    add_rows<kDtype, kValues>(row, weight, count, share, chunk, chunks, sums);
  }
  const float divisor = arguments.mean && found > 0 ? static_cast<float>(found) : 1.0f;
  ES_UNROLL
  for (int v = 0; v < kValues; ++v) {
    for (int distance = share.width; distance < warp::kLanes; distance *= 2) {
      sums[v] += warp::shuffle_xor(sums[v], distance);
    }
    sums[v] /= divisor;
  }
  if (share.group == 0 && chunk < chunks) store_pooled<kValues>(arguments, bag, chunk, sums);
  return found;
}

// kValues divides dim: 4 where it can.
template <Dtype kDtype, int kValues>
ES_DEVICE void pooled_warp(
    const PooledArguments& arguments, const TableNumbers& numbers, int64_t warp, int64_t warps, int lane) {
  const int chunks = arguments.dim / kValues;
  const Share share(chunks, lane);
  for (int64_t bag = warp; bag < arguments.bags; bag += warps) {
    int64_t found = 0;
    // Columns beyond the first 32 chunks find the bag's buckets in the cache: probing again costs little.
    for (int chunk = 0; chunk < chunks; chunk += warp::kLanes) {
      found = pool_columns<kDtype, kValues>(arguments, numbers, bag, share, chunk, lane);
    }
    if (lane == 0) arguments.found[bag] = found;
  }
}

}  // namespace embedding_store::cuda
