// The kernels of lookup_pooled and lookup_pooled_tiered, run by the emulator: what test_emulator_bags.py calls.
#include <algorithm>
#include <numeric>
#include <vector>

#include "../../../../embedding_store/csrc/cuda/dispatch.h"
#include "../../../../embedding_store/csrc/cuda/pooled_kernel.h"
#include "../../../../embedding_store/csrc/cuda/staging_kernel.h"
#include "emulated_table.h"

using namespace embedding_store;
using namespace embedding_store::cuda;

// How cold rows are staged, as launch_staging does.
struct Staging {
  int64_t batch;   // ids; 0: nothing is staged
  int64_t places;  // of cold rows
  int64_t ids_per_warp;
  int64_t warps;
};

namespace {

// The first multiple of 16 in memory that has 8 bytes to spare.
uint8_t* aligned(std::vector<uint64_t>* memory) {
  return reinterpret_cast<uint8_t*>(memory->data() + reinterpret_cast<uintptr_t>(memory->data()) % 16 / 8);
}

// As launch_pooled.
void pool(warp::Emulator& emulator, const PooledArguments& arguments, Dtype dtype) {
  const PooledPlan& plan = arguments.plan;
  const auto in_blocks = [](int64_t all, int64_t each) { return static_cast<unsigned>((all + each - 1) / each); };
  with_pooled(dtype, pooled_values(dtype, arguments.dim), [&](auto stored, auto values) {
    const unsigned blocks = in_blocks(plan.units * plan.ranges, plan.threads / warp::kLanes);
    emulator.launch("pooled", {{blocks, 1}, plan.threads}, [&] {
      pooled_kernel<decltype(stored)::value, decltype(values)::value>(arguments);
    });
  });
  with_values<4, 2>(arguments.dim, [&](auto values) {
    constexpr int kValues = decltype(values)::value;
    const Dim blocks{in_blocks(plan.units, kFinishWarps), in_blocks(arguments.dim, warp::kLanes * kValues)};
    emulator.launch("finish", {blocks, kFinishWarps * warp::kLanes}, [&] { finish_kernel<kValues>(arguments); });
  });
}

// `memory` is what the device would have for it. Returns how many bytes were read from the cold memory.
int64_t stage(
    const Table& table, const Staging& staging, Dtype dtype, uint64_t order, std::vector<uint64_t>* memory,
    PooledArguments* arguments) {
  const TableView& view = arguments->table;
  const bool quantised = is_quantised(dtype);
  const int64_t words = staging_words(arguments->count, staging.batch);
  const int64_t bytes = words * 8 + staging.places * staged_stride(quantised, view.row_bytes);
  memory->assign(bytes / 8 + 2, 0x5a5a5a5a5a5a5a5a);  // whatever was there
  auto* start = reinterpret_cast<uint64_t*>(aligned(memory));
  const StagingArguments all = staging_in(
      start, view, arguments->ids, arguments->count, staging.batch, staging.places, quantised);
  auto emulator = emulator_for(
      table, {{"ids", arguments->ids, arguments->count * 8, false}, {"staging memory", start, bytes, true}}, order);
  each_batch(all, arguments->count, staging.batch, [&](StagingArguments batch, uint64_t* cleared, size_t size) {
    std::memset(cleared, 0xff, size);
    batch.ids_per_warp = static_cast<int>(staging.ids_per_warp);
    with_values<16, 8, 4, 2>(staging_access(quantised, view.row_bytes), [&](auto chunk) {
      emulator.launch("stage", grid_of(static_cast<int>(staging.warps)), [&] {
        stage_kernel<decltype(chunk)::value>(batch);
      });
    });
  });
  arguments->staged = all.staged;
  arguments->ids = reinterpret_cast<const int64_t*>(all.staged.locations);
  return emulator.bytes_read(table.cold);
}

// Whether they rise from 0 to `count`. If not, units may take the same bag for theirs, and the kernel that comes after
// them writes all answers anew.
bool are_offsets(const int64_t* offsets, int64_t bags, int64_t count) {
  return offsets[0] == 0 && offsets[bags] == count && std::is_sorted(offsets, offsets + bags + 1);
}

}  // namespace

