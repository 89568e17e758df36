// Which of the ids of a batch reads a cold row for all that ask for it: a hash table of the rows, filled as they come.
#pragma once

#include "../common/index.h"
#include "arguments.h"
#include "warp.h"

namespace embedding_store::cuda {

// A claim is a row's location, of which kMaxParts segments take 42 bits, and the position, in the batch, of the id that
// came first. It is never kEmpty, whose location would be of one segment more.
constexpr int kPositionBits = 22;
constexpr int64_t kMostPositions = int64_t{1} << kPositionBits;  // ids of a batch: what more there are is another one
static_assert(kMaxParts < 4 && kRowBits + 2 + kPositionBits == 64, "all locations differ in the bits that a claim has");

// With fewer ids no row is claimed: to clear the table and to launch one kernel more takes a GPU some 5 us, in which the
// bus brings 500 rows of 512 bytes. (Counted, not measured.)
constexpr int64_t kLeastPositions = 2048;

struct ClaimSlots {
  uint64_t* slots;    // [capacity], kEmpty at first; null: every id reads its row
  uint64_t capacity;  // more than there are ids
};

struct Claims : ClaimSlots {
  uint64_t* repeat_count;  // how many ids repeat a row, less one: the word after the slots, cleared as they are
  uint64_t* repeats;       // [ids]: position << 32 | position of the id that reads the row
};

inline int64_t slots_for(int64_t ids) { return 2 * ids; }

// Of a batch, in memory of claim_words(ids) words.
inline Claims claims_in(uint64_t* words, int64_t ids) {
  const int64_t capacity = slots_for(ids);
  return {{words, static_cast<uint64_t>(capacity)}, words + capacity, words + capacity + 1};
}

inline int64_t claim_words(int64_t ids) { return slots_for(ids) + 1 + ids; }
inline size_t cleared_bytes(const Claims& claims) { return (claims.capacity + 1) * sizeof(uint64_t); }

// The position of the id that reads this row: `position`, unless another has come first. Lanes go their own ways here.
ES_DEVICE uint32_t claim(const ClaimSlots& claims, uint64_t location, uint32_t position) {
  uint64_t slot = multiply_high(mix64(location), claims.capacity);
  for (;;) {
    const uint64_t there = warp::compare_and_swap(claims.slots + slot, kEmpty, location << kPositionBits | position);
    if (there == kEmpty) return position;
    if (there >> kPositionBits == location) return static_cast<uint32_t>(there) & ((1u << kPositionBits) - 1);
    slot = slot + 1 == claims.capacity ? 0 : slot + 1;
  }
}

// Note the lanes that repeat a row, one after another wherever the warps come together; how many they are.
ES_DEVICE int note_repeats(const Claims& claims, bool repeats, uint32_t position, uint32_t reader, int lane) {
  const uint32_t all = warp::ballot(repeats);
  if (all == 0) return 0;
  const int count = warp::count_bits(all);
  uint64_t first = 0;
  if (lane == 0) first = warp::add(claims.repeat_count, static_cast<uint64_t>(count)) + 1;
  first = warp::shuffle(first, 0);
  const int before = warp::count_bits(all & ((1u << lane) - 1));
  if (repeats) warp::store(claims.repeats + first + before, static_cast<uint64_t>(position) << 32 | reader);
  return count;
}

}  // namespace embedding_store::cuda
