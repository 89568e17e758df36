// Tensors made and brought into shape without the dispatcher, which is asked by name, and takes longer than a lookup of
// a few ids.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace embedding_store {

// A MemoryError in Python. Why torch gives no memory it does not tell those who speak its stable ABI.
class NoMemory : public std::bad_alloc {
 public:
  explicit NoMemory(int64_t bytes)
      : message_(std::to_string(bytes) + " bytes cannot be had for a lookup: free some memory, or ask for fewer ids at a "
                 "time; if there is enough, an error before this one has left the device unusable") {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// The same tensor if it is contiguous, else a copy that is.
inline torch::stable::Tensor as_contiguous(const torch::stable::Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor;
  try {
    return torch::stable::contiguous(tensor);
  } catch (const std::runtime_error&) {
    throw NoMemory(tensor.numel() * static_cast<int64_t>(tensor.element_size()));
  }
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
  const AOTITorchError error = aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.data(), strides.data(), dtype, device_type, device_index, &made);
  if (error == TORCH_SUCCESS) return torch::stable::Tensor(made);
  auto bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  for (const int64_t size : shape) bytes *= size;
  throw NoMemory(bytes);
}

}  // namespace embedding_store
