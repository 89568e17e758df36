// The bodies of the kernels of lookup_versions, lookup_history and locate, run by the warp emulator: what
// test_emulator_versions.py and test_emulator_history.py call.
#include "../../../../embedding_store/csrc/cuda/dispatch.h"
#include "../../../../embedding_store/csrc/cuda/history.h"
#include "../../../../embedding_store/csrc/cuda/locate.h"
#include "../../../../embedding_store/csrc/cuda/versions.h"
#include "emulated_table.h"

using namespace embedding_store;
using namespace embedding_store::cuda;

namespace {

// Tables as a kernel is told of them. A layout's numbers are read where they are: there are only as many as it has.
std::vector<VersionView> views_of(const Table* tables, int64_t count, std::vector<warp::Memory>* memory) {
  std::vector<VersionView> views(count);
  for (int64_t i = 0; i < count; ++i) {
    views[i] = {tables[i].storage, reinterpret_cast<const TableNumbers*>(tables[i].layout)};
    memory->push_back({tables[i].storage, tables[i].storage_bytes, false});
  }
  return views;
}

// `body(dtype, out, values)`, constants, in every lane of so many warps, one warp after another.
template <class Body>
void run(std::vector<warp::Memory> memory, Dtype dtype, OutDtype out, int dim, int warps, const Body& body) {
  warp::Emulator emulator(std::move(memory));
  with_lookup<4>(dtype, out, dim, [&](auto stored, auto result, auto values) {
    for (int warp = 0; warp < warps; ++warp) {
      emulator.run([&](int lane) { body(stored, result, values, warp, lane); });
    }
  });
}

}  // namespace

extern "C" {

// As launch_versions, with `warps` warps one after another.
void emulate_versions(
    const Table* tables, int64_t table_count, const int64_t* ids, const int64_t* choice, int64_t count, int dim,
    int dtype, int out, int warps, uint8_t* vectors, bool* found) {
  const auto stored = static_cast<Dtype>(dtype);
  const auto type = static_cast<OutDtype>(out);
  std::vector<warp::Memory> memory{
      {ids, count * 8, false}, {choice, count * 8, false}, {vectors, count * dim * element_bytes(type), true},
      {found, count, true}};
  const std::vector<VersionView> views = views_of(tables, table_count, &memory);
  const VersionsArguments arguments{
      {views.data(), table_count, row_bytes(stored, dim)}, ids, choice, count, dim, vectors, found};
  run(std::move(memory), stored, type, dim, warps, [&](auto dtype, auto out, auto values, int warp, int lane) {
    versions_warp<decltype(dtype)::value, decltype(out)::value, decltype(values)::value>(arguments, warp, warps, lane);
  });
}

// As launch_history, likewise.
void emulate_history(
    const Table* tables, int64_t table_count, const int64_t* ids, const int64_t* timestamps, const int64_t* newest,
    int64_t count, const int64_t* as_of, const int64_t* numbers, int64_t versions, int k, int dim, int dtype, int out,
    int warps, uint8_t* vectors, bool* mask, int64_t* ages) {
  const auto stored = static_cast<Dtype>(dtype);
  const auto type = static_cast<OutDtype>(out);
  const int64_t places = count * k;
  std::vector<warp::Memory> memory{
      {ids, count * 8, false}, {timestamps, count * 8, false}, {newest, count * 8, false},
      {as_of, versions * 8, false}, {numbers, versions * 8, false},
      {vectors, places * dim * element_bytes(type), true}, {mask, places, true}, {ages, places * 8, true}};
  const std::vector<VersionView> views = views_of(tables, table_count, &memory);
  const HistoryArguments arguments{
      {views.data(), table_count, row_bytes(stored, dim)}, ids, timestamps, newest, count, as_of, numbers, versions, k,
      dim, vectors, mask, ages};
  run(std::move(memory), stored, type, dim, warps, [&](auto dtype, auto out, auto values, int warp, int lane) {
    history_warp<decltype(dtype)::value, decltype(out)::value, decltype(values)::value>(arguments, warp, warps, lane);
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
