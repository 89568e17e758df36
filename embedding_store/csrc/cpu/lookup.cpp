// lookup, lookup_tiered and locate on the CPU.
#include <array>
#include <atomic>

#include "arguments.h"
#include "ops.h"
#include "outputs.h"
#include "parallel.h"
#include "pipeline.h"
#include "table.h"

namespace embedding_store {
namespace {

std::tuple<Tensor, Tensor> lookup_in(
    const TableView& table, const Tensor& ids_tensor, ScalarType out, int64_t* counters) {
  const Tensor ids = contiguous_ids(ids_tensor);
  const Vectors vectors(ids, shape_of(ids), table.dim, table.dtype, out);
  Tensor found = empty_beside(ids, shape_of(ids), ScalarType::Bool);
  auto* found_data = static_cast<bool*>(found.mutable_data_ptr());
  const Finder finder(table);
  std::array<std::atomic<int64_t>, 3> totals{};
  parallel(0, ids.numel(), kGrain, [&](int64_t begin, int64_t end) {
    std::array<int64_t, 3> counts{};  // hot, cold, missing
    find_all(finder, longs(ids) + begin, end - begin, [&](int64_t i, const Row& row, uint64_t segment) {
      const bool is_found = row.vector != nullptr;
      found_data[begin + i] = is_found;
      ++counts[!is_found ? 2 : segment != 0];
      vectors.put(row, begin + i);
    });
    vectors.settle();
    for (size_t i = 0; i < counts.size(); ++i) totals[i] += counts[i];
  });
  if (counters != nullptr) {
    for (size_t i = 0; i < totals.size(); ++i) counters[i] += totals[i];
    counters[3] += totals[1];  // here a row is read for every id that asks for it
  }
  return {vectors.tensor(), found};
}

}  // namespace

std::tuple<Tensor, Tensor> lookup(
    const Tensor& ids, const Tensor& storage, const Tensor& layout, int64_t dim, const std::string& dtype,
    ScalarType out) {
  return lookup_in(TableView(storage, storage, layout, dim, dtype), ids, out, nullptr);
}

Tensor locate(const Tensor& ids_tensor, const Tensor& storage, const Tensor& layout) {
  const TableView table(storage, storage, layout, 1, "float32");
  const Tensor ids = contiguous_ids(ids_tensor);
  Tensor locations = empty_beside(ids, shape_of(ids), ScalarType::Long);
  auto* found = static_cast<int64_t*>(locations.mutable_data_ptr());
  const Finder finder(table);
  parallel(0, ids.numel(), kGrain, [&](int64_t begin, int64_t end) {
    std::array<uint64_t, kGroup> hashes;
    for (int64_t first = begin; first < end; first += kGroup) {
      const int64_t last = std::min(first + kGroup, end);
      for (int64_t i = first; i < last; ++i) hashes[i - first] = finder.hash(longs(ids)[i]);
      for (int64_t i = first; i < last; ++i) {
        const Index* from;
        found[i] = static_cast<int64_t>(finder.location(longs(ids)[i], hashes[i - first], &from));
      }
    }
  });
  return locations;
}

std::tuple<Tensor, Tensor> lookup_tiered(
    const Tensor& ids, const Tensor& storage, const Tensor& cold, const Tensor& layout, int64_t dim,
    const std::string& dtype, ScalarType out, Tensor counters) {
  if (counters.scalar_type() != ScalarType::Long || counters.numel() != 4 || !counters.is_contiguous()) {
    throw std::invalid_argument("counters are not a contiguous int64 tensor [4]");
  }
  auto* counts = static_cast<int64_t*>(counters.mutable_data_ptr());
  return lookup_in(TableView(storage, cold, layout, dim, dtype), ids, out, counts);
}

}  // namespace embedding_store
