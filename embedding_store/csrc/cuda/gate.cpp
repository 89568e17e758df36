// The ops `enter` and `leave`: arguments checked, kernels launched on the current stream of the gate's device.
#include "gate.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <stdexcept>

#include "../common/gate.h"
#include "../common/tensors.h"
#include "ops.h"

namespace embedding_store::cuda {
namespace {

int64_t* gate_values(Tensor& gate) {
  if (!gate.is_cuda() || gate.scalar_type() != ScalarType::Long || gate.dim() != 1 || gate.numel() != kGateValues) {
    throw std::invalid_argument("gate is not an int64 tensor [3] on a CUDA device");
  }
  return static_cast<int64_t*>(gate.mutable_data_ptr());
}

void check_beside(const Tensor& tensor, const Tensor& gate, const char* message) {
  const bool beside = tensor.is_cuda() && tensor.get_device_index() == gate.get_device_index();
  if (!beside || tensor.scalar_type() != ScalarType::Long || !tensor.is_contiguous() || tensor.numel() < 1) {
    throw std::invalid_argument(message);
  }
}

cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  STD_CUDA_CHECK(cudaSetDevice(device));  // of this library's own runtime
  return static_cast<cudaStream_t>(stream);
}

}  // namespace

Tensor enter(Tensor gate, const Tensor& rows) {
  int64_t* values = gate_values(gate);
  check_beside(rows, gate, "rows are not a contiguous int64 tensor [2, N] on the device of the gate");
  if (rows.dim() != 2 || rows.size(0) != 2) throw std::invalid_argument("rows are not an int64 tensor [2, N]");
  const int device = gate.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int64_t count = rows.size(1);
  Tensor row = empty_beside(rows, {count + 1}, ScalarType::Long);
  launch_enter(
      values, static_cast<const int64_t*>(rows.const_data_ptr()), count,
      static_cast<int64_t*>(row.mutable_data_ptr()), current_stream(device));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return row;
}

void leave(Tensor gate, const Tensor& row) {
  int64_t* values = gate_values(gate);
  check_beside(row, gate, "row is not what enter gave: an int64 tensor [N + 1] on the device of the gate");
  const int device = gate.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const auto* numbers = static_cast<const int64_t*>(row.const_data_ptr());
  launch_leave(values, numbers + row.numel() - 1, current_stream(device));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace embedding_store::cuda
