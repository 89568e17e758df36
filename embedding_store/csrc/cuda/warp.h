// What the kernels need of a warp. They (*_kernel.h, and what these include) use nothing else of CUDA but their own
// place in the grid, barriers of a block and atomicAdd, so that a test without a GPU runs the same code:
// tests/embedding_store/native/emulator has all of it, too.
//
// Only `sync`, and a block's barrier, order what lanes write and others read in shared memory: ballots and shuffles do
// not, and what is read with `load` or one of its kind nobody may write in the same launch.
#pragma once

#include <cstdint>

#if !defined(__CUDACC__)
#include "warp_emulator.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define ES_DEVICE __device__ __forceinline__
#define ES_UNROLL _Pragma("unroll")
// `name`, of this type, in a block's shared memory.
#define ES_SHARED(name, ...) __shared__ embedding_store::warp::Same<__VA_ARGS__> name

namespace embedding_store::warp {

template <class T>
using Same = T;

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

// Bit i: whether lane i's condition holds. All 32 lanes must call it, as for every function that speaks of lanes.
ES_DEVICE uint32_t ballot(bool condition) { return __ballot_sync(kAllLanes, condition); }

// The value that `lane` gave.
ES_DEVICE int32_t shuffle(int32_t value, int lane) { return __shfl_sync(kAllLanes, value, lane); }
ES_DEVICE float shuffle(float value, int lane) { return __shfl_sync(kAllLanes, value, lane); }
ES_DEVICE int64_t shuffle(int64_t value, int lane) {
  return __shfl_sync(kAllLanes, static_cast<long long>(value), lane);
}
ES_DEVICE uint64_t shuffle(uint64_t value, int lane) {
  return __shfl_sync(kAllLanes, static_cast<unsigned long long>(value), lane);
}
ES_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(kAllLanes, value, mask); }

// What lanes have written to shared memory before it, all see after it.
ES_DEVICE void sync() { __syncwarp(); }

ES_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }
ES_DEVICE int lowest_bit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }  // -1 without one

// The same value, but not to the compiler: what is computed of it in a loop stays there and takes no register outside.
template <class T>  // of 32 bits
ES_DEVICE T opaque(T value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Words of a chunk of memory, read or written at once: alignment as wide as the chunk, 16 bytes at most.
template <int kBytes>
struct Words {
  static_assert(kBytes == 1 || kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes % 16 == 0, "no such access");
  uint32_t words[(kBytes + 3) / 4];
};

// Memory that nobody writes while the kernel runs, through the read-only path.
template <int kBytes>
ES_DEVICE Words<kBytes> load(const uint8_t* address) {
  Words<kBytes> value;
  if constexpr (kBytes == 1) value.words[0] = __ldg(address);
  if constexpr (kBytes == 2) value.words[0] = __ldg(reinterpret_cast<const unsigned short*>(address));
  if constexpr (kBytes == 4) value.words[0] = __ldg(reinterpret_cast<const unsigned int*>(address));
  if constexpr (kBytes == 8) {
    const uint2 pair = __ldg(reinterpret_cast<const uint2*>(address));
    value.words[0] = pair.x, value.words[1] = pair.y;
  }
  ES_UNROLL
  for (int i = 0; i < kBytes / 16; ++i) {
    const uint4 quad = __ldg(reinterpret_cast<const uint4*>(address) + i);
    value.words[4 * i] = quad.x, value.words[4 * i + 1] = quad.y;
    value.words[4 * i + 2] = quad.z, value.words[4 * i + 3] = quad.w;
  }
  return value;
}

// As load, of a table's bytes, which few other accesses share: they pass the first cache by. Volatile, so that the
// compiler leaves them where they are: before the first use of any.
#define ES_LOAD "ld.global.nc.L1::no_allocate."
template <int kBytes>
ES_DEVICE Words<kBytes> load_past(const uint8_t* address) {
  Words<kBytes> value;
  const uint64_t from = __cvta_generic_to_global(address);
  uint32_t* w = value.words;
  if constexpr (kBytes == 1) asm volatile(ES_LOAD "u8 %0, [%1];" : "=r"(w[0]) : "l"(from));
  if constexpr (kBytes == 2) asm volatile(ES_LOAD "u16 %0, [%1];" : "=r"(w[0]) : "l"(from));
  if constexpr (kBytes == 4) asm volatile(ES_LOAD "u32 %0, [%1];" : "=r"(w[0]) : "l"(from));
  if constexpr (kBytes == 8) asm volatile(ES_LOAD "v2.u32 {%0, %1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "l"(from));
  ES_UNROLL
  for (int i = 0; i < kBytes / 16; ++i, w += 4) {
    asm volatile(ES_LOAD "v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "l"(from + 16 * i));
  }
  return value;
}

// As load_past of 16 bytes; zeros, and no access, unless it is `wanted`. Of these no more than six at once: the
// condition of each takes one of seven predicates until its value is used.
ES_DEVICE Words<16> load_if(bool wanted, const uint8_t* address) {
  Words<16> value = {};
  uint32_t* w = value.words;
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0; @p " ES_LOAD "v4.u32 {%0, %1, %2, %3}, [%4]; }"
               : "+r"(w[0]), "+r"(w[1]), "+r"(w[2]), "+r"(w[3])
               : "l"(__cvta_generic_to_global(address)), "r"(static_cast<uint32_t>(wanted)));
  return value;
}
#undef ES_LOAD

// 64 bytes of zeros to read instead of what is not there, without a condition on the load. `place`, any number, spreads
// them over the second cache, one of whose slices would else be asked by all.
constexpr uint32_t kZeroBytes = 1 << 14;
static __device__ uint4 zero_bytes[kZeroBytes / 16];
ES_DEVICE const uint8_t* zeros(uint32_t place) {
  return reinterpret_cast<const uint8_t*>(zero_bytes) + place * 64u % kZeroBytes;
}

// What a word was; it is `value` from then on if it was `expected`. Lanes need not call it together.
ES_DEVICE uint64_t compare_and_swap(uint64_t* address, uint64_t expected, uint64_t value) {
  static_assert(sizeof(unsigned long long) == 8, "the type that CUDA has it for");
  return atomicCAS(reinterpret_cast<unsigned long long*>(address), expected, value);
}

// What a word was, before `value` was added. Lanes need not call it together.
ES_DEVICE uint64_t add(uint64_t* address, uint64_t value) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value));
}

