// What warp_emulator.h declares, of the launch that is under way.
#include "warp_emulator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "threads.h"

Dim threadIdx, blockIdx, blockDim, gridDim;

namespace embedding_store::warp {
namespace {

constexpr int kZeros = 64;  // bytes that `zeros` gives
alignas(kZeros) const uint8_t zero_bytes[2 * kZeros] = {};

// As the kernel's own lines, or warp.h's, ask for it.
void touch(const void* address, int64_t bytes, Access access) {
  if (reinterpret_cast<uintptr_t>(address) % std::min<int64_t>(bytes, 16) != 0) current->fail("a misaligned access");
  current->touch(address, bytes, access, false);
}

template <class T>
T add_to(T* address, T value) {
  current->wait();
  touch(address, sizeof *address, Access::kAtomic);
  const T was = *address;
  *address = was + value;
  return was;
}

}  // namespace

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "warp emulator: %s\n", what.c_str());
  std::abort();
}

Emulator::Emulator(const std::vector<Memory>& memory, uint64_t order) : order_(order) {
  for (const Memory& one : memory) places_.emplace_back(one);
  places_.emplace_back(Memory{"zeros", zero_bytes, sizeof zero_bytes, false});
}

Emulator::~Emulator() = default;

void Emulator::run(const char* name, const Grid& grid, const std::function<void()>& kernel) {
  for (Place& place : places_) {
    if (place.trail) place.trail->forget();
  }
  Launch launch(name, grid, kernel, &places_, &order_);
  current = &launch;
  launch.run();
  current = nullptr;
}

int64_t Emulator::bytes_read(const void* start) const {
  for (const Place& place : places_) {
    if (place.memory.start == start) return place.memory.bytes_read;
  }
  return 0;
}

const uint64_t* exchange(Step step, uint64_t value) { return current->exchange(step, value); }
int lane() { return current->lane(); }
void* shared_memory(const Line& line, size_t bytes) { return current->shared_memory(line, bytes); }

void read(void* into, const void* address, int64_t bytes, Access access) {
  touch(address, bytes, access);
  std::memcpy(into, address, bytes);
}

void write(void* address, const void* from, int64_t bytes) {
  touch(address, bytes, Access::kWrite);
  std::memcpy(address, from, bytes);
}

uint64_t compare_and_swap(uint64_t* address, uint64_t expected, uint64_t value) {
  current->wait();
  touch(address, sizeof *address, Access::kAtomic);
  return *address == expected ? std::exchange(*address, value) : *address;
}

uint64_t add(uint64_t* address, uint64_t value) { return add_to(address, value); }
void add(int* address, int value) { add_to(address, value); }

void prefetch(const uint8_t* address) { touch(address, 1, Access::kReadOnly); }
const uint8_t* zeros(uint32_t place) { return zero_bytes + place % 2 * kZeros; }

// A plain access, as the compiler's instrumentation for thread sanitizers reports it: plain_accesses.cpp.
void plain_access(const void* address, int64_t bytes, bool writes) {
  if (current == nullptr || !current->is_running()) return;
  current->touch(address, bytes, writes ? Access::kWrite : Access::kRead, true);
}

}  // namespace embedding_store::warp

void __syncthreads() { embedding_store::warp::current->barrier(false); }

int __syncthreads_or(int condition) { return embedding_store::warp::current->barrier(condition != 0) ? 1 : 0; }

unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  return embedding_store::warp::add_to(address, value);
}
