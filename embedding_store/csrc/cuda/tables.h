// What ops are given, checked, for their kernels: the device and its stream, tensors, tables. For the host alone.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "../common/names.h"
#include "../common/tensors.h"
#include "checked_layout.h"
#include "ops.h"

namespace embedding_store::cuda {

[[noreturn]] inline void refuse(const std::string& message) { throw std::invalid_argument(message); }

// Current while it lives: the device, so that a launch goes to it; its stream and its size.
class Device {
 public:
  explicit Device(const Tensor& ids) : guard_(ids.get_device_index()) {
    const int index = ids.get_device_index();
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    // The guard speaks to torch's CUDA runtime; this library has one of its own, and the thread may be new to it.
    STD_CUDA_CHECK(cudaSetDevice(index));
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, index));
  }

  cudaStream_t stream() const { return stream_; }
  int processors() const { return processors_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
  int processors_ = 0;
};

inline void check_ids(const Tensor& ids) {
  if (!ids.is_cuda() || ids.scalar_type() != ScalarType::Long) refuse("ids are not int64 on a CUDA device");
}

inline void check_beside(const Tensor& tensor, const Tensor& ids, ScalarType type, const std::string& name) {
  if (!tensor.is_cuda() || tensor.get_device_index() != ids.get_device_index()) {
    refuse(name + " is not on the device of the ids: move one of them");
  }
  if (tensor.scalar_type() != type || tensor.dim() != 1 || !tensor.is_contiguous()) {
    const std::string kind = type == ScalarType::Byte ? "uint8" : type == ScalarType::Long ? "int64" : "float32";
    refuse(name + " is not a contiguous " + kind + " tensor of one dimension");
  }
}

inline void check_bytes(const Tensor& tensor, const std::string& name) {
  if (tensor.scalar_type() != ScalarType::Byte || tensor.dim() != 1 || !tensor.is_contiguous()) {
    refuse(name + " is not a contiguous uint8 tensor of one dimension");
  }
}

// How a table's rows are stored.
struct RowType {
  Dtype dtype;
  int64_t dim;
};

// As the kernels take it, of a layout on the host, whose numbers are checked, or on the device, which they read there.
// `storage` is the device's address. Without `rows` nothing but the index is looked at.
inline TableView table_at(
    const Tensor& ids, const uint8_t* storage, const TableBytes& bytes, const Tensor& layout,
    const std::optional<RowType>& rows) {
  const bool on_host = layout.is_cpu();
  if (on_host && (layout.scalar_type() != ScalarType::Long || layout.dim() != 1 || !layout.is_contiguous())) {
    refuse("layout is not a contiguous int64 tensor of one dimension");
  }
  if (!on_host) check_beside(layout, ids, ScalarType::Long, "layout");
  if (rows && (rows->dim < 1 || rows->dim > kMaxDim)) {
    refuse("dim is " + std::to_string(rows->dim) + "; use 1 .. " + std::to_string(kMaxDim));
  }
  if (layout.numel() < kLayoutHeader || layout.numel() % 4 != 0) {
    refuse("layout has " + std::to_string(layout.numel()) + " values, not 8 + 4 * segments, nor 4 more");
  }
  if (layout.numel() > kLayoutValues) {
    refuse("layout has " + std::to_string(layout.numel()) + " values: a table on a CUDA device has 3 segments at most, "
           "2 with an overlay; load it with Snapshot.load(device), which joins them");
  }
  if (reinterpret_cast<uintptr_t>(storage) % kAccessBytes != 0) {
    refuse("storage does not begin at a multiple of 16 bytes: clone() it");
  }
  TableView table{};
  table.storage = storage;
  if (rows) table.row_bytes = row_bytes(rows->dtype, rows->dim);
  const auto* values = static_cast<const int64_t*>(layout.const_data_ptr());
  if (!on_host) {
    table.layout = values;
    table.layout_values = static_cast<int>(layout.numel());
    return table;
  }
  const LayoutCheck check(values, layout.numel(), bytes);
  if (rows) check.table(rows->dtype, rows->dim);
  else check.index();
  std::copy(values, values + layout.numel(), table.numbers.values);
  return table;
}

// `cold`: of a tiered table; its address is for the caller to set, on the device.
inline TableView table_view(
    const Tensor& ids, const Tensor& storage, const Tensor* cold, const Tensor& layout,
    const std::optional<RowType>& rows) {
  check_ids(ids);  // what else there is has to be where they are
  check_beside(storage, ids, ScalarType::Byte, "storage");
  TableBytes bytes{storage.numel(), std::nullopt};
  if (cold != nullptr) {
    check_bytes(*cold, "cold");
    bytes.cold = cold->numel();
  }
  return table_at(ids, static_cast<const uint8_t*>(storage.const_data_ptr()), bytes, layout, rows);
}

// Where the current device sees memory of the host.
inline const uint8_t* device_address(const Tensor& cold, const std::string& name) {
  check_bytes(cold, name);
  const void* address = cold.const_data_ptr();
  if (cold.numel() == 0) return nullptr;
  cudaPointerAttributes attributes{};
  STD_CUDA_CHECK(cudaPointerGetAttributes(&attributes, address));
  if (attributes.type == cudaMemoryTypeUnregistered || attributes.devicePointer == nullptr) {
    refuse(name + " is in memory that the device cannot read: give a pinned tensor, say " + name + ".pin_memory()");
  }
  if (reinterpret_cast<uintptr_t>(attributes.devicePointer) % kAccessBytes != 0) {
    refuse(name + " does not begin at a multiple of 16 bytes: clone() it and pin the copy");
  }
  return static_cast<const uint8_t*>(attributes.devicePointer);
}

}  // namespace embedding_store::cuda
