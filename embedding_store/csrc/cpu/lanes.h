// Sixteen floats and how they are loaded and stored, for the level of instructions this file is compiled for
// (ES_LEVEL: baseline, avx2 or avx512). Everything is static: code of one level must not be linked into another.
#pragma once

#include <cstdint>

#include "../common/decode.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace embedding_store {
namespace ES_LEVEL {

constexpr int kLanes = 16;

#if defined(__AVX512F__)

struct Lanes {
  __m512 values;
};

static inline Lanes load(const float* x) { return {_mm512_loadu_ps(x)}; }
static inline Lanes load(const Half* x) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)))};
}
static inline Lanes load(const Bfloat16* x) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))};
}
static inline Lanes load_bytes(__m128i q) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(q))}; }
static inline Lanes broadcast(float x) { return {_mm512_set1_ps(x)}; }
static inline Lanes multiply(Lanes a, Lanes b) { return {_mm512_mul_ps(a.values, b.values)}; }
static inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.values, b.values)}; }

static inline __m256i to_half(Lanes x) { return _mm512_cvtps_ph(x.values, _MM_FROUND_TO_NEAREST_INT); }
static inline __m256i to_bfloat16(Lanes x) {
  const __m512i bits = _mm512_castps_si512(x.values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x.values, x.values, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, _mm512_srli_epi32(rounded, 16), _mm512_set1_epi32(0x7fc0)));
}

static inline void store(Lanes x, float* out) { _mm512_storeu_ps(out, x.values); }
static inline void store(Lanes x, Half* out) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), to_half(x)); }
static inline void store(Lanes x, Bfloat16* out) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), to_bfloat16(x));
}
static inline void stream(Lanes x, float* out) { _mm512_stream_ps(out, x.values); }
static inline void stream(Lanes x, Half* out) { _mm256_stream_si256(reinterpret_cast<__m256i*>(out), to_half(x)); }
static inline void stream(Lanes x, Bfloat16* out) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(out), to_bfloat16(x));
}

#elif defined(__AVX2__)

struct Lanes {
  __m256 low, high;
};

static inline __m128i load16(const void* x) { return _mm_loadu_si128(static_cast<const __m128i*>(x)); }
static inline Lanes load(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
static inline Lanes load(const Half* x) { return {_mm256_cvtph_ps(load16(x)), _mm256_cvtph_ps(load16(x + 8))}; }
static inline __m256 from_bfloat16(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
static inline Lanes load(const Bfloat16* x) { return {from_bfloat16(load16(x)), from_bfloat16(load16(x + 8))}; }
static inline Lanes load_bytes(__m128i q) {
  const __m256i low = _mm256_cvtepu8_epi32(q), high = _mm256_cvtepu8_epi32(_mm_srli_si128(q, 8));
  return {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)};
}
static inline Lanes broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline Lanes multiply(Lanes a, Lanes b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
static inline Lanes add(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }

static inline __m256i to_half(Lanes x) {
  return _mm256_set_m128i(_mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT),
                          _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
}
static inline __m256i round_to_bfloat16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
}
static inline __m256i to_bfloat16(Lanes x) {
  const __m256i packed = _mm256_packus_epi32(round_to_bfloat16(x.low), round_to_bfloat16(x.high));
  return _mm256_permute4x64_epi64(packed, 0xd8);  // the pack works within 128 bits
}

static inline void store(Lanes x, float* out) {
  _mm256_storeu_ps(out, x.low);
  _mm256_storeu_ps(out + 8, x.high);
}
static inline void store(Lanes x, Half* out) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), to_half(x)); }
static inline void store(Lanes x, Bfloat16* out) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), to_bfloat16(x));
}
static inline void stream(Lanes x, float* out) {
  _mm256_stream_ps(out, x.low);
  _mm256_stream_ps(out + 8, x.high);
}
static inline void stream(Lanes x, Half* out) { _mm256_stream_si256(reinterpret_cast<__m256i*>(out), to_half(x)); }
static inline void stream(Lanes x, Bfloat16* out) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(out), to_bfloat16(x));
}

#endif

#if defined(__AVX2__)

static inline Lanes load_int8(const uint8_t* q) {
  return load_bytes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
}
static inline Lanes load_int4(const uint8_t* q) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(q));
  const __m128i mask = _mm_set1_epi8(15);
  return load_bytes(_mm_unpacklo_epi8(_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16(bytes, 4), mask)));
}

#else  // what any processor can do; the compiler vectorises some of it

struct Lanes {
  float values[kLanes];
};

template <class Function>
static inline Lanes each(const Function& function) {
  Lanes x;
  for (int i = 0; i < kLanes; ++i) x.values[i] = function(i);
  return x;
}

template <class T>
static inline Lanes load(const T* x) {
  return each([=](int i) { return to_float(x[i]); });
}
static inline Lanes load_int8(const uint8_t* q) {
  return each([=](int i) { return static_cast<float>(q[i]); });
}
static inline Lanes load_int4(const uint8_t* q) {
  return each([=](int i) { return static_cast<float>(int4_at(q, i)); });
}
static inline Lanes broadcast(float value) {
  return each([=](int) { return value; });
}
static inline Lanes multiply(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.values[i] * b.values[i]; });
}
static inline Lanes add(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.values[i] + b.values[i]; });
}
template <class T>
static inline void store(const Lanes& x, T* out) {
  for (int i = 0; i < kLanes; ++i) embedding_store::store(x.values[i], out + i);
}
template <class T>
static inline void stream(const Lanes& x, T* out) {
  store(x, out);
}

#endif

}  // namespace ES_LEVEL
}  // namespace embedding_store
