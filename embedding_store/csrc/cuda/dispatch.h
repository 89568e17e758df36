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

// `function` called with what a lookup's kernel is compiled for: the rows' dtype, that of the output, and how many
// values a lane takes at once: 16 bytes of output where that divides the dimension, else one of kNarrower, or 1.
template <int... kNarrower, class Function>
void with_lookup(Dtype dtype, OutDtype out, int dim, const Function& function) {
  with_dtype(dtype, [&](auto dtype_constant) {
    with_out(out, [&](auto out_constant) {
      constexpr int kWidest = 16 / kOutBytes<decltype(out_constant)::value>;
      with_values<kWidest, kNarrower...>(dim, [&](auto values) { function(dtype_constant, out_constant, values); });
    });
  });
}

// The same for a pooled lookup's: the rows' dtype, and `values`, one of those that pooled_values gives for it.
template <class Function>
void with_pooled(Dtype dtype, int values, const Function& function) {
  with_dtype(dtype, [&](auto dtype_constant) {
    constexpr Dtype kDtype = decltype(dtype_constant)::value;
    if constexpr (kDtype == Dtype::kInt4) {
      if (values == 16) return function(dtype_constant, std::integral_constant<int, 16>{});
    }
    if constexpr (kDtype != Dtype::kFloat32) {
      if (values == 8) return function(dtype_constant, std::integral_constant<int, 8>{});
    }
    if (values == 4) return function(dtype_constant, std::integral_constant<int, 4>{});
    if (values == 2) return function(dtype_constant, std::integral_constant<int, 2>{});
    return function(dtype_constant, std::integral_constant<int, 1>{});
  });
}

}  // namespace embedding_store::cuda
