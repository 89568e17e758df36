// A launch that is under way: its blocks, warps and threads, and whose turn it is.
#pragma once

#include <csetjmp>

#include <array>
#include <map>
#include <optional>

#include "warp_emulator.h"

namespace embedding_store::warp {

constexpr size_t kStackBytes = 64 << 10;

// Memory, and what the launch does to it unless that cannot write it.
struct Emulator::Place {
  Memory memory;
  std::optional<Trail> trail;

  explicit Place(const Memory& memory_) : memory(memory_) {
    if (memory.writable && memory.sharing != Sharing::kOrdered) {
      trail.emplace(memory.start, memory.bytes, memory.sharing == Sharing::kContested);
    }
  }

  bool contains(const char* address, int64_t bytes) const {
    const auto* start = static_cast<const char*>(memory.start);
    return address >= start && address + bytes <= start + memory.bytes;
  }
};

// Runs one thread after another, and is used again: to make one costs more than what a thread does.
struct Fibre {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool begun = false;
  jmp_buf at;
};

struct Block;

struct Warp {
  Block* block;
  uint32_t number;  // of all in the launch
  uint32_t first_thread;
  std::array<Fibre*, kLanes> fibres;
  uint32_t ready = kAllLanes;  // lanes that may go on
  uint32_t arrived = 0;        // lanes that wait for the others
  Step step{};                 // at this
  uint64_t steps = 0;
  uint64_t values[2][kLanes];  // of this step and the one before, which some lanes may not have read yet
  uint32_t syncs = 0;
};

struct Block {
  Dim index;
  uint32_t number;
  std::vector<Warp> warps;
  uint32_t left;  // threads that have not ended
  uint32_t arrived = 0;
  uint32_t barriers = 0;
  bool any[2] = {};
  struct Shared {
    std::unique_ptr<char[]> bytes;
    Emulator::Place place;
  };
  std::map<Line, Shared> shared;
};

// The one that is under way.
class Launch {
 public:
  Launch(const char* name, const Grid& grid, const std::function<void()>& kernel, std::vector<Emulator::Place>* places,
         uint64_t* order)
      : name_(name), grid_(grid), kernel_(kernel), places_(places), order_(order) {}

  void run();

  const uint64_t* exchange(Step step, uint64_t value);
  bool barrier(bool value);
  void wait();  // without a reason: others may go first
  void* shared_memory(const Line& line, size_t bytes);
  void touch(const void* address, int64_t bytes, Access access, bool plain);
  int lane() const { return lane_; }
  bool is_running() const { return warp_ != nullptr; }
  [[noreturn]] void fail(const std::string& what) const;

 private:
  uint32_t draw(uint64_t below);
  void begin(uint32_t number);
  Warp* choose();
  void turn(Warp* warp);
  void resume(Fibre* fibre);
  void suspend();
  static void enter();
  bool is_hosts(const char* address, int64_t bytes) const;
  bool touch_in(Emulator::Place* place, const char* address, int64_t bytes, Access access);

  const char* name_;
  const Grid grid_;
  const std::function<void()>& kernel_;
  std::vector<Emulator::Place>* places_;
  uint64_t* order_;
  std::vector<std::unique_ptr<Block>> blocks_;  // under way
  std::vector<Warp*> warps_;                    // of these
  uint32_t stay_ = 0;
  jmp_buf scheduler_;
  const char* frame_ = nullptr;  // of `run`: what the host gave the kernel is above it
  Warp* warp_ = nullptr;  // and the lane of it that is running
  int lane_ = 0;
};

extern Launch* current;  // null: none

}  // namespace embedding_store::warp
