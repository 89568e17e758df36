// Tensors made and brought into shape without the dispatcher, which is asked by name, and takes longer than a lookup of
// a few ids.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace embedding_store {

// The same tensor if it is contiguous, else a copy that is.
inline torch::stable::Tensor as_contiguous(const torch::stable::Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Contiguous and not filled, on the device of `beside`.
inline torch::stable::Tensor empty_beside(
    const torch::stable::Tensor& beside, const std::vector<int64_t>& shape, torch::headeronly::ScalarType type) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0; stride *= shape[i] > 1 ? shape[i] : 1) strides[i] = stride;
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(beside.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(beside.get(), &device_index));
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.data(), strides.data(), dtype, device_type, device_index, &made));
  return torch::stable::Tensor(made);
}

}  // namespace embedding_store
