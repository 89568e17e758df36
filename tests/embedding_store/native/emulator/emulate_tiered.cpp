// The kernels of the tiered lookup, run by the emulator: what test_emulator_tiered.py calls.
#include "../../../../embedding_store/csrc/cuda/dispatch.h"
#include "../../../../embedding_store/csrc/cuda/tiered_kernel.h"
#include "emulated_table.h"

using namespace embedding_store;
using namespace embedding_store::cuda;

extern "C" {

int64_t emulate_claim_words(int64_t count) { return claim_words(count); }

// As one batch of launch_lookup_tiered, with `warps` warps, whose turns are drawn from `order`; `scratch`
// [emulate_claim_words(count)], or null. `counters` [kCounts] += as there. Returns the bytes that were read from the
// cold memory.
int64_t emulate_lookup_tiered(
    const Table* table, const int64_t* ids, int64_t count, int dim, int dtype, int out, int ids_per_warp, int warps,
    uint64_t order, uint8_t* vectors, bool* found, uint64_t* scratch, unsigned long long* counters) {
  const auto stored = static_cast<Dtype>(dtype);
  const auto type = static_cast<OutDtype>(out);
  const int64_t row_bytes = dim * element_bytes(type);
  const LookupArguments arguments{view(*table, stored, dim), ids, count, dim, ids_per_warp, vectors, found};
  Claims claims{};
  if (scratch != nullptr) {
    claims = claims_in(scratch, count);
    std::memset(scratch, 0xff, cleared_bytes(claims));
  }
  const int64_t scratch_bytes = scratch == nullptr ? 0 : claim_words(count) * 8;
  auto emulator = emulator_for(
      *table,
      {{"ids", ids, count * 8, false}, {"vectors", vectors, count * row_bytes, true}, {"found", found, count, true},
       {"scratch", scratch, scratch_bytes, true}, {"counters", counters, kCounts * 8, true}},
      order);
  with_lookup<4, 2>(stored, type, dim, [&](auto stored, auto result, auto values) {
    emulator.launch("lookup_tiered", grid_of(warps), [&] {
      lookup_tiered_kernel<decltype(stored)::value, decltype(result)::value, decltype(values)::value>(
          arguments, claims, counters);
    });
  });
  if (scratch == nullptr) return emulator.bytes_read(table->cold);
  with_values<8, 4, 2>(static_cast<int>(row_bytes / 2), [&](auto halves) {
    emulator.launch("copy_repeats", blocks_of(2), [&] {
      copy_repeats_kernel<2 * decltype(halves)::value>(claims, row_bytes, vectors);
    });
  });
  return emulator.bytes_read(table->cold);
}

}  // extern "C"
