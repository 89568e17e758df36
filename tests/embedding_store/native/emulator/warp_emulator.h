// A warp on the host: 32 fibres that take turns, so that the kernels' bodies run without a GPU. A lane that leaves the
// others at a ballot or a shuffle, or reads or writes outside of the memory it was given, ends the process with a
// message. Between two ballots lanes run in another order each time: which of them is first to claim a row, no kernel
// may take for granted.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "../../../../embedding_store/csrc/common/decode.h"

#define ES_DEVICE inline
#define ES_UNROLL

namespace embedding_store::warp {

constexpr int kLanes = 32;
constexpr int kZeros = 64;  // bytes that `zeros` gives

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "warp emulator: %s\n", what);
  std::abort();
}

// What kernels may touch, as the caller allocated it.
struct Memory {
  const void* start;
  int64_t bytes;
  bool writable;
  int64_t bytes_read = 0;
};

class Emulator {
 public:
  explicit Emulator(std::vector<Memory> memory);

  // Call `body(lane)` in 32 lanes to their ends.
  void run(const std::function<void(int)>& body) {
    current() = this;
    body_ = body;
    for (int i = 0; i < kLanes; ++i) {
      Lane& lane = lanes_[i];
      lane = Lane{};
      lane.stack = std::make_unique<char[]>(kStackBytes);
      getcontext(&lane.context);
      lane.context.uc_stack.ss_sp = lane.stack.get();
      lane.context.uc_stack.ss_size = kStackBytes;
      lane.context.uc_link = &main_;
      makecontext(&lane.context, &Emulator::enter, 0);
    }
    for (int left = kLanes; left > 0;) {
      order_ = order_ * 1664525u + 1013904223u;
      const uint32_t first = order_ >> 16, step = order_ >> 24 | 1u;  // an odd step comes to all lanes
      for (uint32_t turn = 0; turn < kLanes; ++turn) {
        running_ = static_cast<int>((first + turn * step) % kLanes);
        Lane& lane = lanes_[running_];
        if (lane.done) continue;
        swapcontext(&main_, &lane.context);
        left -= lane.done;
      }
    }
    for (const Lane& lane : lanes_) {
      if (lane.step != lanes_[0].step) fail("a lane left the others");
    }
  }

  // All lanes' values of this step. Each lane gives one and waits until the others have given theirs.
  const uint64_t* exchange(uint64_t value) {
    Lane& lane = lanes_[running_];
    const int64_t step = ++lane.step;
    uint64_t* values = values_[step % 2];
    values[running_] = value;
    swapcontext(&lane.context, &main_);
    for (const Lane& other : lanes_) {
      if (other.step != step && other.step != step + 1) fail("lanes are at different steps");
    }
    return values;
  }

  int lane() const { return running_; }

  void check(const void* address, int64_t bytes, bool write) {
    const auto* first = static_cast<const char*>(address);
    for (Memory& m : memory_) {
      const auto* start = static_cast<const char*>(m.start);
      if (first >= start && first + bytes <= start + m.bytes && (m.writable || !write)) {
        if (!write) m.bytes_read += bytes;
        return;
      }
    }
    fail(write ? "a write outside of the outputs" : "a read outside of the inputs");
  }

  // From the memory that starts there, by all lanes until now.
  int64_t bytes_read(const void* start) const {
    for (const Memory& m : memory_) {
      if (m.start == start) return m.bytes_read;
    }
    return 0;
  }

  static Emulator*& current() {
    static Emulator* emulator = nullptr;
    return emulator;
  }

 private:
  struct Lane {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    int64_t step = 0;
    bool done = false;
  };

  static constexpr size_t kStackBytes = 64 << 10;

  static void enter() {
    Emulator& self = *current();
    self.body_(self.running_);
    self.lanes_[self.running_].done = true;
  }

  std::vector<Memory> memory_;
  std::function<void(int)> body_;
  ucontext_t main_;
  Lane lanes_[kLanes];
  uint64_t values_[2][kLanes];
  int running_ = 0;
  uint32_t order_ = 1;  // the same for each emulator: a test that fails does so again
};

