// The bodies of the kernels of lookup_pooled and lookup_pooled_tiered, run by the warp emulator: what
// test_emulator_bags.py calls.
#include <algorithm>
#include <memory>
#include <vector>

#include "../../../../embedding_store/csrc/cuda/dispatch.h"
#include "../../../../embedding_store/csrc/cuda/pooled.h"
#include "../../../../embedding_store/csrc/cuda/pooled_finish.h"
#include "../../../../embedding_store/csrc/cuda/staging.h"
#include "emulated_table.h"

using namespace embedding_store;
using namespace embedding_store::cuda;

// How cold rows are staged, as launch_staging does.
struct Staging {
  int64_t batch;   // ids; 0: nothing is staged
  int64_t places;  // of cold rows
  int64_t ids_per_warp;
  int64_t warps;
  int64_t forwards;  // 1: from the first warp to the last; 0: from the last to the first
};

namespace {

// The first multiple of 16 in memory that has 8 bytes to spare.
uint8_t* aligned(std::vector<uint64_t>* memory) {
  return reinterpret_cast<uint8_t*>(memory->data() + reinterpret_cast<uintptr_t>(memory->data()) % 16 / 8);
}

// As finish_kernel, a block after the other.
void finish(warp::Emulator& emulator, const PooledArguments& arguments) {
  bool bad = false;
  for (int64_t unit = 0; unit < arguments.plan.units; ++unit) bad |= arguments.bad[unit];
  if (bad) {
    emulator.run([&](int lane) { refuse_all(arguments, lane, warp::kLanes); });
    return;
  }
  if (arguments.hits != nullptr) {
    emulator.run([&](int lane) {
      const int64_t hits = total_hits(arguments, lane);
      if (lane < kCounts) arguments.hits[lane] = hits;
    });
  }
  with_values<4, 2>(arguments.dim, [&](auto values) {
    constexpr int kValues = decltype(values)::value;
    const auto shared = std::make_unique<FinishShared<kValues>>();
    for (int64_t unit = 0; unit < arguments.plan.units; ++unit) {
      if (arguments.results[unit].cut_bag < 0) continue;
      const CutBag cut(arguments, unit);
      for (int64_t tile = 0; tile * warp::kLanes * kValues < arguments.dim; ++tile) {
        const auto column = [&](int lane) { return (tile * warp::kLanes + lane) * kValues; };
        if (cut.parts <= kFewParts) {
          emulator.run([&](int lane) { finish_alone<kValues>(arguments, cut, column(lane), lane); });
          continue;
        }
        std::memset(shared.get(), 0x7f, sizeof *shared);
        for (int warp = 0; warp < kFinishWarps; ++warp) {
          emulator.run([&](int lane) {
            finish_share<kValues>(arguments, cut, column(lane), warp, lane, shared.get());
          });
        }
        emulator.run([&](int lane) { finish_shared<kValues>(arguments, cut, column(lane), lane, *shared); });
      }
    }
  });
}

// `memory` is what the device would have for it. Returns how many bytes were read from
// the cold memory.
int64_t stage(
    const Table& table, const Staging& staging, Dtype dtype, std::vector<uint64_t>* memory,
    PooledArguments* arguments) {
  const TableView& view = arguments->table;
  const bool quantised = is_quantised(dtype);
  const int64_t words = staging_words(arguments->count, staging.batch);
  const int64_t bytes = words * 8 + staging.places * staged_stride(quantised, view.row_bytes);
  memory->assign(bytes / 8 + 2, 0x5a5a5a5a5a5a5a5a);  // whatever was there
  auto* start = reinterpret_cast<uint64_t*>(aligned(memory));
  const StagingArguments all = staging_in(
      start, view, arguments->ids, arguments->count, staging.batch, staging.places, quantised);
  auto emulator = emulator_for(table, {{arguments->ids, arguments->count * 8, false}, {start, bytes, true}});
  const TableNumbers numbers = numbers_in(emulator, view);
  each_batch(all, arguments->count, staging.batch, [&](StagingArguments batch, uint64_t* cleared, size_t size) {
    std::memset(cleared, 0xff, size);
    batch.ids_per_warp = static_cast<int>(staging.ids_per_warp);
    with_values<16, 8, 4, 2>(staging_access(quantised, view.row_bytes), [&](auto chunk) {
      for (int64_t turn = 0; turn < staging.warps; ++turn) {
        const int64_t warp = staging.forwards != 0 ? turn : staging.warps - 1 - turn;
        emulator.run([&](int lane) {
          stage_warp<decltype(chunk)::value>(
              batch, numbers, first_id(batch, warp, lane), warp, staging.warps, lane);
        });
      }
    });
  });
  arguments->staged = all.staged;
  arguments->ids = reinterpret_cast<const int64_t*>(all.staged.locations);
  return emulator.bytes_read(table.cold);
}

}  // namespace

