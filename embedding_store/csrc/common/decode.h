// From stored elements to numbers: the five dtypes, one value at a time. Compiled for the host and for CUDA.
//
// The vectorised loops in cpu/rows.cpp and the kernels in cuda/ give the same bits: a product and a sum, rounded
// separately, which is what plain PyTorch computes. (Host code is compiled with -ffp-contract=off.)
#pragma once

#include <cstdint>
#include <cstring>

#include "index.h"

namespace embedding_store {

enum class Dtype { kFloat32, kFloat16, kBfloat16, kInt8, kInt4 };
enum class OutDtype { kFloat32, kFloat16, kBfloat16 };

struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

ES_HOST_DEVICE bool is_quantised(Dtype dtype) { return dtype == Dtype::kInt8 || dtype == Dtype::kInt4; }

// Bytes of one stored vector.
ES_HOST_DEVICE int64_t row_bytes(Dtype dtype, int64_t dim) {
  switch (dtype) {
    case Dtype::kFloat32: return dim * 4;
    case Dtype::kFloat16:
    case Dtype::kBfloat16: return dim * 2;
    case Dtype::kInt8: return dim;
    default: return (dim + 1) / 2;
  }
}

template <OutDtype kOut>
constexpr int kOutBytes = kOut == OutDtype::kFloat32 ? 4 : 2;

ES_HOST_DEVICE int64_t element_bytes(OutDtype dtype) { return dtype == OutDtype::kFloat32 ? 4 : 2; }

ES_HOST_DEVICE float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

ES_HOST_DEVICE uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

ES_HOST_DEVICE float to_float(float value) { return value; }
ES_HOST_DEVICE float to_float(Bfloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }

ES_HOST_DEVICE float to_float(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  if (magnitude >= 0x7c00u << 13) return from_bits(sign | magnitude | 0x7f800000u);  // infinity, NaN
  // The exponent's bias changes by 112; multiplying by 2^112 does so for subnormal numbers, too.
  return from_bits(sign | to_bits(from_bits(magnitude) * from_bits(239u << 23)));
}

// To the nearest, ties to even.
ES_HOST_DEVICE void store(float value, float* out) { *out = value; }

ES_HOST_DEVICE void store(float value, Bfloat16* out) {
  const uint32_t bits = to_bits(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = nan ? 0x7fc0u : static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

ES_HOST_DEVICE void store(float value, Half* out) {
  const uint32_t sign = to_bits(value) >> 16 & 0x8000u;
  const uint32_t magnitude = to_bits(value) & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the bits wanted, rounded, at the end of the sum's significand.
    half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - (112u << 23) + 0x0fffu + (magnitude >> 13 & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

ES_HOST_DEVICE float dequantise(uint32_t q, float scale, float offset) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(__fmul_rn(scale, static_cast<float>(q)), offset);
#else
  return scale * static_cast<float>(q) + offset;
#endif
}

ES_HOST_DEVICE uint32_t int4_at(const uint8_t* row, int64_t i) { return row[i >> 1] >> (i & 1) * 4 & 15u; }

// Value i of a stored vector as float32. `scale` and `offset` count for quantised rows only.
ES_HOST_DEVICE float value_at(Dtype dtype, const uint8_t* row, int64_t i, float scale, float offset) {
  switch (dtype) {
    case Dtype::kFloat32: return reinterpret_cast<const float*>(row)[i];
    case Dtype::kFloat16: return to_float(reinterpret_cast<const Half*>(row)[i]);
    case Dtype::kBfloat16: return to_float(reinterpret_cast<const Bfloat16*>(row)[i]);
    case Dtype::kInt8: return dequantise(row[i], scale, offset);
    default: return dequantise(int4_at(row, i), scale, offset);
  }
}

}  // namespace embedding_store
