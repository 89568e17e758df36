// A device on the host, so that the kernels run without a GPU: a launch's threads are fibres that take turns. These end
// the process with a message: an access outside of the memory that the launch was given, or a misaligned one; a thread
// that leaves the others at a ballot, a shuffle or a barrier; two accesses of which either might have come first while
// one of them writes (races.h).
//
// Warps of several blocks are under way at once. Which one goes on is drawn whenever one waits for its lanes, and before
// every atomic; so is the order of its lanes. Everything is drawn from one number: a test that fails does so again.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../../../../embedding_store/csrc/common/decode.h"
#include "races.h"

#define ES_DEVICE inline
#define ES_UNROLL
#define ES_SHARED(name, ...) \
  auto& name = *static_cast<warp::Same<__VA_ARGS__>*>( \
      warp::shared_memory({__FILE__, __LINE__}, sizeof(warp::Same<__VA_ARGS__>)))

// What else of CUDA is in a kernel's own lines.
#define __global__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct Dim {
  unsigned x, y;
};
extern Dim threadIdx, blockIdx, blockDim, gridDim;
void __syncthreads();
int __syncthreads_or(int condition);
unsigned long long atomicAdd(unsigned long long* address, unsigned long long value);

namespace embedding_store::warp {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

template <class T>
using Same = T;

[[noreturn]] void fail(const std::string& what);

// What kernels may touch, as the caller allocated it.
struct Memory {
  const char* name;
  const void* start;
  int64_t bytes;
  bool writable;
  Sharing sharing = Sharing::kStrict;
  int64_t bytes_read = 0;
};

struct Grid {
  Dim blocks;
  int threads;  // of a block
};

class Emulator {
 public:
  // `order`: what all is drawn from.
  Emulator(const std::vector<Memory>& memory, uint64_t order);
  ~Emulator();

  // Call `kernel()` in all threads of a grid to their ends. `name`: for messages.
  template <class Kernel>
  void launch(const char* name, const Grid& grid, const Kernel& kernel) {
    run(name, grid, std::cref(kernel));  // not copied: what it has of the caller's stays on the stack
  }

  // From the memory that starts there, by all launches until now.
  int64_t bytes_read(const void* start) const;

  struct Place;

 private:
  void run(const char* name, const Grid& grid, const std::function<void()>& kernel);

  std::vector<Place> places_;
  uint64_t order_;
};

// What lanes do together. All 32 wait until each has given its value, which the result has.
enum class Step { kBallot, kShuffle, kSync };
const uint64_t* exchange(Step step, uint64_t value);

int lane();

// A block's own memory that is declared in this line of a file.
using Line = std::pair<std::string_view, int>;
void* shared_memory(const Line& line, size_t bytes);

// Checked and noted; alignment as wide as the access, 16 bytes at most.
void read(void* into, const void* address, int64_t bytes, Access access);
void write(void* address, const void* from, int64_t bytes);

uint64_t compare_and_swap(uint64_t* address, uint64_t expected, uint64_t value);
uint64_t add(uint64_t* address, uint64_t value);
void add(int* address, int value);

void prefetch(const uint8_t* address);
const uint8_t* zeros(uint32_t place);

inline uint32_t ballot(bool condition) {
  const uint64_t* values = exchange(Step::kBallot, condition);
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(values[i]) << i;
  return bits;
}

template <class T>
T shuffle(T value, int lane) {
  if (lane < 0 || lane >= kLanes) fail("a shuffle from no lane");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(Step::kShuffle, bits)[lane];
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float shuffle_xor(float value, int mask) { return shuffle(value, lane() ^ mask); }

template <class T>
T opaque(T value) {
  return value;
}

inline void sync() { exchange(Step::kSync, 0); }

inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }
inline int lowest_bit(uint32_t bits) { return __builtin_ffs(static_cast<int>(bits)) - 1; }

template <int kBytes>
struct Words {
  uint32_t words[(kBytes + 3) / 4];
};

template <int kBytes>
Words<kBytes> load(const uint8_t* address) {
  Words<kBytes> value = {};
  read(value.words, address, kBytes, Access::kReadOnly);
  return value;
}

template <int kBytes>
Words<kBytes> load_past(const uint8_t* address) {
  return load<kBytes>(address);
}

inline Words<16> load_if(bool wanted, const uint8_t* address) {
  return wanted ? load<16>(address) : Words<16>{{0, 0, 0, 0}};  // what an entry of id 0 and row 0 would be
}

template <class T>
T value_of(const T* address, Access access) {
  T value;
  read(&value, address, sizeof value, access);
  return value;
}

inline int64_t load(const int64_t* address) { return value_of(address, Access::kReadOnly); }
inline uint64_t load(const uint64_t* address) { return value_of(address, Access::kReadOnly); }
inline float load(const float* address) { return value_of(address, Access::kReadOnly); }
inline int64_t load_once(const int64_t* address) { return value_of(address, Access::kRead); }

inline void store(uint64_t* address, uint64_t value) { write(address, &value, sizeof value); }

template <int kBytes>
void store(uint8_t* address, const Words<kBytes>& value) {
  write(address, value.words, kBytes);
}

inline void store_once(bool* address, bool value) { write(address, &value, sizeof value); }
inline void store_once(int64_t* address, int64_t value) { write(address, &value, sizeof value); }

template <int kBytes>
void store_once(uint8_t* address, const Words<kBytes>& value) {
  write(address, value.words, kBytes);
}

inline float half_to_float(uint32_t bits) { return to_float(Half{static_cast<uint16_t>(bits)}); }

template <class T>
uint32_t pair_of(float low, float high) {
  T halves[2];
  embedding_store::store(low, &halves[0]);
  embedding_store::store(high, &halves[1]);
  return halves[0].bits | static_cast<uint32_t>(halves[1].bits) << 16;
}

inline uint32_t to_halves(float low, float high) { return pair_of<Half>(low, high); }
inline uint32_t to_bfloat16s(float low, float high) { return pair_of<Bfloat16>(low, high); }

}  // namespace embedding_store::warp
