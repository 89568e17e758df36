// The bodies of the kernels of lookup_versions and locate, run by the warp emulator: what test_emulator_versions.py
// calls.
#include "../../../../embedding_store/csrc/cuda/dispatch.h"
#include "../../../../embedding_store/csrc/cuda/locate.h"
#include "../../../../embedding_store/csrc/cuda/versions.h"
#include "emulated_table.h"

using namespace embedding_store;
using namespace embedding_store::cuda;

extern "C" {

// As launch_versions, with `warps` warps one after another.
void emulate_versions(
    const Table* tables, int64_t table_count, const int64_t* ids, const int64_t* choice, int64_t count, int dim,
    int dtype, int out, int warps, uint8_t* vectors, bool* found) {
  const auto stored = static_cast<Dtype>(dtype);
  const auto type = static_cast<OutDtype>(out);
  std::vector<VersionView> views(table_count);
  std::vector<warp::Memory> memory{
      {ids, count * 8, false}, {choice, count * 8, false}, {vectors, count * dim * element_bytes(type), true},
      {found, count, true}};
  for (int64_t i = 0; i < table_count; ++i) {
    // A layout's numbers are read where they are: there are only as many as it has.
    views[i] = {tables[i].storage, reinterpret_cast<const TableNumbers*>(tables[i].layout)};
    memory.push_back({tables[i].storage, tables[i].storage_bytes, false});
  }
  const VersionsArguments arguments{views.data(), table_count, row_bytes(stored, dim), ids, choice, count, dim, vectors,
                                    found};
  warp::Emulator emulator(std::move(memory));
  with_lookup<4>(stored, type, dim, [&](auto dtype_constant, auto out_constant, auto values) {
    for (int warp = 0; warp < warps; ++warp) {
      emulator.run([&](int lane) {
        versions_warp<decltype(dtype_constant)::value, decltype(out_constant)::value, decltype(values)::value>(
            arguments, warp, warps, lane);
      });
    }
  });
}

// As launch_locate, with `warps` warps one after another.
void emulate_locate(
    const Table* table, const int64_t* ids, int64_t count, int ids_per_warp, int warps, int64_t* locations) {
  const LocateArguments arguments{view(*table, Dtype::kFloat32, 1), ids, count, ids_per_warp, locations};
  auto emulator = emulator_for(*table, {{ids, count * 8, false}, {locations, count * 8, true}});
  const TableNumbers numbers = numbers_in(emulator, arguments.table);
  for (int warp = 0; warp < warps; ++warp) {
    emulator.run([&](int lane) { locate_warp(arguments, numbers, warp, warps, lane); });
  }
}

}  // extern "C"
