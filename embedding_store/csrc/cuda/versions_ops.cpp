// lookup_versions and lookup_history on CUDA: each id in some of many tables.
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <string>
#include <vector>

#include "../common/index.h"
#include "launch.h"
#include "ops.h"
#include "tables.h"

namespace embedding_store::cuda {
namespace {

std::vector<TableView> checked_tables(
    const Tensor& ids, const std::vector<Tensor>& storages, const std::vector<Tensor>& layouts, const RowType& rows) {
  if (storages.empty() || storages.size() != layouts.size()) {
    refuse("storages and layouts are not one or more tensors each, as many as the other");
  }
  std::vector<TableView> tables;
  for (size_t i = 0; i < storages.size(); ++i) {
    tables.push_back(table_view(ids, storages[i], nullptr, layouts[i], rows));
  }
  return tables;
}

// The numbers of a tensor that is to have `count` of them, one for each `of`, on the device of the ids.
Tensor checked_longs(
    const Tensor& tensor, const Tensor& ids, int64_t count, const std::string& name, const std::string& of) {
  if (tensor.scalar_type() != ScalarType::Long || tensor.numel() != count) {
    refuse(name + " is not int64, one for each " + of);
  }
  if (!tensor.is_cuda() || tensor.get_device_index() != ids.get_device_index()) {
    refuse(name + " is not on the device of the ids: move one of them");
  }
  return as_contiguous(tensor);
}

const int64_t* longs(const Tensor& tensor) { return static_cast<const int64_t*>(tensor.const_data_ptr()); }

// What a kernel is told of the tables, in the device's memory: their addresses, then those numbers that are not there
// yet. Freed by the stream when the kernel is done.
class Described {
 public:
  Described(const std::vector<TableView>& tables, const Tensor& ids, cudaStream_t stream)
      : count_(static_cast<int64_t>(tables.size())),
        row_bytes_(tables[0].row_bytes),
        block_(empty_beside(ids, {count_ * kBytes}, ScalarType::Byte)) {
    refuse_captures(stream);
    const size_t views_bytes = tables.size() * sizeof(VersionView);
    std::vector<uint8_t> bytes(tables.size() * kBytes);
    auto* start = static_cast<uint8_t*>(block_.mutable_data_ptr());
    for (size_t i = 0; i < tables.size(); ++i) {
      const size_t at = views_bytes + i * sizeof(TableNumbers);
      const void* numbers = tables[i].layout != nullptr ? static_cast<const void*>(tables[i].layout) : start + at;
      const VersionView view{tables[i].storage, static_cast<const TableNumbers*>(numbers)};
      std::memcpy(bytes.data() + i * sizeof view, &view, sizeof view);
      std::memcpy(bytes.data() + at, &tables[i].numbers, sizeof(TableNumbers));
    }
    // From pageable memory: staged, and so read, before it returns, unless the device reads it where it lies (Grace).
    STD_CUDA_CHECK(cudaMemcpyAsync(start, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, stream));
    int unstaged = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(
        &unstaged, cudaDevAttrPageableMemoryAccessUsesHostPageTables, ids.get_device_index()));
    if (unstaged != 0) STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  }

  VersionTables tables() const {
    return {static_cast<const VersionView*>(block_.const_data_ptr()), count_, row_bytes_};
  }

 private:
  static constexpr int64_t kBytes = sizeof(VersionView) + sizeof(TableNumbers);  // of a table

  static void refuse_captures(cudaStream_t stream) {
    cudaStreamCaptureStatus status{};
    STD_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
    if (status != cudaStreamCaptureStatusNone) {
      refuse("the tables' addresses are copied from the host: look up in versions outside of a graph's capture");
    }
  }

  int64_t count_, row_bytes_;
  Tensor block_;
};

}  // namespace

