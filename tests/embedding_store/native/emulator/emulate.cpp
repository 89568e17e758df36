// The kernel of `lookup`, run by the emulator: what test_emulator.py calls.
#include <algorithm>

#include "../../../../embedding_store/csrc/cuda/dispatch.h"
#include "../../../../embedding_store/csrc/cuda/lookup_kernel.h"
#include "emulated_table.h"

using namespace embedding_store;
using namespace embedding_store::cuda;

extern "C" {

// As launch_lookup, with `warps` warps, whose turns are drawn from `order`.
void emulate_lookup(
    const Table* table, const int64_t* ids, int64_t count, int dim, int dtype, int out, int ids_per_warp, int warps,
    uint64_t order, uint8_t* vectors, bool* found) {
  const auto stored = static_cast<Dtype>(dtype);
  const auto type = static_cast<OutDtype>(out);
  const LookupArguments arguments{view(*table, stored, dim), ids, count, dim, ids_per_warp, vectors, found};
  auto emulator = emulator_for(
      *table,
      {{"ids", ids, count * 8, false}, {"vectors", vectors, count * dim * element_bytes(type), true},
       {"found", found, count, true}},
      order);
  with_lookup<4, 2>(stored, type, dim, [&](auto stored, auto result, auto values) {
    emulator.launch("lookup", grid_of(warps), [&] {
      lookup_kernel<decltype(stored)::value, decltype(result)::value, decltype(values)::value>(arguments);
    });
  });
}

// Where row `row` of a table of one segment begins, from its storage.
int64_t emulate_row_offset(const int64_t* layout, int64_t row, int64_t row_width) {
  const auto* base = reinterpret_cast<const uint8_t*>(int64_t{1} << 20);  // never read
  TableView table{};
  table.row_bytes = row_width;
  TableNumbers numbers{};
  std::copy(layout, layout + 12, numbers.values);
  const Row found =
      row_at<Dtype::kFloat32>(table, numbers, pack_location(0, static_cast<uint64_t>(row)), base, 0);
  return found.found ? found.values - base : -1;
}

int emulate_blocks(int64_t steps, int processors) { return blocks_for(steps, processors); }

// int64 [3]: ids a warp, threads a block, blocks.
void emulate_plan(int64_t count, int processors, int64_t* plan) {
  const Plan made = lookup_plan(count, processors);
  plan[0] = made.ids_per_warp, plan[1] = made.threads, plan[2] = made.blocks;
}

}  // extern "C"
