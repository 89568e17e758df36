// Kernels with a mistake each, and some that only look as if they had one: what test_emulator_races.py runs.
#include "../../../../embedding_store/csrc/cuda/warp.h"

using namespace embedding_store;

namespace {

alignas(16) uint64_t words[8];
alignas(16) const uint64_t constants[2] = {1, 2};
uint64_t unknown;  // to the emulator
const std::unique_ptr<uint64_t> elsewhere(new uint64_t(7));

struct Pair {
  uint64_t first, second;
};
Pair pairs[2];

struct Kernel {
  const char* name;
  int warps;  // of a block
  std::function<void(int block, int warp, int lane)> body;
};

void store_half(int half, uint32_t value) {
  warp::store<4>(reinterpret_cast<uint8_t*>(words) + 4 * half, {{value}});
}

const Kernel kKernels[] = {
    {"two blocks write the same value", 1, [](int, int, int lane) { if (lane == 0) words[0] = 7; }},
    {"two blocks write a struct, one of them in part", 1,
     [](int block, int, int lane) {
       if (lane != 0) return;
       if (block == 0) pairs[0] = Pair{1, 2};
       else pairs[0].second = 3;
     }},
    {"a block reads a struct that another writes", 1,
     [](int block, int, int lane) {
       if (lane != 0) return;
       if (block == 0) pairs[0].second = 3;
       else pairs[1] = pairs[0];
     }},
    {"a block reads what another writes", 1,
     [](int block, int, int lane) {
       if (lane != 0) return;
       if (block == 0) words[0] = 7;
       else words[1] = words[0];
     }},
    {"a plain read of what is changed atomically", 1,
     [](int block, int, int lane) {
       if (block == 0) warp::add(words, 1);
       else if (lane == 0) words[1] = words[0];
     }},
    {"a plain write of what is changed atomically", 1,
     [](int block, int, int lane) {
       if (block == 0) warp::add(words, 1);
       else if (lane == 0) warp::store(words, 1);
     }},
    {"bytes that overlap", 1,
     [](int block, int, int lane) {
       if (lane != 0) return;
       if (block == 0) store_half(1, 7);
       else warp::store(words, 7);
     }},
    {"warps of a block without a barrier", 2,
     [](int block, int warp, int lane) {
       if (warp == 0 && lane == 0) words[block] = 7;
       warp::sync();
       if (warp == 1 && lane == 0 && words[block] != 7) words[4 + block] = 1;
     }},
    {"lanes between which there is but a shuffle", 1,
     [](int block, int, int lane) {
       if (lane == 0) words[block] = 7;
       warp::shuffle(lane, 0);
       if (lane == 1 && words[block] != 7) words[4 + block] = 1;
     }},
    {"lanes that read before one writes", 1,
     [](int block, int, int lane) {
       const bool zero = words[block] == 0;
       warp::ballot(true);
       if (lane == 0 && zero) words[block] = 7;
     }},
    {"the read-only path to what the same lane has written", 1,
     [](int block, int, int lane) {
       if (lane == 0) warp::store(words + block, 7);
       __syncthreads();
       if (lane == 0) warp::load(words + block);
     }},
    {"the read-only path to what another changes atomically", 1,
     [](int block, int, int lane) {
       if (lane != 0) return;
       if (block == 0) warp::add(words, 1);
       else warp::load_past<8>(reinterpret_cast<const uint8_t*>(words));
     }},
    {"a lane leaves the others", 1, [](int, int, int lane) { if (lane != 5) warp::ballot(true); }},
    {"lanes are at different steps", 1,
     [](int, int, int lane) {
       if (lane == 5) warp::sync();
       else warp::ballot(true);
     }},
    {"a warp leaves its block", 2, [](int, int warp, int) { if (warp == 0) __syncthreads(); }},
    {"a plain write elsewhere", 1, [](int, int, int lane) { if (lane == 0) unknown = 1; }},
    {"a plain read elsewhere", 1, [](int, int, int lane) { if (lane == 0) words[0] = *elsewhere; }},
    {"a write to inputs", 1,
     [](int, int, int) { warp::store(const_cast<uint64_t*>(constants), 1); }},
    {"a misaligned access", 1,
     [](int, int, int) { warp::load_past<8>(reinterpret_cast<const uint8_t*>(constants) + 4); }},

    {"right: a sync between lanes", 1,
     [](int block, int, int lane) {
       if (lane == 0) words[block] = 7;
       warp::sync();
       if (words[block] != 7) words[4 + block] = 1;
     }},
    {"right: a barrier between warps", 2,
     [](int block, int warp, int lane) {
       if (warp == 0 && lane == 0) words[block] = 7;
       __syncthreads();
       if (words[block] != 7) words[4 + block] = 1;
     }},
    {"right: atomics alone", 2, [](int, int, int) { warp::add(words, 1); }},
    {"right: neighbours in a word", 1, [](int block, int, int lane) { if (lane == 0) store_half(block, 7); }},
    {"right: reads alone", 2,
     [](int, int, int lane) { if (words[0] + warp::load(constants) + warp::load(words) == 99) words[lane % 8] = 1; }},
    {"right: shared memory of the same line of two files", 1,
     [](int, int, int) {
       if (warp::shared_memory({"one.h", 1}, 4) == warp::shared_memory({"other.h", 1}, 8)) warp::fail("one for two");
     }},
    {"right: shared memory of two blocks", 2,
     [](int, int warp, int lane) {
       ES_SHARED(shared, int[2]);
       if (lane == 0) shared[warp] = warp;
       __syncthreads();
       if (shared[1 - warp] != 1 - warp) words[lane % 8] = 1;
     }},
};

}  // namespace