inline const uint8_t* zeros(uint32_t place) {
  alignas(kZeros) static const uint8_t bytes[2 * kZeros] = {};
  return bytes + place % 2 * kZeros;
}

inline Emulator::Emulator(std::vector<Memory> memory) : memory_(std::move(memory)) {
  memory_.push_back({zeros(0), kZeros, false});
  memory_.push_back({zeros(1), kZeros, false});
}

inline Emulator& emulator() { return *Emulator::current(); }

template <class T>
void check_access(const T* address, int64_t bytes, bool write = false) {
  const int64_t alignment = bytes > 16 ? 16 : bytes;
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) fail("a misaligned access");
  emulator().check(address, bytes, write);
}

inline uint32_t ballot(bool condition) {
  const uint64_t* values = emulator().exchange(condition);
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(values[i]) << i;
  return bits;
}

template <class T>
T shuffle(T value, int lane) {
  if (lane < 0 || lane >= kLanes) fail("a shuffle from no lane");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = emulator().exchange(bits)[lane];
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float shuffle_xor(float value, int mask) { return shuffle(value, emulator().lane() ^ mask); }

template <class T>
T opaque(T value) {
  return value;
}

inline void sync() { emulator().exchange(0); }

inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }
inline int lowest_bit(uint32_t bits) { return __builtin_ffs(static_cast<int>(bits)) - 1; }

template <int kBytes>
struct Words {
  uint32_t words[(kBytes + 3) / 4];
};

template <int kBytes>
Words<kBytes> load(const uint8_t* address) {
  check_access(address, kBytes);
  Words<kBytes> value = {};
  std::memcpy(value.words, address, kBytes);
  return value;
}

template <int kBytes>
Words<kBytes> load_past(const uint8_t* address) {
  return load<kBytes>(address);
}

inline Words<16> load_if(bool wanted, const uint8_t* address) {
  return wanted ? load<16>(address) : Words<16>{{0, 0, 0, 0}};  // what an entry of id 0 and row 0 would be
}

inline int64_t load(const int64_t* address) {
  check_access(address, 8);
  return *address;
}

inline uint64_t load(const uint64_t* address) {
  check_access(address, 8);
  return *address;
}

inline void store(uint64_t* address, uint64_t value) {
  check_access(address, 8, true);
  *address = value;
}

template <int kBytes>
void store(uint8_t* address, const Words<kBytes>& value) {
  check_access(address, kBytes, true);
  std::memcpy(address, value.words, kBytes);
}

// Lanes change only at ballots and shuffles: what they do between is atomic.
inline uint64_t compare_and_swap(uint64_t* address, uint64_t expected, uint64_t value) {
  const uint64_t was = load(address);
  if (was == expected) store(address, value);
  return was;
}

inline void add(int* address, int value) {
  check_access(address, 4, true);
  *address += value;
}

inline uint64_t add(uint64_t* address, uint64_t value) {
  const uint64_t was = load(address);
  store(address, was + value);
  return was;
}

inline float load(const float* address) {
  check_access(address, 4);
  return *address;
}

inline int64_t load_once(const int64_t* address) { return load(address); }
inline void prefetch(const uint8_t* address) { emulator().check(address, 1, false); }

inline void store_once(bool* address, bool value) {
  check_access(address, 1, true);
  *address = value;
}

inline void store_once(int64_t* address, int64_t value) {
  check_access(address, 8, true);
  *address = value;
}

template <int kBytes>
void store_once(uint8_t* address, const Words<kBytes>& value) {
  store<kBytes>(address, value);
}

inline float half_to_float(uint32_t bits) { return to_float(Half{static_cast<uint16_t>(bits)}); }

template <class T>
uint32_t pair_of(float low, float high) {
  T halves[2];
  store(low, &halves[0]);
  store(high, &halves[1]);
  return halves[0].bits | static_cast<uint32_t>(halves[1].bits) << 16;
}

inline uint32_t to_halves(float low, float high) { return pair_of<Half>(low, high); }
inline uint32_t to_bfloat16s(float low, float high) { return pair_of<Bfloat16>(low, high); }

}  // namespace embedding_store::warp
