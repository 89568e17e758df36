// Arguments checked, results allocated, kernels launched on the current stream of the tensors' device.
#include "ops.h"

#include <limits>
#include <vector>

#include "launch.h"
#include "tables.h"

namespace embedding_store::cuda {
namespace {

// Results and what a kernel is given to fill them.
struct Lookup {
  Tensor ids, vectors, found;
  LookupArguments arguments;
};

Lookup prepared(const TableView& table, const Tensor& ids_tensor, int64_t dim, ScalarType out) {
  const Tensor ids = as_contiguous(ids_tensor);
  std::vector<int64_t> shape(ids.sizes().begin(), ids.sizes().end());
  Tensor found = empty_beside(ids, shape, ScalarType::Bool);
  shape.push_back(dim);
  Tensor vectors = empty_beside(ids, shape, out);
  LookupArguments arguments{};
  arguments.table = table;
  arguments.ids = static_cast<const int64_t*>(ids.const_data_ptr());
  arguments.count = ids.numel();
  arguments.dim = static_cast<int>(dim);
  arguments.vectors = static_cast<uint8_t*>(vectors.mutable_data_ptr());
  arguments.found = static_cast<bool*>(found.mutable_data_ptr());
  return {ids, vectors, found, arguments};
}

// How many rows of a table are in the host's memory, or more: of a layout on the device, nobody knows here.
int64_t cold_rows(const TableView& table) {
  if (table.cold == nullptr) return 0;
  if (table.layout != nullptr) return std::numeric_limits<int64_t>::max();
  int64_t rows = 0;
  for (int64_t number = 1; number < table.numbers.values[kSegmentsAt]; ++number) {
    rows += table.numbers.values[kLayoutHeader + 4 * number + 3];
  }
  return rows;
}

// What both pooled ops are given besides the table.
struct Bags {
  const Tensor& ids;
  const Tensor& offsets;
  const std::optional<Tensor>& weights;
  int64_t dim;
  Dtype dtype;
  const std::string& mode;
  ScalarType out;
};

// Pooled vectors and how many ids of each bag were found; `hits`, int64 [kCounts], if given, = what is counted of tiers.
std::tuple<Tensor, Tensor> pooled_in(const Device& device, const TableView& table, const Bags& bags, Tensor* hits) {
  if (bags.mode != "sum" && bags.mode != "mean") refuse("mode is '" + bags.mode + "'; use sum or mean");
  if (bags.ids.dim() != 1) refuse("ids have " + std::to_string(bags.ids.dim()) + " dimensions, not one");
  const OutDtype type = out_dtype(bags.out);
  const Tensor ids = as_contiguous(bags.ids), offsets = as_contiguous(bags.offsets);
  check_beside(offsets, ids, ScalarType::Long, "offsets");
  if (offsets.numel() < 1) refuse("offsets are empty: give one more than there are bags");
  std::optional<Tensor> weights;
  if (bags.weights) {
    weights = as_contiguous(*bags.weights);
    check_beside(*weights, ids, ScalarType::Float, "weights");
    if (weights->numel() != ids.numel()) refuse("weights are not one for each id");
  }
  PooledArguments arguments{};
  arguments.table = table;
  arguments.ids = static_cast<const int64_t*>(ids.const_data_ptr());
  arguments.count = ids.numel();
  arguments.offsets = static_cast<const int64_t*>(offsets.const_data_ptr());
  arguments.bags = offsets.numel() - 1;
  if (weights) arguments.weights = static_cast<const float*>(weights->const_data_ptr());
  arguments.dim = static_cast<int>(bags.dim);
  arguments.mean = bags.mode == "mean";
  arguments.out = type;
  Tensor pooled = empty_beside(ids, {arguments.bags, bags.dim}, bags.out);
  Tensor found = empty_beside(ids, {arguments.bags}, ScalarType::Long);
  arguments.pooled = static_cast<uint8_t*>(pooled.mutable_data_ptr());
  arguments.found = static_cast<int64_t*>(found.mutable_data_ptr());
  if (arguments.bags == 0) {
    const std::string ids_there = std::to_string(arguments.count);
    if (arguments.count > 0) refuse("offsets do not rise from 0 to the number of ids, " + ids_there);
    if (hits != nullptr) torch::stable::zero_(*hits);
    return {pooled, found};
  }
  if (hits != nullptr) arguments.hits = static_cast<int64_t*>(hits->mutable_data_ptr());
  arguments.plan = pooled_plan(arguments.count, arguments.bags, arguments.dim, bags.dtype, device.processors());
  // Done with when the stream gives the memory to others.
  Tensor between = empty_beside(ids, {between_bytes(arguments.plan, bags.dim)}, ScalarType::Byte);
  place_between(static_cast<uint8_t*>(between.mutable_data_ptr()), &arguments);
  const int64_t cold = hits != nullptr ? cold_rows(table) : 0, staging = staging_bytes(arguments, bags.dtype, cold);
  std::optional<Tensor> staged;
  if (staging > 0) {
    staged = empty_beside(ids, {staging}, ScalarType::Byte);
    auto* memory = static_cast<uint8_t*>(staged->mutable_data_ptr());
    launch_staging(&arguments, bags.dtype, cold, memory, device.processors(), device.stream());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  launch_pooled(arguments, bags.dtype, device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {pooled, found};
}

}  // namespace

std::tuple<Tensor, Tensor> lookup(
    const Tensor& ids, const Tensor& storage, const Tensor& layout, int64_t dim, const std::string& dtype,
    ScalarType out) {
  const Dtype stored = dtype_named(dtype);
  const OutDtype type = out_dtype(out);
  const TableView table = table_view(ids, storage, nullptr, layout, RowType{stored, dim});
  const Device device(ids);
  const Lookup call = prepared(table, ids, dim, out);
  if (call.arguments.count > 0) {
    launch_lookup(call.arguments, stored, type, device.processors(), device.stream());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {call.vectors, call.found};
}

std::tuple<Tensor, Tensor> lookup_tiered(
    const Tensor& ids, const Tensor& storage, const Tensor& cold, const Tensor& layout, int64_t dim,
    const std::string& dtype, ScalarType out, Tensor counters) {
  const Dtype stored = dtype_named(dtype);
  const OutDtype type = out_dtype(out);
  TableView table = table_view(ids, storage, &cold, layout, RowType{stored, dim});
  const Device device(ids);  // before the address is asked for
  table.cold = device_address(cold, "cold");
  check_beside(counters, ids, ScalarType::Long, "counters");
  if (counters.numel() != 4) refuse("counters has " + std::to_string(counters.numel()) + " values, not 4");
  const Lookup call = prepared(table, ids, dim, out);
  if (call.arguments.count > 0) {
    auto* counts = static_cast<unsigned long long*>(counters.mutable_data_ptr());
    const int64_t words = cold_rows(table) > 0 ? tiered_scratch_words(call.arguments.count) : 0;
    Tensor scratch = empty_beside(call.ids, {words}, ScalarType::Long);
    auto* claims = words > 0 ? static_cast<uint64_t*>(scratch.mutable_data_ptr()) : nullptr;
    launch_lookup_tiered(call.arguments, stored, type, counts, claims, device.processors(), device.stream());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {call.vectors, call.found};
}

std::tuple<Tensor, Tensor> lookup_pooled(
    const Tensor& ids, const Tensor& offsets, const std::optional<Tensor>& weights, const Tensor& storage,
    const Tensor& layout, int64_t dim, const std::string& dtype, const std::string& mode, ScalarType out) {
  const Dtype stored = dtype_named(dtype);
  const TableView table = table_view(ids, storage, nullptr, layout, RowType{stored, dim});
  const Device device(ids);
  return pooled_in(device, table, {ids, offsets, weights, dim, stored, mode, out}, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> lookup_pooled_tiered(
    const Tensor& ids, const Tensor& offsets, const std::optional<Tensor>& weights, const Tensor& storage,
    const Tensor& cold, const Tensor& layout, int64_t dim, const std::string& dtype, const std::string& mode,
    ScalarType out) {
  const Dtype stored = dtype_named(dtype);
  TableView table = table_view(ids, storage, &cold, layout, RowType{stored, dim});
  const Device device(ids);  // before the address is asked for
  table.cold = device_address(cold, "cold");
  Tensor hits = empty_beside(ids, {kCounts}, ScalarType::Long);
  const auto [pooled, found] = pooled_in(device, table, {ids, offsets, weights, dim, stored, mode, out}, &hits);
  return {pooled, found, hits};
}

Tensor locate(const Tensor& ids_tensor, const Tensor& storage, const Tensor& layout) {
  check_ids(ids_tensor);
  const Device device(ids_tensor);  // before the address is asked for
  const bool on_host = storage.is_cpu();  // the cold part of a tiered table, which has the index
  const uint8_t* address = on_host ? device_address(storage, "storage") : nullptr;
  const TableBytes bytes{storage.numel(), storage.numel()};
  TableView table = on_host ? table_at(ids_tensor, address, bytes, layout, std::nullopt)
                            : table_view(ids_tensor, storage, nullptr, layout, std::nullopt);
  table.cold = address;
  const Tensor ids = as_contiguous(ids_tensor);
  const std::vector<int64_t> shape(ids.sizes().begin(), ids.sizes().end());
  Tensor locations = empty_beside(ids, shape, ScalarType::Long);
  LocateArguments arguments{};
  arguments.table = table;
  arguments.ids = static_cast<const int64_t*>(ids.const_data_ptr());
  arguments.count = ids.numel();
  arguments.locations = static_cast<int64_t*>(locations.mutable_data_ptr());
  if (arguments.count == 0) return locations;
  launch_locate(arguments, device.processors(), device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return locations;
}

}  // namespace embedding_store::cuda
