// Which bags and ids a unit has, and a warp's way through them.
#pragma once

#include <cstdint>

#include "pooled_plan.h"
#include "warp.h"

namespace embedding_store::cuda {

constexpr int64_t kNever = INT64_MAX;

ES_DEVICE int64_t within(int64_t offset, int64_t count) { return offset < 0 ? 0 : offset > count ? count : offset; }

// No bag may lead out of the ids, whatever the offsets say.
ES_DEVICE int64_t offset_at(const PooledArguments& arguments, int64_t bag) {
  return within(warp::load(arguments.offsets + bag), arguments.count);
}

// The search for the first bag whose marker is not before an item: it is one of low .. high.
struct BagSearch {
  int64_t item;
  int64_t low;
  int64_t high;

  // Whether the marker of the lane's bag is before the item.
  ES_DEVICE bool is_before(const PooledArguments& arguments, int64_t bag) const {
    return bag < high && offset_at(arguments, bag) + bag < item;
  }

  // From what the lanes know of the bags first, first + step, ...; true of the bag before `low` and false of `high` in
  // the end, in whatever order the offsets are.
  ES_DEVICE void narrow(int64_t first, int64_t step, uint32_t before) {
    const int lanes = before == ~0u ? warp::kLanes : warp::lowest_bit(~before);
    if (lanes < warp::kLanes && first + lanes * step < high) high = first + lanes * step;
    if (lanes > 0) low = first + (lanes - 1) * step + 1;
  }

  // Where the bag would be if all were equally long: a search in one step if they are.
  ES_DEVICE int64_t guess(const PooledArguments& arguments) const {
    const double share = static_cast<double>(item) / static_cast<double>(arguments.count + arguments.bags);
    const int64_t bag = static_cast<int64_t>(share * static_cast<double>(arguments.bags)) - warp::kLanes / 2;
    return bag < 0 ? 0 : bag > high ? high : bag;
  }
};

// Both at once, since each step waits for memory. A search that is over asks for nothing.
ES_DEVICE void search_bags(const PooledArguments& arguments, BagSearch* one, BagSearch* other, int lane) {
  int64_t firsts[2] = {one->guess(arguments), other->guess(arguments)};
  int64_t steps[2] = {1, 1};
  do {
    const bool before = one->is_before(arguments, firsts[0] + lane * steps[0]);
    const bool before_other = other->is_before(arguments, firsts[1] + lane * steps[1]);
    one->narrow(firsts[0], steps[0], warp::ballot(before));
    other->narrow(firsts[1], steps[1], warp::ballot(before_other));
    firsts[0] = one->low, firsts[1] = other->low;
    steps[0] = (one->high - one->low) / warp::kLanes + 1;
    steps[1] = (other->high - other->low) / warp::kLanes + 1;
  } while (one->low < one->high || other->low < other->high);
}

// A unit is three runs of ids, each of which may be none: of a cut bag that began in an earlier unit, of whole bags,
// and of a cut bag that begins here. Places are numbers of ids after first_id, 32 bits each.
struct Unit {
  int64_t number;
  int64_t first_id;
  int64_t first_bag;  // of the whole bags
  int bags;           // whole ones
  int head_end;
  int begin;  // of the ids of whole bags
  int tail_end;
  int stop;  // of all ids
  bool has_head, has_tail;
  bool bad;  // the first or the last offset is wrong, as far as the unit has to do with them
};

ES_DEVICE Unit unit_at(const PooledArguments& arguments, int64_t number, int lane) {
  const int64_t all = arguments.count + arguments.bags;
  const int64_t first = number * arguments.plan.items;
  const int64_t last = all - first < arguments.plan.items ? all : first + arguments.plan.items;
  BagSearch here{first, 0, arguments.bags}, there{last, 0, arguments.bags};
  search_bags(arguments, &here, &there, lane);
  const int64_t bag = here.low, end_bag = there.low;
  const int64_t before = offset_at(arguments, bag > 0 ? bag - 1 : 0);
  const int64_t start = warp::load(arguments.offsets + bag);
  const int64_t last_start = offset_at(arguments, end_bag > 0 ? end_bag - 1 : 0);
  const int64_t end = warp::load(arguments.offsets + end_bag);
  const int64_t begin = within(start, arguments.count), whole_end = within(end, arguments.count);
  // Of the ids before an item, there are as many as items less those that are markers.
  const int64_t head_begin = first - bag, cut_end = last - end_bag;
  Unit unit{};
  unit.number = number;
  unit.bad = (bag == 0 && start != 0) || (end_bag == arguments.bags && end != arguments.count);
  unit.has_head = bag > 0 && begin > head_begin && begin - before > arguments.plan.longest;
  unit.has_tail = end_bag > bag && whole_end - last_start > arguments.plan.longest;
  unit.first_id = unit.has_head ? head_begin : begin;
  unit.first_bag = bag;
  const auto place = [&](int64_t id) {  // whatever the offsets say, no id beyond `count`
    constexpr int64_t kMost = 2 * kMostItems;
    const int64_t after = id - unit.first_id;
    return static_cast<int>(after < 0 ? 0 : after > kMost ? kMost : after);
  };
  unit.bags = end_bag > bag ? static_cast<int>(end_bag - bag) - unit.has_tail : 0;
  unit.head_end = place(last - bag < begin ? last - bag : begin);
  unit.begin = place(begin);
  unit.tail_end = place(unit.has_tail ? cut_end : whole_end);
  unit.stop = end_bag > bag ? unit.tail_end : unit.has_head ? unit.head_end : 0;
  return unit;
}

// What is looked up at once: up to 32 ids, and up to 32 bags that end with them.
struct Step {
  int count;    // ids
  int closing;  // bags that end
  int end;      // lane b's: how many of the ids are in the first b + 1 bags that have not ended before; kOpen: all, and
                // those of a later step
  bool bad;     // offsets fall
};

constexpr int kOpen = warp::kLanes + 1;

// Through a unit's whole bags.
struct Walk {
  int bag;       // the first that has not ended, counted from the unit's first
  int64_t ends;  // lane b's: the offset of the end of bag + b; kNever: not one of the unit's whole bags
};

ES_DEVICE int64_t ends_from(const PooledArguments& arguments, const Unit& unit, int bag, int lane) {
  return bag + lane < unit.bags ? warp::load(arguments.offsets + unit.first_bag + bag + lane + 1) : kNever;
}

// The step from place `at` on; there is a bag left, which begins at the offset `start`, for lane 0 to read.
ES_DEVICE Step step_at(
    const PooledArguments& arguments, const Unit& unit, const Walk& walk, const int64_t* start, int at, int lane) {
  const bool there = walk.ends != kNever;
  const int64_t before = warp::shuffle(walk.ends, lane > 0 ? lane - 1 : 0);
  Step step{};
  step.bad = warp::ballot(there && walk.ends < (lane > 0 ? before : *start)) != 0;
  const int64_t left = within(walk.ends, arguments.count) - unit.first_id - at;
  step.end = there && left <= warp::kLanes ? static_cast<int>(left) : kOpen;
  step.closing = warp::count_bits(warp::ballot(step.end != kOpen));
  const int known = warp::count_bits(warp::ballot(there));
  const int all = warp::shuffle(step.end, step.closing > 0 ? step.closing - 1 : 0);
  step.count = step.closing < known ? warp::kLanes : all;
  return step;
}

}  // namespace embedding_store::cuda
