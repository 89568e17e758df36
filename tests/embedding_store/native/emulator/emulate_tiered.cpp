// The kernels of the tiered lookup, run by the warp emulator: what test_emulator_tiered.py calls.
#include "../../../../embedding_store/csrc/cuda/dispatch.h"
#include "../../../../embedding_store/csrc/cuda/tiered.h"
#include "emulated_table.h"

using namespace embedding_store;
using namespace embedding_store::cuda;

extern "C" {

int64_t emulate_claim_words(int64_t count) { return claim_words(count); }

// As one batch of launch_lookup_tiered, with `warps` warps one after another; `scratch` [emulate_claim_words(count)],
// or null. `counts` [kCounts] += as there. Returns the bytes that were read from the cold memory.
int64_t emulate_lookup_tiered(
    const Table* table, const int64_t* ids, int64_t count, int dim, int dtype, int out, int ids_per_warp, int warps,
    uint8_t* vectors, bool* found, uint64_t* scratch, int* counts) {
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
      *table, {{ids, count * 8, false}, {vectors, count * row_bytes, true}, {found, count, true},
               {scratch, scratch_bytes, true}, {counts, kCounts * 4, true}});
  const TableNumbers numbers = numbers_in(emulator, arguments.table);
  with_lookup<4, 2>(stored, type, dim, [&](auto dtype_constant, auto out_constant, auto values) {
    for (int warp = 0; warp < warps; ++warp) {
      emulator.run([&](int lane) {
        lookup_tiered_warp<decltype(dtype_constant)::value, decltype(out_constant)::value, decltype(values)::value>(
            arguments, numbers, claims, counts, first_id(arguments, warp, lane), warp, warps, lane);
      });
    }
  });
  if (scratch == nullptr) return emulator.bytes_read(table->cold);
  with_values<8, 4, 2>(static_cast<int>(row_bytes / 2), [&](auto halves) {
    for (int warp = 0; warp < warps; ++warp) {
      emulator.run([&](int lane) {
        copy_repeats_warp<2 * decltype(halves)::value>(claims, row_bytes, vectors, warp, warps, lane);
      });
    }
  });
  return emulator.bytes_read(table->cold);
}

}  // extern "C"
