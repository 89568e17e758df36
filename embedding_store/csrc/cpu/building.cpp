// Building an index: pairs sorted by hash, the last operation on each id, and entries laid out in buckets.
//
// Hashes are spread evenly, so that a pair's place among the sorted ones is nearly known before any are compared: two
// passes by value, then a few steps of insertion. Hashes that are not (ids made to collide, one id very often) only take
// longer.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "../common/index.h"
#include "parallel.h"

namespace embedding_store {
namespace {

struct Pair {
  uint64_t h, value;
  bool operator<(const Pair& other) const { return h != other.h ? h < other.h : value < other.value; }
};

constexpr int64_t kParts = 256;      // of the first pass: what a part takes stays in the cache
constexpr int64_t kFewPairs = 1 << 17;  // that one thread sorts
constexpr int64_t kPlaces = 1;       // of the second pass, for each pair
constexpr uint32_t kFew = 24;        // pairs of one place that insertion is quick with

uint64_t unmix64(uint64_t x) {
  x ^= x >> 33;
  x *= 0x9cb4b2f8129337dbULL;
  x ^= x >> 33;
  x *= 0x4f74430c22a54005ULL;
  return x ^ x >> 33;
}

int64_t unhash_id(uint64_t hash, int64_t seed) {
  return static_cast<int64_t>(unmix64(hash) - static_cast<uint64_t>(seed) * 0x9e3779b97f4a7c15ULL);
}

// From hashes of a range to parts of it that are equally wide.
class Spread {
 public:
  Spread(uint64_t least, uint64_t greatest, int64_t parts)
      : least_(least), shift_(std::countl_zero((greatest - least) | 1)), parts_(parts) {}
  int64_t operator()(uint64_t h) const {
    return static_cast<int64_t>(multiply_high((h - least_) << shift_, static_cast<uint64_t>(parts_)));
  }

 private:
  uint64_t least_;
  int shift_;
  int64_t parts_;
};

// Sort `from` into `h` and `value`; `room` has as many pairs.
void sort_part(
    const Pair* from, int64_t count, Pair* room, std::vector<uint32_t>& starts, uint64_t* h, uint64_t* value) {
  uint64_t least = std::numeric_limits<uint64_t>::max(), greatest = 0;
  for (int64_t i = 0; i < count; ++i) least = std::min(least, from[i].h), greatest = std::max(greatest, from[i].h);
  const Spread spread(least, greatest, kPlaces * count);
  starts.assign(kPlaces * count, 0);
  for (int64_t i = 0; i < count; ++i) ++starts[spread(from[i].h)];
  uint32_t most = 0, place = 0;
  for (uint32_t& start : starts) {
    most = std::max(most, start);
    place += std::exchange(start, place);
  }
  for (int64_t i = 0; i < count; ++i) room[starts[spread(from[i].h)]++] = from[i];
  if (most > kFew) {
    std::sort(room, room + count);
  } else {
    for (int64_t i = 1; i < count; ++i) {
      if (!(room[i] < room[i - 1])) continue;
      const Pair pair = room[i];
      int64_t at = i;
      for (; at > 0 && pair < room[at - 1]; --at) room[at] = room[at - 1];
      room[at] = pair;
    }
  }
  for (int64_t i = 0; i < count; ++i) h[i] = room[i].h, value[i] = room[i].value;
}

// Pairs that lie in several places, `count` in all; `room` has as many.
struct Pieces {
  const uint64_t* const* h;
  const uint64_t* const* value;
  const int64_t* counts;
  int64_t pieces;
};

void sort_pieces(const Pieces& from, int64_t count, uint64_t* out_h, uint64_t* out_value, Pair* room) {
  uint64_t least = std::numeric_limits<uint64_t>::max(), greatest = 0;
  for (int64_t piece = 0; piece < from.pieces; ++piece) {
    const uint64_t* h = from.h[piece];
    for (int64_t i = 0; i < from.counts[piece]; ++i) least = std::min(least, h[i]), greatest = std::max(greatest, h[i]);
  }
  if (count == 0) least = 0;
  const Spread spread(least, greatest, kParts);
  std::vector<int64_t> places(from.pieces * kParts);  // where the next pair of each piece and part goes
  parallel(0, from.pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      int64_t* counts = places.data() + piece * kParts;
      for (int64_t i = 0; i < from.counts[piece]; ++i) ++counts[spread(from.h[piece][i])];
    }
  });
  std::vector<int64_t> parts(kParts + 1);
  for (int64_t part = 0, place = 0; part < kParts; ++part) {
    for (int64_t piece = 0; piece < from.pieces; ++piece) {
      const int64_t pairs = std::exchange(places[piece * kParts + part], place);
      place += pairs;
    }
    parts[part + 1] = place;
  }
  parallel(0, from.pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      int64_t* place = places.data() + piece * kParts;
      const uint64_t *h = from.h[piece], *value = from.value[piece];
      for (int64_t i = 0; i < from.counts[piece]; ++i) room[place[spread(h[i])]++] = {h[i], value[i]};
    }
  });
  const int64_t grain = count < kFewPairs ? kParts : 1;
  parallel(0, kParts, grain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<Pair[]> sorted;
    int64_t capacity = 0;
    std::vector<uint32_t> starts;
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = parts[part], size = parts[part + 1] - first;
      if (size > capacity) sorted = std::make_unique_for_overwrite<Pair[]>(capacity = size);
      sort_part(room + first, size, sorted.get(), starts, out_h + first, out_value + first);
    }
  });
}