extern "C" {

// As launch_pooled on a device of so many processors, and launch_staging before it. `hits`: int64 [kCounts], or null.
// `order`: what turns are drawn from. `cold_bytes`: how many staging has read from the cold memory, and what came after
// it. Returns how many bags were cut.
int64_t emulate_pooled(
    const Table* table, const int64_t* ids, int64_t count, const int64_t* offsets, int64_t bags, const float* weights,
    int dim, int dtype, int mean, int out, int processors, uint64_t order, const Staging* staging, uint8_t* pooled,
    int64_t* found, int64_t* hits, int64_t* cold_bytes) {
  const auto stored = static_cast<Dtype>(dtype);
  const auto type = static_cast<OutDtype>(out);
  const PooledPlan plan = pooled_plan(count, bags, dim, stored, processors);
  PooledArguments arguments{view(*table, stored, dim), ids, count, offsets, bags, weights, dim, mean != 0, type,
                            plan, nullptr, nullptr, nullptr, pooled, found, hits, {}};
  // What no unit writes is no part of an answer: NaN, and numbers of bags and ids that cannot be.
  std::vector<uint64_t> between(between_bytes(plan, dim) / 8 + 3, 0x7f7f7f7f7f7f7f7f);
  place_between(aligned(&between), &arguments);
  std::fill_n(arguments.parts, plan.units * 2 * dim, from_bits(0x7fc00000u));
  std::vector<uint64_t> memory;
  if (staging->batch > 0) cold_bytes[0] = stage(*table, *staging, stored, order, &memory, &arguments);
  const auto sharing = are_offsets(offsets, bags, count) ? warp::Sharing::kStrict : warp::Sharing::kContested;
  auto emulator = emulator_for(
      *table,
      {{"ids", ids, count * 8, false}, {"offsets", offsets, (bags + 1) * 8, false},
       {"weights", weights, weights == nullptr ? 0 : count * 4, false},
       {"pooled", pooled, bags * dim * element_bytes(type), true, sharing},
       {"found", found, bags * 8, true, sharing}, {"hits", hits, hits == nullptr ? 0 : kCounts * 8, true},
       {"memory between units", between.data(), static_cast<int64_t>(between.size()) * 8, true},
       {"staging memory", memory.data(), static_cast<int64_t>(memory.size()) * 8, false}},
      order);
  pool(emulator, arguments, stored);
  cold_bytes[1] = emulator.bytes_read(table->cold);
  return std::count_if(arguments.results, arguments.results + plan.units, [](const UnitResult& result) {
    return result.cut_bag >= 0;
  });
}

// How many ids the units have together, of bags of any length: no id is looked at.
int64_t emulate_unit_ids(const int64_t* offsets, int64_t bags, int dim, int processors) {
  PooledArguments arguments{};
  arguments.count = offsets[bags];
  arguments.offsets = offsets;
  arguments.bags = bags;
  arguments.plan = pooled_plan(arguments.count, bags, dim, Dtype::kFloat32, processors);
  std::vector<int64_t> ids(arguments.plan.units);
  warp::Emulator emulator(
      {{"offsets", offsets, (bags + 1) * 8, false}, {"ids", ids.data(), arguments.plan.units * 8, true}}, 1);
  emulator.launch("units", {{static_cast<unsigned>(ids.size()), 1}, warp::kLanes}, [&] {
    const Unit unit = unit_at(arguments, blockIdx.x, static_cast<int>(threadIdx.x));
    if (threadIdx.x == 0) ids[blockIdx.x] = unit.stop;
  });
  return std::reduce(ids.begin(), ids.end());
}

// int64 [5]: items, units, ranges, longest, threads a block.
void emulate_pooled_plan(int64_t ids, int64_t bags, int dim, int dtype, int processors, int64_t* numbers) {
  const PooledPlan plan = pooled_plan(ids, bags, dim, static_cast<Dtype>(dtype), processors);
  numbers[0] = plan.items, numbers[1] = plan.units, numbers[2] = plan.ranges, numbers[3] = plan.longest;
  numbers[4] = plan.threads;
}

}  // extern "C"
