// lookup_pooled and lookup_pooled_tiered on the CPU.
#include <array>
#include <atomic>
#include <vector>

#include "../common/tensors.h"
#include "ops.h"
#include "parallel.h"
#include "pipeline.h"
#include "table.h"

namespace embedding_store {
namespace {

bool is_mean(const std::string& mode) {
  if (mode != "sum" && mode != "mean") throw std::invalid_argument("mode is '" + mode + "'; use sum or mean");
  return mode == "mean";
}

// Bags must tile the ids: every id is in exactly one.
void check_offsets(
    const int64_t* offsets,  // [bags + 1]
    int64_t bags, int64_t ids) {
  bool good = offsets[0] == 0 && offsets[bags] == ids;
  for (int64_t bag = 0; bag < bags; ++bag) good = good && offsets[bag] <= offsets[bag + 1];
  if (!good) {
    throw std::invalid_argument("offsets do not rise from 0 to the number of ids, " + std::to_string(ids));
  }
}

struct Bags {
  const int64_t* ids;      // [N]
  const int64_t* offsets;  // [B + 1]
  const float* weights;    // [N] or nullptr
  uint8_t* pooled;         // [B, dim]
  int64_t pooled_bytes;    // of one bag
  int64_t* found;          // [B]
  bool mean;
};

using Hits = std::array<int64_t, 3>;  // rows of the first segment, of the others, ids not found

Hits pool(const TableView& table, const RowFunctions& functions, const Bags& bags, int64_t begin, int64_t end) {
  std::vector<float> sum(table.dim);
  int64_t bag = begin, found = 0;
  Hits hits{};
  const auto finish_bag = [&] {
    const float factor = bags.mean && found > 0 ? 1.0f / static_cast<float>(found) : 1.0f;
    functions.finish(sum.data(), table.dim, factor, bags.pooled + bag * bags.pooled_bytes);
    bags.found[bag++] = found;
    sum.assign(sum.size(), 0.0f);
    found = 0;
  };
  const int64_t first = bags.offsets[begin];
  const Finder finder(table);
  find_all(finder, bags.ids + first, bags.offsets[end] - first, [&](int64_t i, const Row& row, uint64_t segment) {
    while (bags.offsets[bag + 1] <= first + i) finish_bag();
    ++hits[row.vector == nullptr ? 2 : segment != 0];
    if (row.vector == nullptr) return;
    functions.add(row, table.dim, bags.weights == nullptr ? 1.0f : bags.weights[first + i], sum.data());
    ++found;
  });
  while (bag < end) finish_bag();
  return hits;
}

// Pooled vectors, how many ids of each bag were found, and int64 [4]: Hits, and how many rows of the second kind were
// read, which is one for every id here.
std::tuple<Tensor, Tensor, Tensor> pooled_in(
    const TableView& table, const Tensor& ids_tensor, const Tensor& offsets_tensor,
    const std::optional<Tensor>& weights_tensor, const std::string& mode, ScalarType out) {
  if (ids_tensor.scalar_type() != ScalarType::Long || ids_tensor.dim() != 1) {
    throw std::invalid_argument("ids are not int64 [N]");
  }
  if (offsets_tensor.scalar_type() != ScalarType::Long || offsets_tensor.dim() != 1 || offsets_tensor.numel() < 1) {
    throw std::invalid_argument("offsets are not int64 [bags + 1]");
  }
  const Tensor ids = as_contiguous(ids_tensor), offsets = as_contiguous(offsets_tensor);
  std::optional<Tensor> weights;
  if (weights_tensor) {
    if (weights_tensor->scalar_type() != ScalarType::Float || weights_tensor->dim() != 1 ||
        weights_tensor->numel() != ids.numel()) {
      throw std::invalid_argument("weights are not float32 [N], one for each id");
    }
    weights = as_contiguous(*weights_tensor);
  }
  const OutDtype type = out_dtype(out);
  const int64_t count = offsets.numel() - 1;
  Tensor pooled = empty_beside(ids, {count, table.dim}, out);
  Tensor found = empty_beside(ids, {count}, ScalarType::Long);
  const Bags bags{
      static_cast<const int64_t*>(ids.const_data_ptr()),
      static_cast<const int64_t*>(offsets.const_data_ptr()),
      weights ? static_cast<const float*>(weights->const_data_ptr()) : nullptr,
      static_cast<uint8_t*>(pooled.mutable_data_ptr()),
      table.dim * element_bytes(type),
      static_cast<int64_t*>(found.mutable_data_ptr()),
      is_mean(mode)};
  check_offsets(bags.offsets, count, ids.numel());
  const RowFunctions functions = row_functions(table.dtype, type);
  const int64_t ids_a_bag = ids.numel() / (count > 0 ? count : 1) + 1;
  std::array<std::atomic<int64_t>, 3> totals{};
  parallel(0, count, 1024 / ids_a_bag + 1, [&](int64_t begin, int64_t end) {
    const Hits hits = pool(table, functions, bags, begin, end);
    for (size_t i = 0; i < hits.size(); ++i) totals[i] += hits[i];
  });
  Tensor hits = empty_beside(ids, {4}, ScalarType::Long);
  auto* counts = static_cast<int64_t*>(hits.mutable_data_ptr());
  for (size_t i = 0; i < totals.size(); ++i) counts[i] = totals[i];
  counts[3] = totals[1];
  return {pooled, found, hits};
}

}  // namespace

std::tuple<Tensor, Tensor> lookup_pooled(
    const Tensor& ids, const Tensor& offsets, const std::optional<Tensor>& weights, const Tensor& storage,
    const Tensor& layout, int64_t dim, const std::string& dtype, const std::string& mode, ScalarType out) {
  const TableView table(storage, storage, layout, dim, dtype);
  const auto [pooled, found, hits] = pooled_in(table, ids, offsets, weights, mode, out);
  return {pooled, found};
}

std::tuple<Tensor, Tensor, Tensor> lookup_pooled_tiered(
    const Tensor& ids, const Tensor& offsets, const std::optional<Tensor>& weights, const Tensor& storage,
    const Tensor& cold, const Tensor& layout, int64_t dim, const std::string& dtype, const std::string& mode,
    ScalarType out) {
  return pooled_in(TableView(storage, cold, layout, dim, dtype), ids, offsets, weights, mode, out);
}

}  // namespace embedding_store
