// After all units: the parts of cut bags added up, in their order; or, if offsets were bad, an answer that says so.
#pragma once

#include "pooled_sums.h"
#include "pooled_walk.h"

namespace embedding_store::cuda {

constexpr int kFinishWarps = 16;  // of a block, which looks after as many units
constexpr int64_t kFewParts = 32;  // of a bag that one warp adds up; a block adds up one of more, for it begins no two

// Of a cut bag of many parts, 32 * kValues columns: what each warp of a block has summed, in memory that they share.
template <int kValues>
struct FinishShared {
  float sums[kFinishWarps][warp::kLanes * kValues];
  int64_t found[kFinishWarps];
};

// The cut bag that begins in a unit: parts 0 .. `parts` - 1, one a unit, from this one on.
struct CutBag {
  int64_t bag;
  int64_t unit;
  int64_t parts;

  ES_DEVICE CutBag(const PooledArguments& arguments, int64_t unit_)
      : bag(arguments.results[unit_].cut_bag), unit(unit_) {
    const int64_t last_item = offset_at(arguments, bag + 1) + bag;
    parts = last_item / arguments.plan.items - unit + 1;
  }

  // The first unit begins with other bags and ends with this one, the others begin with it.
  ES_DEVICE int64_t row(int64_t part) const { return 2 * (unit + part) + (part == 0 ? 1 : 0); }

  ES_DEVICE int64_t found(const PooledArguments& arguments, int64_t part) const {
    const UnitResult& result = arguments.results[unit + part];
    return part == 0 ? result.tail_found : result.head_found;
  }
};

// Parts begin .. end - 1 of this lane's columns, in their order.
template <int kValues>
ES_DEVICE void sum_parts(
    const PooledArguments& arguments, const CutBag& cut, int64_t begin, int64_t end, int64_t column, int lane,
    float* sums) {
  constexpr int kInFlight = 8;
  // What a lane without columns reads is not used.
  const float* rows = arguments.parts + (column < arguments.dim ? column : 0);
  ES_UNROLL
  for (int v = 0; v < kValues; ++v) sums[v] = 0;
  for (int64_t first = begin; first < end; first += kInFlight) {
    const int left = end - first < kInFlight ? static_cast<int>(end - first) : kInFlight;
    warp::Words<kValues * 4> parts[kInFlight];
    ES_UNROLL
    for (int i = 0; i < kInFlight; ++i) {
      // Beyond the end, zeros: no condition on what is added.
      const float* row = rows + cut.row(first + i) * arguments.dim;
      parts[i] = warp::load_past<kValues * 4>(i < left ? reinterpret_cast<const uint8_t*>(row) : warp::zeros(lane));
    }
    ES_UNROLL
    for (int i = 0; i < kInFlight; ++i) {
      ES_UNROLL
      for (int v = 0; v < kValues; ++v) sums[v] += from_bits(parts[i].words[v]);
    }
  }
}

// How many ids were found in parts begin .. end - 1; the same in all lanes.
ES_DEVICE int64_t sum_found(
    const PooledArguments& arguments, const CutBag& cut, int64_t begin, int64_t end, int lane) {
  int64_t found = 0;
  for (int64_t part = begin + lane; part < end; part += warp::kLanes) found += cut.found(arguments, part);
  for (int distance = 1; distance < warp::kLanes; distance *= 2) found += warp::shuffle(found, lane ^ distance);
  return found;
}

template <int kValues>
ES_DEVICE void store_bag(
    const PooledArguments& arguments, const CutBag& cut, int64_t column, float* sums, int64_t found) {
  const float divisor = arguments.mean && found > 1 ? 1.0f / static_cast<float>(found) : 1.0f;
  ES_UNROLL
  for (int v = 0; v < kValues; ++v) sums[v] *= divisor;
  if (column < arguments.dim) store_pooled<kValues>(arguments, cut.bag * arguments.dim + column, sums);
  if (column == 0) warp::store_once(arguments.found + cut.bag, found);
}

// A bag of few parts, by one warp.
template <int kValues>
ES_DEVICE void finish_alone(const PooledArguments& arguments, const CutBag& cut, int64_t column, int lane) {
  float sums[kValues];
  sum_parts<kValues>(arguments, cut, 0, cut.parts, column, lane, sums);
  store_bag<kValues>(arguments, cut, column, sums, sum_found(arguments, cut, 0, cut.parts, lane));
}

// A bag of many parts: a warp's share.
template <int kValues>
ES_DEVICE void finish_share(
    const PooledArguments& arguments, const CutBag& cut, int64_t column, int warp, int lane,
    FinishShared<kValues>* shared) {
  const int64_t begin = cut.parts * warp / kFinishWarps, end = cut.parts * (warp + 1) / kFinishWarps;
  float sums[kValues];
  sum_parts<kValues>(arguments, cut, begin, end, column, lane, sums);
  const int64_t found = sum_found(arguments, cut, begin, end, lane);
  ES_UNROLL
  for (int v = 0; v < kValues; ++v) shared->sums[warp][lane * kValues + v] = sums[v];
  if (lane == 0) shared->found[warp] = found;
}

// And all shares, by one warp.
template <int kValues>
ES_DEVICE void finish_shared(
    const PooledArguments& arguments, const CutBag& cut, int64_t column, int lane,
    const FinishShared<kValues>& shared) {
  float sums[kValues] = {};
  int64_t found = 0;
  for (int warp = 0; warp < kFinishWarps; ++warp) {
    found += shared.found[warp];
    ES_UNROLL
    for (int v = 0; v < kValues; ++v) sums[v] += shared.sums[warp][lane * kValues + v];
  }
  store_bag<kValues>(arguments, cut, column, sums, found);
}

// How many rows staging has brought to the device.
ES_DEVICE int64_t staged_rows(const Staged& staged) {
  if (staged.locations == nullptr) return 0;
  const auto taken = static_cast<int64_t>(warp::load(staged.taken) + 1);
  return taken < staged.places ? taken : staged.places;
}

// What is counted of the units, lane i's being number i of kCounts.
ES_DEVICE int64_t total_hits(const PooledArguments& arguments, int lane) {
  int64_t count = 0;
  for (int64_t unit = lane / kCounts; unit < arguments.plan.units; unit += warp::kLanes / kCounts) {
    count += arguments.results[unit].counts[lane % kCounts];
  }
  for (int distance = kCounts; distance < warp::kLanes; distance *= 2) count += warp::shuffle(count, lane ^ distance);
  return lane == kCounts - 1 ? count + staged_rows(arguments.staged) : count;
}

// Every value NaN, every number of found ids -1: by `threads` threads together.
ES_DEVICE void refuse_all(const PooledArguments& arguments, int64_t thread, int64_t threads) {
  const float nan[1] = {from_bits(0x7fc00000u)};
  for (int64_t i = thread; i < arguments.bags * arguments.dim; i += threads) store_pooled<1>(arguments, i, nan);
  for (int64_t bag = thread; bag < arguments.bags; bag += threads) warp::store_once(arguments.found + bag, -1);
  if (arguments.hits != nullptr && thread < kCounts) arguments.hits[thread] = 0;
}

}  // namespace embedding_store::cuda