// The slot of an entry is the first one of its home bucket or, if that is before `free`, `free`. Without branches: which
// one it is cannot be predicted.
int64_t beyond_home(int64_t home_slot, int64_t free) {
  const int64_t beyond = free - home_slot;
  return beyond & ~(beyond >> 63);
}

// The slot behind the last entry, and the most buckets that a search visits.
std::pair<int64_t, int64_t> lay_out(const uint64_t* h, int64_t count, int64_t home_buckets, int64_t free) {
  int64_t furthest = -kSlots;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t home_slot = kSlots * home_bucket(h[i], home_buckets), beyond = beyond_home(home_slot, free);
    furthest = std::max(furthest, beyond);
    free = home_slot + beyond + 1;
  }
  return {free, furthest / kSlots + 1};
}

// Whether the slots up to `stop` are enough.
bool write_slots(
    const uint64_t* h, const uint64_t* location, int64_t count, int64_t home_buckets, int64_t seed, int64_t free,
    int64_t stop,
    Slot* slots  // [stop - free]
) {
  constexpr int64_t kAhead = 1024;  // emptied at once: they stay in the cache
  const int64_t first = free;
  int64_t emptied = free;
  const auto empty_up_to = [&](int64_t end) {
    for (; emptied < end; ++emptied) slots[emptied - first] = {0, kEmpty};
  };
  for (int64_t i = 0; i < count; ++i) {
    const int64_t home_slot = kSlots * home_bucket(h[i], home_buckets);
    const int64_t slot = home_slot + beyond_home(home_slot, free);
    if (slot >= stop) return false;
    if (slot >= emptied) empty_up_to(std::min(slot + kAhead, stop));
    slots[slot - first] = {unhash_id(h[i], seed), location[i]};
    free = slot + 1;
  }
  empty_up_to(stop);
  return true;
}

}  // namespace
}  // namespace embedding_store

#define ES_EXPORT extern "C" __attribute__((visibility("default")))

// For Python's ctypes; embedding_store/native/building.py says what each does, and checks what it is given.
ES_EXPORT void embedding_store_upserts(
    const int64_t* ids, int64_t count, int64_t location,  // of the first
    uint64_t* h, uint64_t* operation                      // [count]
) {
  for (int64_t i = 0; i < count; ++i) {
    h[i] = embedding_store::hash_id(ids[i], 0);
    operation[i] = static_cast<uint64_t>(location + i) << 1 | 1;
  }
}

