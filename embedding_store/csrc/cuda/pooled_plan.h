// How a pooled lookup is divided among warps, whatever the lengths of its bags.
//
// Bags and ids are written in one row: for each bag a marker, then its ids. The marker of bag b is item offsets[b] + b
// of that row. A unit is a run of items, all units are equally long, and a warp has one: a bag of a million ids is work
// for many warps, a warp has many bags of one id, and empty bags, which have to be answered too, count. (D. Merrill,
// M. Garland, "Merge-based parallel sparse matrix-vector multiplication", SC 2016.) A bag belongs to the unit where its
// marker is, and is pooled there to its end, unless it is longer than `longest`: then each unit pools those of its ids
// that are in it, and a second kernel adds up these parts. How many there are depends on sizes alone, never on which
// warp is first: the same bits each time.
#pragma once

#include <cstdint>

#include "arguments.h"
#include "plan.h"

namespace embedding_store::cuda {

// Blocks of kThreads a processor: 96 registers a thread, and 128 for the widest chunks.
constexpr int pooled_blocks(int values) { return values > 8 ? 4 : 5; }

constexpr int64_t kFewestItems = 32;
constexpr int64_t kMostItems = (1 << 30) - 32;  // a unit's ids, twice as many at most, and a step more have 32 bits
constexpr int kRangeChunks = 32;  // a lane has one
constexpr int kFewestChunks = 5;  // of a row, so that 8 lanes or more read it: a step's rows are 8 accesses or more

// Values of a chunk: as many as a lane reads at once (16 bytes; of quantised rows 8) and as divide the dimension.
inline int pooled_values(Dtype dtype, int dim) {
  int values = dtype == Dtype::kFloat32 ? 4 : dtype == Dtype::kInt4 ? 16 : 8;
  while (values > 1 && (dim % values != 0 || dim / values < kFewestChunks)) values /= 2;
  return values;
}

struct PooledPlan {
  int64_t items;    // of a unit
  int64_t units;
  int64_t ranges;   // of columns, kRangeChunks each but the last: a warp takes one range of one unit
  int64_t longest;  // ids of a bag that no unit cuts
  int threads;      // a block
};

inline PooledPlan pooled_plan(int64_t ids, int64_t bags, int dim, Dtype dtype, int processors) {
  const auto parts = [](int64_t all, int64_t part) { return (all + part - 1) / part; };
  PooledPlan plan{};
  const int values = pooled_values(dtype, dim);
  plan.ranges = parts(dim, kRangeChunks * values);
  // As many units as run at once: they begin together, and so that they end together, each takes as long.
  const int64_t warps = static_cast<int64_t>(processors) * pooled_blocks(values) * kWarpsPerBlock;
  const int64_t most = warps > plan.ranges ? warps / plan.ranges : 1;
  const int64_t even = parts(ids + bags, most);
  plan.items = even < kFewestItems ? kFewestItems : even > kMostItems ? kMostItems : even;
  plan.units = parts(ids + bags, plan.items);
  plan.longest = plan.items > 2 * kFewestItems ? plan.items : 2 * kFewestItems;
  // A block goes to one processor: few warps have one each, so that as many processors as can be share the work.
  const bool few = plan.units * plan.ranges <= static_cast<int64_t>(processors) * pooled_blocks(values);
  plan.threads = few ? kThreads / kWarpsPerBlock : kThreads;
  return plan;
}

// Cold rows of a tiered table that were brought to the device before they are pooled: see staging.h. A location may be
// in one more segment then, whose rows are places there, or say whose location an id's is.
struct Staged {
  uint64_t* locations;  // [count], of each id; null: rows are where they are, and looked up when they are pooled
  uint64_t* taken;      // how many rows there are, or would be with more places; less one
  uint8_t* rows;        // [places, stride]: of a quantised row scale and offset first
  int64_t places;
  int64_t stride;
};

constexpr uint64_t kStagedSegment = kMaxParts;
constexpr uint64_t kRepeatSegment = kMaxParts + 1;  // its row: the number of an id in the same row

// What the warp that has a unit's first columns found out.
struct UnitResult {
  int64_t cut_bag;     // that begins in the unit and is cut; -1: none
  int64_t head_found;  // ids found of the cut bag that began in an earlier unit
  int64_t tail_found;  // and of cut_bag, here
  int64_t counts[kCounts];  // of its ids; of the rows that were read those that were not staged
};

struct PooledArguments {
  TableView table;
  const int64_t* ids;  // [count]; if rows are staged, the locations
  int64_t count;
  const int64_t* offsets;  // [bags + 1]
  int64_t bags;
  const float* weights;  // [count], or null: 1
  int dim;               // kMaxDim at most
  bool mean;
  OutDtype out;
  PooledPlan plan;
  float* parts;         // [units, 2, dim]: what a unit pooled of the cut bags that it ends and begins with
  UnitResult* results;  // [units]
  bool* bad;            // [units]: whether the unit saw offsets that cannot be
  uint8_t* pooled;      // [bags, dim]
  int64_t* found;       // [bags]
  int64_t* hits;        // [kCounts]; null unless the table is tiered
  Staged staged;
};

// What units tell the kernel that comes after them: in so many bytes.
inline int64_t between_bytes(const PooledPlan& plan, int64_t dim) {
  return plan.units * (2 * dim * static_cast<int64_t>(sizeof(float)) + static_cast<int64_t>(sizeof(UnitResult)) + 1);
}

// At a multiple of 16: the parts come first, of which a lane reads and writes so many bytes at once.
inline void place_between(uint8_t* memory, PooledArguments* arguments) {
  const int64_t units = arguments->plan.units;
  arguments->parts = reinterpret_cast<float*>(memory);
  arguments->results = reinterpret_cast<UnitResult*>(arguments->parts + units * 2 * arguments->dim);
  arguments->bad = reinterpret_cast<bool*>(arguments->results + units);
}

}  // namespace embedding_store::cuda