extern "C" {

const char* name_of(int number) {
  return number < static_cast<int>(sizeof kKernels / sizeof *kKernels) ? kKernels[number].name : nullptr;
}

// One of them, in two launches of two blocks. Ends the process if it is wrong.
void run_kernel(int number, uint64_t order) {
  const Kernel& kernel = kKernels[number];
  warp::Emulator emulator(
      {{"words", words, sizeof words, true}, {"pairs", pairs, sizeof pairs, true},
       {"constants", constants, sizeof constants, false}},
      order);
  for (int launch = 0; launch < 2; ++launch) {
    emulator.launch("kernel", {{2, 1}, kernel.warps * warp::kLanes}, [&] {
      const auto thread = static_cast<int>(threadIdx.x);
      kernel.body(static_cast<int>(blockIdx.x), thread / warp::kLanes, thread % warp::kLanes);
    });
  }
}

// What two launches do to a word, that of one launch after the other being right: 0 if all was as it should be.
int write_and_read(uint64_t order) {
  warp::Emulator emulator({{"words", words, sizeof words, true}}, order);
  emulator.launch("write", {{2, 1}, warp::kLanes}, [&] { if (threadIdx.x == 0) words[blockIdx.x] = 10 + blockIdx.x; });
  emulator.launch("read", {{2, 1}, warp::kLanes}, [&] {
    if (threadIdx.x == 0) words[2 + blockIdx.x] = warp::load(words + 1 - blockIdx.x);
  });
  return words[2] == 11 && words[3] == 10 ? 0 : 1;
}

// Which of three blocks, and then which of a warp's lanes, was first, second and so on: int64 [3], int64 [32].
void emulate_turns(uint64_t order, int64_t* blocks, int64_t* lanes) {
  uint64_t next[2] = {};
  warp::Emulator emulator(
      {{"next", next, sizeof next, true}, {"blocks", blocks, 3 * 8, true}, {"lanes", lanes, 32 * 8, true}}, order);
  emulator.launch("turns", {{3, 1}, warp::kLanes}, [&] {
    if (threadIdx.x == 0) blocks[warp::add(next, 1)] = blockIdx.x;
    if (blockIdx.x == 0) lanes[warp::add(next + 1, 1)] = threadIdx.x;
  });
}

}  // extern "C"
