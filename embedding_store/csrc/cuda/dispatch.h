// From values known at run time to template arguments.
#pragma once

#include <type_traits>

#include "../common/decode.h"

namespace embedding_store::cuda {

// `function` called with std::integral_constant<Dtype, ...>.
template <class Function>
void with_dtype(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kFloat32: return function(std::integral_constant<Dtype, Dtype::kFloat32>{});
    case Dtype::kFloat16: return function(std::integral_constant<Dtype, Dtype::kFloat16>{});
    case Dtype::kBfloat16: return function(std::integral_constant<Dtype, Dtype::kBfloat16>{});
    case Dtype::kInt8: return function(std::integral_constant<Dtype, Dtype::kInt8>{});
    case Dtype::kInt4: return function(std::integral_constant<Dtype, Dtype::kInt4>{});
  }
}

template <class Function>
void with_out(OutDtype out, const Function& function) {
  switch (out) {
    case OutDtype::kFloat32: return function(std::integral_constant<OutDtype, OutDtype::kFloat32>{});
    case OutDtype::kFloat16: return function(std::integral_constant<OutDtype, OutDtype::kFloat16>{});
    case OutDtype::kBfloat16: return function(std::integral_constant<OutDtype, OutDtype::kBfloat16>{});
  }
}

// The widest of these numbers of values that divides the dimension, else 1.
template <int... kWidths, class Function>
void with_values(int dim, const Function& function) {
  bool called = false;
  ((!called && dim % kWidths == 0 ? (function(std::integral_constant<int, kWidths>{}), called = true) : false), ...);
  if (!called) function(std::integral_constant<int, 1>{});
}

}  // namespace embedding_store::cuda
