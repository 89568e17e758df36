// Tensors that ops are given, checked.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/tensors.h"

namespace embedding_store {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor contiguous_ids(const Tensor& ids) {
  if (ids.scalar_type() != ScalarType::Long) throw std::invalid_argument("ids are not int64");
  return as_contiguous(ids);
}

// `tensor` as contiguous int64, one for each of `count`; `of` names these.
inline Tensor contiguous_longs(const Tensor& tensor, int64_t count, const std::string& name, const std::string& of) {
  if (tensor.scalar_type() != ScalarType::Long || tensor.numel() != count) {
    throw std::invalid_argument(name + " is not int64, one for each " + of);
  }
  return as_contiguous(tensor);
}

inline const int64_t* longs(const Tensor& contiguous) {
  return static_cast<const int64_t*>(contiguous.const_data_ptr());
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }

}  // namespace embedding_store
