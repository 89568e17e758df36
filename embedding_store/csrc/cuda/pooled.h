// The pooled lookup of one warp: 32 consecutive ids a step, of however many bags.
#pragma once

#include "pooled_sums.h"

namespace embedding_store::cuda {

// Where staging has found this lane's id.
ES_DEVICE uint64_t staged_location(const Staged& staged, int64_t location) {
  const auto here = static_cast<uint64_t>(location);
  return location_segment(here) == kRepeatSegment ? warp::load(staged.locations + location_row(here)) : here;
}

// The row at a location of any segment.
template <Dtype kDtype>
ES_DEVICE Row pooled_row(
    const PooledArguments& arguments, const TableNumbers& numbers, uint64_t location, uint32_t place) {
  const TableView& table = arguments.table;
  const Staged& staged = arguments.staged;
  if (staged.locations != nullptr && location_segment(location) == kStagedSegment) {
    constexpr int kBefore = kQuantised<kDtype> ? kScaleBytes : 0;
    const int64_t at = static_cast<int64_t>(location_row(location)) * staged.stride;
    Row row{staged.rows + at + kBefore, true, 0.0f, 0.0f};
    if constexpr (kQuantised<kDtype>) read_scale(&row);
    return row;
  }
  const uint8_t* base = location_segment(location) == 0 || arguments.hits == nullptr ? table.storage : table.cold;
  // Without cold rows none is read.
  return row_at<kDtype>(table, numbers, base == nullptr ? kEmpty : location, base, place);
}

// The rows of the first `count` lanes' ids, to the shared memory; `from` is where in a row the range of columns begins,
// in bytes. The result has a bit for each id that has a row.
template <Dtype kDtype, int kValues>
ES_DEVICE uint32_t find_rows(
    const PooledArguments& arguments, const TableNumbers& numbers, int64_t id, float weight, int count, int from,
    int lane, PooledShared<kValues>* shared) {
  uint64_t location = kEmpty;
  if (arguments.staged.locations == nullptr) {
    location = locate_ids<warp::kLanes>(arguments.table, numbers, id, lane < count, lane);
  } else if (lane < count) {
    location = staged_location(arguments.staged, id);
  }
  const Row row = pooled_row<kDtype>(arguments, numbers, location, static_cast<uint32_t>(id));
  const uint32_t all = warp::ballot(row.found);
  shared->address[lane] = reinterpret_cast<uint64_t>(row.values) + (row.found ? from : 0);
  shared->scale[lane].factor = !row.found ? 0 : kQuantised<kDtype> ? weight * row.scale : weight;
  if constexpr (kQuantised<kDtype>) shared->scale[lane].offset = row.found ? weight * row.offset : 0;
  if (arguments.hits != nullptr) {
    const uint64_t segment = location_segment(location);
    const int near = warp::count_bits(warp::ballot(row.found && segment == 0));
    const int staged = warp::count_bits(warp::ballot(row.found && segment == kStagedSegment));
    const int cold = warp::count_bits(all) - near;
    const int mine = count_of(lane, near, cold, count - near - cold, cold - staged);
    if (lane < kCounts) shared->result.counts[lane] += mine;
  }
  return all;
}

// The bags that end in a step: how many of their ids were found is written, and zeros if they have none; each id's bag
// goes to the shared memory. `found` is of the bag that the step begins with, then of that which it ends with. The
// result has a bit for each id that is the last one of its bag.
template <Dtype kDtype, int kValues>
ES_DEVICE uint32_t close_bags(
    const PooledArguments& arguments, const Pool<kDtype, kValues>& pool, const Step& step,
    uint32_t there,  // which ids have a row
    int first_bag, bool counts, int* found, PooledShared<kValues>* shared, int lane) {
  const int end_before = warp::shuffle(step.end, lane > 0 ? lane - 1 : 0);
  const int begin = lane > 0 ? end_before : 0;
  const bool closes = lane < step.closing;
  const uint32_t members = closes ? bits_below(step.end) & ~bits_below(begin) : 0;
  const int mine = warp::count_bits(there & members) + (lane == 0 ? *found : 0);
  if (closes && counts) warp::store_once(arguments.found + shared->unit.first_bag + first_bag + lane, mine);
  const float divisor = arguments.mean && mine > 1 ? 1.0f / static_cast<float>(mine) : 1.0f;
  for (uint32_t empty = warp::ballot(closes && step.end == begin); empty != 0; empty &= empty - 1) {
    pool.write_zeros(first_bag + warp::lowest_bit(empty));
  }
  // An id's bag is the first one that ends after it.
  int bag = 0;
  ES_UNROLL
  for (int half = warp::kLanes / 2; half > 0; half /= 2) {
    if (warp::shuffle(step.end, bag + half - 1) <= lane) bag += half;
  }
  shared->close[lane] = {bag, warp::shuffle(divisor, bag)};
  const int end = warp::shuffle(step.end, bag);
  const int closed = warp::shuffle(step.end, step.closing > 0 ? step.closing - 1 : 0);
  const int rest = warp::count_bits(there & ~bits_below(step.closing > 0 ? closed : 0));
  *found = step.closing > 0 ? rest : *found + rest;
  return warp::ballot(lane < step.count && end == lane + 1);
}

// This lane's id, or location, of those from place `at` on, and its weight.
ES_DEVICE int64_t id_at(const PooledArguments& arguments, const Unit& unit, int at, int lane) {
  return at + lane < unit.stop ? warp::load_once(arguments.ids + unit.first_id + at + lane) : 0;
}

ES_DEVICE float weight_at(const PooledArguments& arguments, const Unit& unit, int at, int lane) {
  const bool given = arguments.weights != nullptr && at + lane < unit.stop;
  return given ? warp::load(arguments.weights + unit.first_id + at + lane) : 1.0f;
}

// kValues divides dim, and a range of columns has 32 * kValues, the last one fewer.
template <Dtype kDtype, int kValues>
ES_DEVICE void pooled_warp(
    const PooledArguments& arguments, const TableNumbers& numbers, int64_t unit_number,
    int range,                      // of columns
    PooledShared<kValues>* shared,  // of this warp
    int lane) {
  const int first_chunk = range * warp::kLanes;
  const int chunks = arguments.dim / kValues - first_chunk;
  const Groups groups(chunks < warp::kLanes ? chunks : warp::kLanes, lane);
  const int column = (first_chunk + groups.chunk) * kValues;
  const auto from = static_cast<int>(row_bytes(kDtype, static_cast<int64_t>(first_chunk) * kValues));
  {
    const Unit found_out = unit_at(arguments, unit_number, lane);
    if (lane == 0) {
      shared->unit = found_out;
      shared->bad = found_out.bad;
      shared->start = warp::load(arguments.offsets + found_out.first_bag);
      shared->result = UnitResult{};
      shared->result.cut_bag = found_out.has_tail ? found_out.first_bag + found_out.bags : -1;
    }
  }
  shared->address[warp::kLanes + lane] = reinterpret_cast<uint64_t>(warp::zeros(lane));
  warp::sync();
  const Unit& unit = shared->unit;
  Pool<kDtype, kValues> pool(arguments, groups, column, shared, lane);
  enum { kHead, kBags, kTail };
  int run = unit.has_head ? kHead : kBags;
  int at = 0, found = 0;
  int64_t id = id_at(arguments, unit, at, lane);
  float weight = weight_at(arguments, unit, at, lane);
  Walk walk{0, ends_from(arguments, unit, 0, lane)};
  while (!unit.bad) {
    const int here = warp::opaque(lane);
    if (run == kBags && walk.bag >= unit.bags) run = kTail;
    Step step{};
    if (run == kBags) {
      step = step_at(arguments, unit, walk, &shared->start, at, here);
      if (step.bad) {
        if (here == 0) shared->bad = true;
        break;
      }
    } else {
      if (run == kTail && !unit.has_tail) break;
      const int left = (run == kHead ? unit.head_end : unit.tail_end) - at;
      step.count = left < warp::kLanes ? left : warp::kLanes;
    }
    const int first_bag = walk.bag;
    // The next step's offsets, ids and weights, and then its buckets, are on their way while this one is looked up.
    if (step.closing > 0) {
      const int64_t next_start = warp::shuffle(walk.ends, step.closing - 1);
      if (here == 0) shared->start = next_start;
      walk.bag += step.closing;
      walk.ends = ends_from(arguments, unit, walk.bag, here);
    }
    at += step.count;
    const int64_t next_id = id_at(arguments, unit, at, here);
    const float next_weight = weight_at(arguments, unit, at, here);
    run = warp::opaque(run);  // no predicate, of which the loads of buckets need many
    warp::sync();             // the shared memory is free
    const uint32_t there = find_rows<kDtype>(arguments, numbers, id, weight, step.count, from, here, shared);
    run = warp::opaque(run);
    if (at < unit.stop && arguments.staged.locations == nullptr) prefetch_bucket(arguments.table, numbers, next_id);
    id = next_id, weight = next_weight;
    uint32_t last = 0;
    if (run == kBags) {
      const bool counts = warp::opaque(range) == 0;
      last = close_bags(arguments, pool, step, there, first_bag, counts, &found, shared, here);
    } else {
      found += warp::count_bits(there);
    }
    warp::sync();
    pool.add(step.count, there, last, first_bag);
    if (run == kBags || at < (run == kHead ? unit.head_end : unit.tail_end)) continue;
    pool.write_part(arguments.parts + (2 * unit.number + (run == kHead ? 0 : 1)) * arguments.dim);
    if (here == 0) (run == kHead ? shared->result.head_found : shared->result.tail_found) = found;
    if (run == kTail) break;
    found = 0;
    run = kBags;
  }
  // Of the warps that have the unit, one says how many ids were found.
  if (range > 0 || lane > 0) return;
  arguments.results[unit.number] = shared->result;
  arguments.bad[unit.number] = shared->bad;
}

}  // namespace embedding_store::cuda