extern "C" {

// As launch_pooled on a device of so many processors, and launch_staging before it. `hits`: int64 [kCounts], or null.
// `cold_bytes`: how many staging has read from the cold memory, and what came after it. Returns how many bags were cut.
int64_t emulate_pooled(
    const Table* table, const int64_t* ids, int64_t count, const int64_t* offsets, int64_t bags, const float* weights,
    int dim, int dtype, int mean, int out, int processors, const Staging* staging, uint8_t* pooled, int64_t* found,
    int64_t* hits, int64_t* cold_bytes) {
  const auto stored = static_cast<Dtype>(dtype);
  const auto type = static_cast<OutDtype>(out);
  const PooledPlan plan = pooled_plan(count, bags, dim, stored, processors);
  PooledArguments arguments{view(*table, stored, dim), ids, count, offsets, bags, weights, dim, mean != 0, type,
                            plan, nullptr, nullptr, nullptr, pooled, found, hits, {}};
  // What no unit writes is no part of an answer: NaN, and numbers of bags and ids that cannot be.
  std::vector<uint64_t> between(between_bytes(plan, dim) / 8 + 3, 0x7f7f7f7f7f7f7f7f);
  place_between(aligned(&between), &arguments);
  const int64_t part_values = plan.units * 2 * dim;
  std::fill_n(arguments.parts, part_values, from_bits(0x7fc00000u));
  std::vector<uint64_t> memory;
  if (staging->batch > 0) cold_bytes[0] = stage(*table, *staging, stored, &memory, &arguments);
  auto emulator = emulator_for(
      *table,
      {{ids, count * 8, false}, {offsets, (bags + 1) * 8, false}, {weights, weights == nullptr ? 0 : count * 4, false},
       {pooled, bags * dim * element_bytes(type), true}, {found, bags * 8, true},
       {arguments.parts, part_values * 4, true},
       {memory.data(), static_cast<int64_t>(memory.size()) * 8, false}});
  const TableNumbers numbers = numbers_in(emulator, arguments.table);
  with_pooled(stored, pooled_values(stored, dim), [&](auto dtype_constant, auto values) {
    constexpr int kValues = decltype(values)::value;
    // From the last to the first: no unit needs what another one has done.
    for (int64_t warp = plan.units * plan.ranges - 1; warp >= 0; --warp) {
      const int range = static_cast<int>(warp % plan.ranges);
      PooledShared<kValues> shared;
      std::memset(&shared, 0x7f, sizeof shared);
      emulator.run([&](int lane) {
        pooled_warp<decltype(dtype_constant)::value, kValues>(
            arguments, numbers, warp / plan.ranges, range, &shared, lane);
      });
    }
  });
  int64_t cut = 0;
  for (int64_t unit = 0; unit < plan.units; ++unit) cut += arguments.results[unit].cut_bag >= 0;
  finish(emulator, arguments);
  cold_bytes[1] = emulator.bytes_read(table->cold);
  return cut;
}

// int64 [5]: items, units, ranges, longest, threads a block.
void emulate_pooled_plan(int64_t ids, int64_t bags, int dim, int dtype, int processors, int64_t* numbers) {
  const PooledPlan plan = pooled_plan(ids, bags, dim, static_cast<Dtype>(dtype), processors);
  numbers[0] = plan.items, numbers[1] = plan.units, numbers[2] = plan.ranges, numbers[3] = plan.longest;
  numbers[4] = plan.threads;
}

}  // extern "C"
