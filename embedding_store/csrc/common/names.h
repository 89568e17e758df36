// Dtypes by the names and types that ops are given.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <stdexcept>
#include <string>

#include "decode.h"

namespace embedding_store {

// "float32", ... as in Python. Throws std::invalid_argument.
inline Dtype dtype_named(const std::string& name) {
  if (name == "float32") return Dtype::kFloat32;
  if (name == "float16") return Dtype::kFloat16;
  if (name == "bfloat16") return Dtype::kBfloat16;
  if (name == "int8") return Dtype::kInt8;
  if (name == "int4") return Dtype::kInt4;
  throw std::invalid_argument("dtype is '" + name + "'; use one of float32, float16, bfloat16, int8, int4");
}

// What lookups can give: float32, float16 or bfloat16. Throws std::invalid_argument.
inline OutDtype out_dtype(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  if (type == ScalarType::Float) return OutDtype::kFloat32;
  if (type == ScalarType::Half) return OutDtype::kFloat16;
  if (type == ScalarType::BFloat16) return OutDtype::kBfloat16;
  throw std::invalid_argument("out is none of torch.float32, torch.float16, torch.bfloat16");
}

}  // namespace embedding_store