ES_EXPORT bool embedding_store_sort_pieces(
    const uint64_t* const* h, const uint64_t* const* value, const int64_t* counts, int64_t pieces,  // [pieces]
    int64_t count,                         // of all
    uint64_t* out_h, uint64_t* out_value,  // [count]
    uint64_t* room                         // [2 * count]
) {
  try {
    using embedding_store::Pair;
    embedding_store::sort_pieces({h, value, counts, pieces}, count, out_h, out_value, reinterpret_cast<Pair*>(room));
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

ES_EXPORT void embedding_store_partition_pairs(
    const uint64_t* h, const uint64_t* value, int64_t count, int64_t bits,
    uint64_t* out_h, uint64_t* out_value,  // [count]
    int64_t* ends                          // [2^bits]
) {
  const int shift = static_cast<int>(64 - bits);
  std::fill(ends, ends + (int64_t{1} << bits), 0);
  for (int64_t i = 0; i < count; ++i) ++ends[h[i] >> shift];
  for (int64_t part = 0, place = 0; part < int64_t{1} << bits; ++part) place += std::exchange(ends[part], place);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t place = ends[h[i] >> shift]++;
    out_h[place] = h[i], out_value[place] = value[i];
  }
}

ES_EXPORT int64_t embedding_store_last_operations(
    const uint64_t* h, const uint64_t* operation, int64_t count,
    uint64_t* location,  // [count]
    int64_t* ends        // [2]: the least and the greatest id
) {
  using namespace embedding_store;
  int64_t least = std::numeric_limits<int64_t>::max(), greatest = std::numeric_limits<int64_t>::min(), again = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool upsert = operation[i] & 1;
    location[i] = upsert ? operation[i] >> 1 : kAbsent;
    const int64_t id = unhash_id(h[i], 0);
    least = upsert ? std::min(least, id) : least;
    greatest = upsert ? std::max(greatest, id) : greatest;
    if (i > 0) again += h[i] == h[i - 1];
  }
  ends[0] = least, ends[1] = greatest;
  return again;
}

ES_EXPORT bool embedding_store_place(
    const uint64_t* h, const uint64_t* location, int64_t count,  // [count], by hash; location may be null
    int64_t home_buckets, int64_t seed,
    int64_t first_free,           // slot
    int64_t pieces,               // of the entries, for as many threads
    int64_t* state,  // [2]: the slot behind the last entry, and the most buckets that a search visits
    embedding_store::Slot* slots  // those from first_free to state[0], which are written; or null: `state` is
) {
  using namespace embedding_store;
  const auto start = [&](int64_t piece) { return count * piece / pieces; };
  std::vector<int64_t> begins(pieces + 1, first_free), probes(pieces);
  // Where a piece ends depends on where it begins by little: it is the greater of where it would end without a piece
  // before it, and as many slots behind the beginning as it has entries.
  parallel(0, pieces - 1, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      begins[piece + 1] = lay_out(h + start(piece), start(piece + 1) - start(piece), home_buckets, 0).first;
    }
  });
  for (int64_t piece = 0; piece < pieces - 1; ++piece) {
    begins[piece + 1] = std::max(begins[piece + 1], begins[piece] + start(piece + 1) - start(piece));
  }
  parallel(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = start(piece), size = start(piece + 1) - first;
      if (slots == nullptr) {
        const auto [free, probe] = lay_out(h + first, size, home_buckets, begins[piece]);
        probes[piece] = probe;
        if (piece == pieces - 1) begins[pieces] = free;
      } else {
        const int64_t stop = piece == pieces - 1 ? state[0] : begins[piece + 1];
        Slot* const at = slots + begins[piece] - first_free;
        const bool enough = begins[piece] <= stop && stop <= state[0] &&
                            write_slots(h + first, location + first, size, home_buckets, seed, begins[piece], stop, at);
        probes[piece] = enough ? 0 : -1;
      }
    }
  });
  if (slots != nullptr) return std::ranges::count(probes, -1) == 0;
  state[0] = begins[pieces], state[1] = *std::max_element(probes.begin(), probes.end());
  return true;
}
