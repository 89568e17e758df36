// Arguments checked, results allocated, kernels launched on the current stream of the tensors' device.
#include "ops.h"

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "../common/index.h"
#include "../common/names.h"
#include "../common/tensors.h"
#include "launch.h"

namespace embedding_store::cuda {
namespace {

constexpr uintptr_t kAccessBytes = 16;  // the widest a lane reads at once; columns begin at multiples of 64

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

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

void check_beside(const Tensor& tensor, const Tensor& ids, ScalarType type, const std::string& name) {
  if (!tensor.is_cuda() || tensor.get_device_index() != ids.get_device_index()) {
    refuse(name + " is not on the device of the ids: move one of them");
  }
  if (tensor.scalar_type() != type || tensor.dim() != 1 || !tensor.is_contiguous()) {
    const std::string kind = type == ScalarType::Byte ? "uint8" : type == ScalarType::Long ? "int64" : "float32";
    refuse(name + " is not a contiguous " + kind + " tensor of one dimension");
  }
}

// A layout on the CPU, checked: the kernels trust it.
TableNumbers numbers_of(const Tensor& layout) {
  TableNumbers numbers{};
  const auto* values = static_cast<const int64_t*>(layout.const_data_ptr());
  std::copy(values, values + layout.numel(), numbers.values);
  const int64_t parts = values[kSegmentsAt] + (values[kOverlaidAt] != 0 ? 1 : 0);
  if (layout.numel() != kLayoutHeader + 4 * parts) {
    refuse("layout has " + std::to_string(layout.numel()) + " values, not 8 and 4 for each of the " +
           std::to_string(parts) + " segments and overlays that it names");
  }
  return numbers;
}

TableView table_view(const Tensor& ids, const Tensor& storage, const Tensor& layout, int64_t dim, Dtype dtype) {
  if (!ids.is_cuda() || ids.scalar_type() != ScalarType::Long) refuse("ids are not int64 on a CUDA device");
  check_beside(storage, ids, ScalarType::Byte, "storage");
  const bool on_host = layout.is_cpu();
  if (on_host && (layout.scalar_type() != ScalarType::Long || layout.dim() != 1 || !layout.is_contiguous())) {
    refuse("layout is not a contiguous int64 tensor of one dimension");
  }
  if (!on_host) check_beside(layout, ids, ScalarType::Long, "layout");
  if (dim < 1 || dim > kMaxDim) refuse("dim is " + std::to_string(dim) + "; use 1 .. " + std::to_string(kMaxDim));
  if (layout.numel() < kLayoutHeader || layout.numel() % 4 != 0) {
    refuse("layout has " + std::to_string(layout.numel()) + " values, not 8 + 4 * segments, nor 4 more");
  }
  if (layout.numel() > kLayoutValues) {
    refuse("layout has " + std::to_string(layout.numel()) + " values: a table on a CUDA device has 3 segments at most, "
           "2 with an overlay; load it with Snapshot.load(device), which joins them");
  }
  const auto* bytes = static_cast<const uint8_t*>(storage.const_data_ptr());
  if (reinterpret_cast<uintptr_t>(bytes) % kAccessBytes != 0) {
    refuse("storage does not begin at a multiple of 16 bytes: clone() it");
  }
  TableView table{};
  table.storage = bytes;
  table.row_bytes = row_bytes(dtype, dim);
  if (on_host) {
    table.numbers = numbers_of(layout);
  } else {
    table.layout = static_cast<const int64_t*>(layout.const_data_ptr());
    table.layout_values = static_cast<int>(layout.numel());
  }
  return table;
}

// Where the device sees the cold rows.
const uint8_t* device_address(const Tensor& cold) {
  if (cold.scalar_type() != ScalarType::Byte || cold.dim() != 1 || !cold.is_contiguous()) {
    refuse("cold is not a contiguous uint8 tensor of one dimension");
  }
  const void* address = cold.const_data_ptr();
  if (cold.numel() == 0) return nullptr;
  cudaPointerAttributes attributes{};
  STD_CUDA_CHECK(cudaPointerGetAttributes(&attributes, address));
  if (attributes.type == cudaMemoryTypeUnregistered || attributes.devicePointer == nullptr) {
    refuse("cold is in memory that the device cannot read: give a pinned tensor, say cold.pin_memory()");
  }
  if (reinterpret_cast<uintptr_t>(attributes.devicePointer) % kAccessBytes != 0) {
    refuse("cold does not begin at a multiple of 16 bytes: clone() it and pin the copy");
  }
  return static_cast<const uint8_t*>(attributes.devicePointer);
}

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

}  // namespace

std::tuple<Tensor, Tensor> lookup(
    const Tensor& ids, const Tensor& storage, const Tensor& layout, int64_t dim, const std::string& dtype,
    ScalarType out) {
  const Dtype stored = dtype_named(dtype);
  const OutDtype type = out_dtype(out);
  const TableView table = table_view(ids, storage, layout, dim, stored);
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
  TableView table = table_view(ids, storage, layout, dim, stored);
  const Device device(ids);  // before the first call of CUDA, which would begin a context on another GPU
  table.cold = device_address(cold);
  check_beside(counters, ids, ScalarType::Long, "counters");
  if (counters.numel() != 3) refuse("counters has " + std::to_string(counters.numel()) + " values, not 3");
  const Lookup call = prepared(table, ids, dim, out);
  if (call.arguments.count > 0) {
    auto* counts = static_cast<unsigned long long*>(counters.mutable_data_ptr());
    launch_lookup_tiered(call.arguments, stored, type, counts, device.processors(), device.stream());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {call.vectors, call.found};
}

std::tuple<Tensor, Tensor> lookup_pooled(
    const Tensor& ids_tensor, const Tensor& offsets_tensor, const std::optional<Tensor>& weights_tensor,
    const Tensor& storage, const Tensor& layout, int64_t dim, const std::string& dtype, const std::string& mode,
    ScalarType out) {
  const Dtype stored = dtype_named(dtype);
  const TableView table = table_view(ids_tensor, storage, layout, dim, stored);
  if (mode != "sum" && mode != "mean") refuse("mode is '" + mode + "'; use sum or mean");
  const Device device(ids_tensor);
  const OutDtype type = out_dtype(out);
  const Tensor ids = torch::stable::contiguous(ids_tensor);
  const Tensor offsets = torch::stable::contiguous(offsets_tensor);
  if (ids.dim() != 1) refuse("ids have " + std::to_string(ids.dim()) + " dimensions, not one");
  check_beside(offsets, ids, ScalarType::Long, "offsets");
  if (offsets.numel() < 1) refuse("offsets are empty: give one more than there are bags");
  std::optional<Tensor> weights;
  if (weights_tensor) {
    weights = torch::stable::contiguous(*weights_tensor);
    check_beside(*weights, ids, ScalarType::Float, "weights");
    if (weights->numel() != ids.numel()) refuse("weights are not one for each id");
  }
  const int64_t bags = offsets.numel() - 1;
  Tensor pooled = torch::stable::new_empty(ids, {bags, dim}, out);
  Tensor found = torch::stable::new_empty(ids, {bags}, ScalarType::Long);
  if (bags == 0) return {pooled, found};
  const PooledArguments arguments{
      table,
      static_cast<const int64_t*>(ids.const_data_ptr()),
      ids.numel(),
      static_cast<const int64_t*>(offsets.const_data_ptr()),
      bags,
      weights ? static_cast<const float*>(weights->const_data_ptr()) : nullptr,
      static_cast<int>(dim),
      mode == "mean",
      type,
      static_cast<uint8_t*>(pooled.mutable_data_ptr()),
      static_cast<int64_t*>(found.mutable_data_ptr())};
  launch_pooled(arguments, stored, device.processors(), device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {pooled, found};
}

}  // namespace embedding_store::cuda