std::tuple<Tensor, Tensor> lookup_versions(
    const Tensor& ids_tensor, const Tensor& choice_tensor, const std::vector<Tensor>& storages,
    const std::vector<Tensor>& layouts, int64_t dim, const std::string& dtype, ScalarType out) {
  const Dtype stored = dtype_named(dtype);
  const OutDtype type = out_dtype(out);
  const std::vector<TableView> tables = checked_tables(ids_tensor, storages, layouts, RowType{stored, dim});
  const Device device(ids_tensor);
  const Tensor choice = checked_longs(choice_tensor, ids_tensor, ids_tensor.numel(), "choice", "id");
  const Tensor ids = as_contiguous(ids_tensor);
  std::vector<int64_t> shape(ids.sizes().begin(), ids.sizes().end());
  Tensor found = empty_beside(ids, shape, ScalarType::Bool);
  shape.push_back(dim);
  Tensor vectors = empty_beside(ids, shape, out);
  if (ids.numel() == 0) return {vectors, found};
  const Described described(tables, ids, device.stream());
  VersionsArguments arguments{};
  arguments.tables = described.tables();
  arguments.ids = longs(ids);
  arguments.choice = longs(choice);
  arguments.count = ids.numel();
  arguments.dim = static_cast<int>(dim);
  arguments.vectors = static_cast<uint8_t*>(vectors.mutable_data_ptr());
  arguments.found = static_cast<bool*>(found.mutable_data_ptr());
  launch_versions(arguments, stored, type, device.processors(), device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {vectors, found};
}

std::tuple<Tensor, Tensor, Tensor> lookup_history(
    const Tensor& ids_tensor, const Tensor& timestamps_tensor, const Tensor& newest_tensor,
    const Tensor& as_of_tensor, const Tensor& numbers_tensor, const std::vector<Tensor>& storages,
    const std::vector<Tensor>& layouts, int64_t k, int64_t dim, const std::string& dtype, ScalarType out) {
  if (k < 1 || k > kMostPlaces) refuse("k is " + std::to_string(k) + "; use 1 .. " + std::to_string(kMostPlaces));
  const Dtype stored = dtype_named(dtype);
  const OutDtype type = out_dtype(out);
  const std::vector<TableView> tables = checked_tables(ids_tensor, storages, layouts, RowType{stored, dim});
  const Device device(ids_tensor);
  const int64_t count = ids_tensor.numel(), versions = as_of_tensor.numel();
  const Tensor timestamps = checked_longs(timestamps_tensor, ids_tensor, count, "timestamps", "id");
  const Tensor newest = checked_longs(newest_tensor, ids_tensor, count, "newest", "id");
  const Tensor as_of = checked_longs(as_of_tensor, ids_tensor, versions, "as_of", "version");
  const Tensor numbers = checked_longs(numbers_tensor, ids_tensor, versions, "numbers", "version");
  const Tensor ids = as_contiguous(ids_tensor);
  std::vector<int64_t> shape(ids.sizes().begin(), ids.sizes().end());
  shape.push_back(k);
  Tensor mask = empty_beside(ids, shape, ScalarType::Bool);
  Tensor ages = empty_beside(ids, shape, ScalarType::Long);
  shape.push_back(dim);
  Tensor vectors = empty_beside(ids, shape, out);
  if (count == 0) return {vectors, mask, ages};
  const Described described(tables, ids, device.stream());
  HistoryArguments arguments{};
  arguments.tables = described.tables();
  arguments.ids = longs(ids);
  arguments.timestamps = longs(timestamps);
  arguments.newest = longs(newest);
  arguments.count = count;
  arguments.as_of = longs(as_of);
  arguments.numbers = longs(numbers);
  arguments.versions = versions;
  arguments.k = static_cast<int>(k);
  arguments.dim = static_cast<int>(dim);
  arguments.vectors = static_cast<uint8_t*>(vectors.mutable_data_ptr());
  arguments.mask = static_cast<bool*>(mask.mutable_data_ptr());
  arguments.ages = static_cast<int64_t*>(ages.mutable_data_ptr());
  launch_history(arguments, stored, type, device.processors(), device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {vectors, mask, ages};
}

}  // namespace embedding_store::cuda
