// Compiled once for each ES_LEVEL, with the compiler's options for that level, and with products and sums fused: a score
// is a sum in the order of the dimensions, the same wherever its item lies and whatever is computed beside it. No function
// of a header is called: code of one level must not be linked into another.
#include "products.h"

namespace embedding_store {
namespace ES_LEVEL {
namespace {

// Sums of kItems x kVectors vectors stay in registers while all dimensions pass: enough of them that no sum waits for the
// one before it, and few enough to leave room for a column of users and an item's value.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kItems = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kItems = 6;
#else
constexpr int kLanes = 4, kItems = 6;
#endif
constexpr int kVectors = 2, kWidth = kVectors * kLanes;

using Lanes [[gnu::vector_size(kLanes * sizeof(float))]] = float;
using Unaligned [[gnu::vector_size(kLanes * sizeof(float)), gnu::aligned(sizeof(float))]] = float;
using Mask [[gnu::vector_size(kLanes * sizeof(float))]] = int32_t;

Lanes load(const float* x) { return *reinterpret_cast<const Unaligned*>(x); }

bool any(const Mask& mask) {
  int32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= mask[i];
  return bits != 0;
}

// Always inlined: the sums must be registers.
struct Tile {
  Lanes sums[kItems][kVectors];

  [[gnu::always_inline]] Tile(const float* const (&items)[kItems], int64_t dim, const float* panel) : sums{} {
    for (int64_t d = 0; d < dim; ++d, panel += kWidth) {
      const Lanes first = load(panel), second = load(panel + kLanes);
      for (int item = 0; item < kItems; ++item) {
        sums[item][0] += items[item][d] * first;
        sums[item][1] += items[item][d] * second;
      }
    }
  }

  [[gnu::always_inline]] bool beats(const float* bars) const {
    Mask mask{};
    for (int vector = 0; vector < kVectors; ++vector) {
      const Lanes bar = load(bars + vector * kLanes);
      for (int item = 0; item < kItems; ++item) mask |= sums[item][vector] > bar;
    }
    return any(mask);
  }
};

int64_t find_hits(
    const float* items, int64_t count, int64_t dim, const float* panel, const float* bars, Hit* hits) {
  Hit* end = hits;
  for (int64_t first = 0; first < count; first += kItems) {
    const float* rows[kItems];  // beyond the last item that item once more
    const int64_t here = count - first < kItems ? count - first : kItems;
    for (int i = 0; i < kItems; ++i) rows[i] = items + (first + (i < here ? i : here - 1)) * dim;
    const Tile tile(rows, dim, panel);
    if (!tile.beats(bars)) [[likely]] continue;
    for (int item = 0; item < here; ++item) {
      for (int user = 0; user < kWidth; ++user) {
        const float score = tile.sums[item][user / kLanes][user % kLanes];
        if (score > bars[user]) *end++ = {static_cast<int32_t>(first + item), user, score};
      }
    }
  }
  return end - hits;
}

}  // namespace

ProductFunctions product_functions() { return {kWidth, find_hits}; }

}  // namespace ES_LEVEL
}  // namespace embedding_store
