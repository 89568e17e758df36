// Who has touched which bytes while a kernel ran, and which two of them might have done so in the other order.
//
// Threads of different blocks are never ordered; those of a block are by its barriers, those of a warp by `sync`, too.
// Ballots and shuffles order no memory: CUDA promises that of barriers and __syncwarp alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace embedding_store::warp {

enum class Access : uint8_t {
  kRead,
  kReadOnly,  // through the read-only path: of what nobody may write while the kernel runs, whoever comes first
  kWrite,
  kAtomic,
};

// One of a launch, and how often it has waited for others.
struct Thread {
  uint32_t block;
  uint32_t warp;  // of all in the launch
  uint32_t lane;
  uint32_t syncs;     // of its warp, its block's barriers among them
  uint32_t barriers;  // of its block
};

// Lanes of a warp that have touched the same bytes of a word in the same way since the last sync.
struct Touch {
  Thread last;
  uint32_t lanes;
  Access access;
  uint8_t bytes;  // bit i: byte i
  uint32_t next;  // of the same word: its place, 0: none
};

// What is allowed of it.
enum class Sharing {
  kStrict,
  kContested,  // several may write the same place: somebody else writes it again in the end
  kOrdered,    // all: an order that is not known here sees to it
};

// What a launch does to a piece of memory.
class Trail {
 public:
  Trail(const void* start, int64_t bytes, bool contested);

  // A launch begins: whatever was before it, it sees.
  void forget();

  // An access, within the memory. What is in a race with it, if anything is.
  std::optional<Touch> note(const Thread& thread, const void* address, int64_t bytes, Access access);

 private:
  std::optional<Touch> note_word(uint32_t* head, const Thread& thread, uint8_t bytes, Access access);
  bool races(const Touch& before, const Thread& thread, Access access) const;

  uintptr_t first_word_;
  bool contested_;
  std::vector<uint32_t> heads_;  // of each word of 8 bytes the place of its first touch, 0: none
  std::vector<Touch> touches_;
};

// For a message: what was done and by whom.
std::string described(Access access, const Thread& thread, uint32_t lanes);

}  // namespace embedding_store::warp
