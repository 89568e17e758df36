// The kernels of lookup_versions, lookup_history and locate, run by the emulator: what test_emulator_versions.py and
// test_emulator_history.py call.
#include "../../../../embedding_store/csrc/cuda/dispatch.h"
#include "../../../../embedding_store/csrc/cuda/history_kernel.h"
#include "../../../../embedding_store/csrc/cuda/locate_kernel.h"
#include "../../../../embedding_store/csrc/cuda/versions_kernel.h"
#include "emulated_table.h"

using namespace embedding_store;
using namespace embedding_store::cuda;

namespace {

// Tables as a kernel is told of them. A layout's numbers are read where they are.
std::vector<VersionView> views_of(const Table* tables, int64_t count, std::vector<warp::Memory>* memory) {
  std::vector<VersionView> views(count);
  for (int64_t i = 0; i < count; ++i) {
    views[i] = {tables[i].storage, reinterpret_cast<const TableNumbers*>(tables[i].layout)};
    memory->push_back({"storage", tables[i].storage, tables[i].storage_bytes, false});
    memory->push_back({"layout", tables[i].layout, tables[i].layout_values * 8, false});
  }
  memory->push_back({"tables", views.data(), count * static_cast<int64_t>(sizeof(VersionView)), false});
  return views;
}

}  // namespace

extern "C" {

// As launch_versions, with so many blocks, whose turns are drawn from `order`.
void emulate_versions(
    const Table* tables, int64_t table_count, const int64_t* ids, const int64_t* choice, int64_t count, int dim,
    int dtype, int out, int blocks, uint64_t order, uint8_t* vectors, bool* found) {
  const auto stored = static_cast<Dtype>(dtype);
  const auto type = static_cast<OutDtype>(out);
  std::vector<warp::Memory> memory{
      {"ids", ids, count * 8, false}, {"choice", choice, count * 8, false},
      {"vectors", vectors, count * dim * element_bytes(type), true}, {"found", found, count, true}};
  const std::vector<VersionView> views = views_of(tables, table_count, &memory);
  const VersionsArguments arguments{
      {views.data(), table_count, row_bytes(stored, dim)}, ids, choice, count, dim, vectors, found};
  warp::Emulator emulator(memory, order);
  with_lookup<4>(stored, type, dim, [&](auto stored, auto result, auto values) {
    emulator.launch("lookup_versions", blocks_of(blocks), [&] {
      versions_kernel<decltype(stored)::value, decltype(result)::value, decltype(values)::value>(arguments);
    });
  });
}

// As launch_history, likewise.
void emulate_history(
    const Table* tables, int64_t table_count, const int64_t* ids, const int64_t* timestamps, const int64_t* newest,
    int64_t count, const int64_t* as_of, const int64_t* numbers, int64_t versions, int k, int dim, int dtype, int out,
    int blocks, uint64_t order, uint8_t* vectors, bool* mask, int64_t* ages) {
  const auto stored = static_cast<Dtype>(dtype);
  const auto type = static_cast<OutDtype>(out);
  const int64_t places = count * k;
  std::vector<warp::Memory> memory{
      {"ids", ids, count * 8, false}, {"timestamps", timestamps, count * 8, false},
      {"newest", newest, count * 8, false}, {"as_of", as_of, versions * 8, false},
      {"numbers", numbers, versions * 8, false}, {"vectors", vectors, places * dim * element_bytes(type), true},
      {"mask", mask, places, true}, {"ages", ages, places * 8, true}};
  const std::vector<VersionView> views = views_of(tables, table_count, &memory);
  const HistoryArguments arguments{
      {views.data(), table_count, row_bytes(stored, dim)}, ids, timestamps, newest, count, as_of, numbers, versions, k,
      dim, vectors, mask, ages};
  warp::Emulator emulator(memory, order);
  with_lookup<4>(stored, type, dim, [&](auto stored, auto result, auto values) {
    emulator.launch("lookup_history", blocks_of(blocks), [&] {
      history_kernel<decltype(stored)::value, decltype(result)::value, decltype(values)::value>(arguments);
    });
  });
}

// As launch_locate, with `warps` warps.
void emulate_locate(
    const Table* table, const int64_t* ids, int64_t count, int ids_per_warp, int warps, uint64_t order,
    int64_t* locations) {
  const LocateArguments arguments{view(*table, Dtype::kFloat32, 1), ids, count, ids_per_warp, locations};
  auto emulator = emulator_for(
      *table, {{"ids", ids, count * 8, false}, {"locations", locations, count * 8, true}}, order);
  emulator.launch("locate", grid_of(warps), [&] { locate_kernel(arguments); });
}

}  // extern "C"
