// From an id to the location of its row: the hash index of FORMAT.md. Compiled for the host and for CUDA.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ES_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ES_HOST_DEVICE static inline
#endif

namespace embedding_store {

constexpr int kSlots = 4;
constexpr uint64_t kEmpty = ~uint64_t{0};  // the location in a slot without an entry; also "not found"
constexpr uint64_t kAbsent = kEmpty - 1;    // of an overlay's entry for an id that the snapshot has no more
constexpr int kRowBits = 40;
constexpr int kMaxDim = 1 << 20;  // what loops and kernels have room for
constexpr int kMostPlaces = 4096;  // of a history: every place takes memory, whether a version is there or not
constexpr int kLayoutHeader = 8;  // int64 values of a layout before its segments
constexpr int kIndexValues = 4;   // of them, those of an index: its first bucket, home buckets, total buckets, seed
constexpr int kSegmentsAt = 4;    // where a layout says how many segments it has
constexpr int kStrideAt = 5;      // and how far a row is from the next one: see is_in_row
constexpr int kOverlaidAt = 6;    // and whether those of an overlay's index come after its segments: 1, or 0
constexpr int kIndexColdAt = 7;   // and whether the index and the overlay lie with the cold rows: 1, or 0

struct Slot {
  int64_t id;
  uint64_t location;
};

// A cache line, where the storage begins at one. Entries fill it from slot 0 on: empty slots are the last ones.
struct Bucket {
  Slot slots[kSlots];
};

// Where a segment's columns begin, in bytes from the start of the storage, as a layout tensor has them.
struct Segment {
  int64_t vector;
  int64_t scale;   // -1 unless quantised
  int64_t offset;  // likewise
  int64_t rows;
};

constexpr int kScaleBytes = 8;  // of a row's scale and offset in front of its values

// Whether rows, each with its scale and offset in front if it is quantised, are `stride` bytes apart. If not (0, and 4
// in layouts of exported programs), columns are as in a file: without gaps.
ES_HOST_DEVICE bool is_in_row(int64_t stride) { return stride > 4; }

static_assert(sizeof(Bucket) == 64 && sizeof(Segment) == 32, "both are laid over stored bytes");

ES_HOST_DEVICE uint64_t pack_location(uint64_t segment, uint64_t row) { return segment << kRowBits | row; }
ES_HOST_DEVICE uint64_t location_segment(uint64_t location) { return location >> kRowBits; }
ES_HOST_DEVICE uint64_t location_row(uint64_t location) { return location & ((uint64_t{1} << kRowBits) - 1); }

ES_HOST_DEVICE uint64_t multiply_high(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

// MurmurHash3's finaliser: a bijection, so that two ids never share a hash.
ES_HOST_DEVICE uint64_t mix64(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return x ^ x >> 33;
}

ES_HOST_DEVICE uint64_t hash_id(int64_t id, int64_t seed) {
  return mix64(static_cast<uint64_t>(id) + static_cast<uint64_t>(seed) * 0x9e3779b97f4a7c15ULL);
}

ES_HOST_DEVICE int64_t home_bucket(uint64_t hash, int64_t home_buckets) {
  return static_cast<int64_t>(multiply_high(hash, static_cast<uint64_t>(home_buckets)));
}

// The location of `id` in this bucket, or kEmpty. Without branches: which slot it is in cannot be predicted. From
// the last slot to the first, because an empty slot has id 0 and must not hide the entry of id 0 before it.
ES_HOST_DEVICE uint64_t find_in_bucket(const Bucket& bucket, int64_t id) {
  uint64_t location = kEmpty;
  for (int slot = kSlots - 1; slot >= 0; --slot) {
    location = bucket.slots[slot].id == id ? bucket.slots[slot].location : location;
  }
  return location;
}

// Whether a search that has not found its id in this bucket must go on to the next one.
ES_HOST_DEVICE bool is_full(const Bucket& bucket) { return bucket.slots[kSlots - 1].location != kEmpty; }

// The location of `id`, or kEmpty. `visit(bucket number)` is called before each bucket is read.
template <class Visit>
ES_HOST_DEVICE uint64_t probe(
    const Bucket* buckets,  // [total_buckets]
    int64_t total_buckets, int64_t home, int64_t id, const Visit& visit) {
  for (int64_t number = home; number < total_buckets; ++number) {
    visit(number);
    const uint64_t location = find_in_bucket(buckets[number], id);
    if (location != kEmpty || !is_full(buckets[number])) return location;
  }
  return kEmpty;
}

}  // namespace embedding_store
