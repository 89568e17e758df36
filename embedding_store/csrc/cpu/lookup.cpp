// lookup and lookup_tiered on the CPU.
#include <torch/csrc/stable/ops.h>

#include <array>
#include <atomic>
#include <string>
#include <vector>

#include "ops.h"
#include "outputs.h"
#include "parallel.h"
#include "pipeline.h"
#include "table.h"

namespace embedding_store {
namespace {

constexpr int64_t kGrain = 1024;  // ids a thread, at least: waking one costs some microseconds
constexpr int64_t kStreamBytes = int64_t{1} << 20;  // outputs from here on leave no room in the caches: go past them

Tensor contiguous_ids(const Tensor& ids) {
  if (ids.scalar_type() != ScalarType::Long) throw std::invalid_argument("ids are not int64");
  return torch::stable::contiguous(ids);
}

// `order` holds the same ids as `ids` in the order in which they are looked up: number i of them belongs to
// position_of(i) of the outputs, and to the table that finder_of(i) gives, as find_all wants it.
template <class FinderOf, class PositionOf>
std::tuple<Tensor, Tensor> lookup_in(
    const Tensor& ids, const int64_t* order, const FinderOf& finder_of, const PositionOf& position_of, int64_t dim,
    Dtype dtype, ScalarType out, int64_t* counters) {
  std::vector<int64_t> shape(ids.sizes().begin(), ids.sizes().end());
  Tensor found = torch::stable::new_empty(ids, shape, ScalarType::Bool);
  shape.push_back(dim);
  const OutDtype type = out_dtype(out);
  const int64_t out_bytes = dim * element_bytes(type);
  Tensor vectors = new_output(ids, shape, out, ids.numel() * out_bytes);

  auto* vectors_data = static_cast<uint8_t*>(vectors.mutable_data_ptr());
  auto* found_data = static_cast<bool*>(found.mutable_data_ptr());
  const bool aligned = reinterpret_cast<uintptr_t>(vectors_data) % kCacheLine == 0 && out_bytes % kCacheLine == 0;
  const RowFunctions functions = row_functions(dtype, type);
  const bool streams = aligned && ids.numel() * out_bytes >= kStreamBytes;
  const CopyRow copy = streams ? functions.stream : functions.copy;
  const ClearRow clear = streams ? functions.stream_zeros : functions.clear;
  std::array<std::atomic<int64_t>, 3> totals{};
  parallel(0, ids.numel(), kGrain, [&](int64_t begin, int64_t end) {
    std::array<int64_t, 3> counts{};  // hot, cold, missing
    const auto finder = [&](int64_t i) { return finder_of(begin + i); };
    find_all(order + begin, end - begin, finder, [&](int64_t i, const Row& row, uint64_t segment) {
      const int64_t position = position_of(begin + i);
      uint8_t* target = vectors_data + position * out_bytes;
      const bool is_found = row.vector != nullptr;
      found_data[position] = is_found;
      ++counts[!is_found ? 2 : segment != 0];
      if (is_found) copy(row, dim, target);
      else clear(dim, target);
    });
    std::atomic_thread_fence(std::memory_order_seq_cst);  // streamed rows may be behind what is stored after them
    for (size_t i = 0; i < counts.size(); ++i) totals[i] += counts[i];
  });
  if (counters != nullptr) {
    for (size_t i = 0; i < totals.size(); ++i) counters[i] += totals[i];
  }
  return {vectors, found};
}

std::tuple<Tensor, Tensor> lookup_in(
    const TableView& table, const Tensor& ids_tensor, ScalarType out, int64_t* counters) {
  const Tensor ids = contiguous_ids(ids_tensor);
  const Finder finder(table);
  return lookup_in(
      ids, static_cast<const int64_t*>(ids.const_data_ptr()), [&](int64_t) { return &finder; },
      [](int64_t i) { return i; }, table.dim, table.dtype, out, counters);
}

// The positions of ids in the order of their tables, those of no table (-1) first. Looked up in this order the page
// tables of one table's memory at a time are in the caches; in a random order over many tables they are not.
std::vector<int64_t> by_table(
    const int64_t* choice,  // [count]
    int64_t count, size_t tables) {
  std::vector<int64_t> starts(tables + 2);  // of no table, of table 0, ...
  for (int64_t i = 0; i < count; ++i) {
    if (choice[i] < -1 || choice[i] >= static_cast<int64_t>(tables)) {
      throw std::invalid_argument("choice is " + std::to_string(choice[i]) + "; use -1 or the number of one of " +
                                  std::to_string(tables) + " tables");
    }
    ++starts[choice[i] + 2];
  }
  for (size_t table = 1; table < starts.size(); ++table) starts[table] += starts[table - 1];
  std::vector<int64_t> positions(count);
  for (int64_t i = 0; i < count; ++i) positions[starts[choice[i] + 1]++] = i;
  return positions;
}

}  // namespace

std::tuple<Tensor, Tensor> lookup(
    const Tensor& ids, const Tensor& storage, const Tensor& layout, int64_t dim, const std::string& dtype,
    ScalarType out) {
  return lookup_in(TableView(storage, storage, layout, dim, dtype), ids, out, nullptr);
}

std::tuple<Tensor, Tensor> lookup_tiered(
    const Tensor& ids, const Tensor& storage, const Tensor& cold, const Tensor& layout, int64_t dim,
    const std::string& dtype, ScalarType out, Tensor counters) {
  if (counters.scalar_type() != ScalarType::Long || counters.numel() != 3 || !counters.is_contiguous()) {
    throw std::invalid_argument("counters are not a contiguous int64 tensor [3]");
  }
  auto* counts = static_cast<int64_t*>(counters.mutable_data_ptr());
  return lookup_in(TableView(storage, cold, layout, dim, dtype), ids, out, counts);
}

std::tuple<Tensor, Tensor> lookup_versions(
    const Tensor& ids_tensor, const Tensor& choice_tensor, const std::vector<Tensor>& storages,
    const std::vector<Tensor>& layouts, int64_t dim, const std::string& dtype, ScalarType out) {
  if (storages.empty() || storages.size() != layouts.size()) {
    throw std::invalid_argument("storages and layouts are not one or more tensors each, as many as the other");
  }
  if (choice_tensor.scalar_type() != ScalarType::Long || choice_tensor.numel() != ids_tensor.numel()) {
    throw std::invalid_argument("choice is not int64, one for each id");
  }
  const Tensor ids = contiguous_ids(ids_tensor), choices = torch::stable::contiguous(choice_tensor);
  const auto* ids_data = static_cast<const int64_t*>(ids.const_data_ptr());
  const auto* choice = static_cast<const int64_t*>(choices.const_data_ptr());
  std::vector<TableView> tables;
  tables.reserve(storages.size());
  for (size_t i = 0; i < storages.size(); ++i) tables.emplace_back(storages[i], storages[i], layouts[i], dim, dtype);
  const std::vector<Finder> finders(tables.begin(), tables.end());
  const std::vector<int64_t> positions = by_table(choice, ids.numel(), storages.size());
  std::vector<int64_t> order(positions.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = ids_data[positions[i]];
  const auto finder_of = [&](int64_t i) {
    const int64_t table = choice[positions[i]];
    return table < 0 ? nullptr : &finders[table];
  };
  const auto position_of = [&](int64_t i) { return positions[i]; };
  return lookup_in(ids, order.data(), finder_of, position_of, dim, tables[0].dtype, out, nullptr);
}

}  // namespace embedding_store