ES_DEVICE void add(int* address, int value) { atomicAdd(address, value); }

ES_DEVICE void store(uint64_t* address, uint64_t value) { *address = value; }

template <int kBytes>  // 16 at most
ES_DEVICE void store(uint8_t* address, const Words<kBytes>& value) {
  const uint32_t* w = value.words;
  if constexpr (kBytes == 1) *address = static_cast<uint8_t>(w[0]);
  if constexpr (kBytes == 2) *reinterpret_cast<unsigned short*>(address) = static_cast<unsigned short>(w[0]);
  if constexpr (kBytes == 4) *reinterpret_cast<uint32_t*>(address) = w[0];
  if constexpr (kBytes == 8) *reinterpret_cast<uint2*>(address) = make_uint2(w[0], w[1]);
  if constexpr (kBytes == 16) *reinterpret_cast<uint4*>(address) = make_uint4(w[0], w[1], w[2], w[3]);
}

ES_DEVICE uint64_t load(const uint64_t* address) { return __ldg(reinterpret_cast<const unsigned long long*>(address)); }
ES_DEVICE int64_t load(const int64_t* address) { return __ldg(reinterpret_cast<const long long*>(address)); }
ES_DEVICE float load(const float* address) { return __ldg(address); }

// Ask for a line ahead of its use.
ES_DEVICE void prefetch(const uint8_t* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(address)));
}

// Read and written once, so the first to leave the cache.
ES_DEVICE int64_t load_once(const int64_t* address) { return __ldcs(reinterpret_cast<const long long*>(address)); }
ES_DEVICE void store_once(bool* address, bool value) { __stcs(reinterpret_cast<unsigned char*>(address), value); }
ES_DEVICE void store_once(int64_t* address, int64_t value) { __stcs(reinterpret_cast<long long*>(address), value); }

template <int kBytes>
ES_DEVICE void store_once(uint8_t* address, const Words<kBytes>& value) {
  if constexpr (kBytes == 2) __stcs(reinterpret_cast<unsigned short*>(address), value.words[0]);
  if constexpr (kBytes == 4) __stcs(reinterpret_cast<unsigned int*>(address), value.words[0]);
  if constexpr (kBytes == 8) __stcs(reinterpret_cast<uint2*>(address), make_uint2(value.words[0], value.words[1]));
  ES_UNROLL
  for (int i = 0; i < kBytes / 16; ++i) {
    const uint32_t* w = value.words + 4 * i;
    __stcs(reinterpret_cast<uint4*>(address) + i, make_uint4(w[0], w[1], w[2], w[3]));
  }
}

ES_DEVICE float half_to_float(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// Two values in one word, the first in its low half; to the nearest, ties to even.
ES_DEVICE uint32_t to_halves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return __half_as_ushort(__low2half(pair)) | static_cast<uint32_t>(__half_as_ushort(__high2half(pair))) << 16;
}

ES_DEVICE uint32_t to_bfloat16s(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return __bfloat16_as_ushort(__low2bfloat16(pair)) |
         static_cast<uint32_t>(__bfloat16_as_ushort(__high2bfloat16(pair))) << 16;
}

}  // namespace embedding_store::warp

#endif
