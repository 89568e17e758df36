// Rows of several bags summed by one warp, in float32.
#pragma once

#include <cmath>

#include "pooled_walk.h"
#include "rows.h"

namespace embedding_store::cuda {

// How the lanes share rows: groups of lanes take a row each, a lane of a group one chunk of it.
struct Groups {
  int width;      // lanes of a group, a power of 2
  int log_count;  // of how many groups there are
  int group;      // this lane's
  int chunk;      // this lane's of those of its range of columns
  int chunks;     // of the range

  ES_DEVICE Groups(int chunks_, int lane) : width(warp::kLanes), log_count(0), chunks(chunks_) {
    while (width / 2 >= chunks) width /= 2, ++log_count;
    group = lane / width;
    chunk = lane % width;
  }

  // Whether there is such a chunk, and whether the group is the first. Asked anew each time: an answer that is kept
  // takes a predicate, of which the loads of buckets need many.
  ES_DEVICE bool mine() const { return warp::opaque(chunk) < chunks; }
  ES_DEVICE bool is_first() const { return warp::opaque(group) == 0; }
};

// Stored values as they are, without scale and offset. `odd`: as in decode_chunk.
template <Dtype kDtype, int kValues>
ES_DEVICE void plain_values(const Stored<kDtype, kValues>& stored, bool odd, float* values) {
  ES_UNROLL
  for (int i = 0; i < kValues; ++i) {
    if constexpr (kDtype == Dtype::kFloat32) values[i] = from_bits(stored.words[i]);
    if constexpr (kDtype == Dtype::kFloat16) {
      values[i] = warp::half_to_float(stored.words[i / 2] >> i % 2 * 16 & 0xffffu);
    }
    if constexpr (kDtype == Dtype::kBfloat16) {
      values[i] = from_bits(i % 2 == 0 ? stored.words[i / 2] << 16 : stored.words[i / 2] & 0xffff0000u);
    }
    if constexpr (kDtype == Dtype::kInt8) values[i] = static_cast<float>(stored.words[i / 4] >> i % 4 * 8 & 255u);
    if constexpr (kDtype == Dtype::kInt4) {
      const int shift = kValues == 1 ? odd * 4 : i % 8 * 4;
      values[i] = static_cast<float>(stored.words[i / 8] >> shift & 15u);
    }
  }
}

// The chunk of a sum that a lane has.
template <Dtype kDtype, int kValues>
struct Sum {
  float values[kValues] = {};

  // `factor` and `offset`: the row's scale and offset, both times its weight; unless it is quantised, the weight and 0.
  ES_DEVICE void add(const Stored<kDtype, kValues>& stored, bool odd, float factor, float offset) {
    float plain[kValues];
    plain_values<kDtype, kValues>(stored, odd, plain);
    ES_UNROLL
    for (int v = 0; v < kValues; ++v) {
      if constexpr (kQuantised<kDtype>) values[v] += fmaf(factor, plain[v], offset);
      else values[v] = fmaf(factor, plain[v], values[v]);
    }
  }

  ES_DEVICE void add(const Sum& other) {
    ES_UNROLL
    for (int v = 0; v < kValues; ++v) values[v] += other.values[v];
  }

  ES_DEVICE Sum from(int lane) const {
    Sum other;
    ES_UNROLL
    for (int v = 0; v < kValues; ++v) other.values[v] = warp::shuffle(values[v], lane);
    return other;
  }

  ES_DEVICE void clear() {
    ES_UNROLL
    for (int v = 0; v < kValues; ++v) values[v] = 0;
  }
};

// Write `values` from value number `first` of the output on.
template <int kValues>
ES_DEVICE void store_pooled(const PooledArguments& arguments, int64_t first, const float* values) {
  if (arguments.out == OutDtype::kFloat32) {
    warp::store_once<kValues * 4>(arguments.pooled + first * 4, encode_chunk<OutDtype::kFloat32, kValues>(values));
    return;
  }
  const auto halves = encode_chunk<OutDtype::kFloat16, kValues>(values);
  const auto bfloat16s = encode_chunk<OutDtype::kBfloat16, kValues>(values);
  const bool half = arguments.out == OutDtype::kFloat16;
  warp::Words<kValues * 2> words;
  ES_UNROLL
  for (int i = 0; i < (kValues + 1) / 2; ++i) words.words[i] = half ? halves.words[i] : bfloat16s.words[i];
  warp::store_once<kValues * 2>(arguments.pooled + first * 2, words);
}

// Bits 0 .. `end` - 1.
ES_DEVICE uint32_t bits_below(int end) { return end >= warp::kLanes ? ~0u : (1u << end) - 1; }

// What the lanes of a warp share, and what they keep to spare registers, in their block's shared memory.
template <int kValues>
struct PooledShared {
  struct Scale {  // see Sum; zeros without a row
    float factor;
    float offset;
  };
  struct Close {
    int bag;        // of the step's bags
    float divisor;  // what the sum of this bag is multiplied by, once it is whole
  };

  Unit unit;
  UnitResult result;
  // Of lane 0 alone: between its writes and what others read there would have to be a sync.
  int64_t start;  // the offset of the first bag that has not ended
  bool bad;       // offsets that cannot be were seen
  // Of a step's ids; the room for more is read and not used.
  uint64_t address[2 * warp::kLanes];  // of the values in the range of columns, or of zeros
  Scale scale[2 * warp::kLanes];
  Close close[warp::kLanes];
  float kept[kValues][warp::kLanes];
};

// The sums of a step's rows. The groups take as many consecutive rows each, so that a bag may go through several:
// each group keeps back the first bag that ends in it, for which it may have only the last rows, and hands the rows
// after the last bag that ends in it on to the next group.
template <Dtype kDtype, int kValues>
class Pool {
 public:
  ES_DEVICE Pool(
      const PooledArguments& arguments, const Groups& groups, int column, PooledShared<kValues>* shared, int lane)
      : arguments_(arguments),
        groups_(groups),
        column_(column),
        load_chunk_(groups.mine() ? static_cast<uint32_t>(groups.chunk) : 0),
        lane_(lane),
        shared_(shared) {}

  // Add the step's `count` rows, of those ids that have one in `there`. Bit i of `last`: id i is the last one of its
  // bag, which is written. `first_bag`: of the step.
  ES_DEVICE void add(int count, uint32_t there, uint32_t last, int first_bag) {
    if (last != 0) gather();
    kept_row_ = -1;
    add_rows(count, there, last, first_bag);
    if (last != 0) hand_on(first_bag);
    else spread_ = groups_.log_count > 0;
  }

  // Write what has been added since the last bag that was written, to one row of the parts, and begin from nothing.
  ES_DEVICE void write_part(float* part) {
    gather();
    auto* to = reinterpret_cast<uint8_t*>(part + column_);
    const auto words = encode_chunk<OutDtype::kFloat32, kValues>(sum_.values);
    if (groups_.is_first() && groups_.mine()) warp::store_once<kValues * 4>(to, words);
    sum_.clear();
  }

  ES_DEVICE void write_zeros(int bag) const {
    const float zeros[kValues] = {};
    if (groups_.is_first()) store(zeros, bag);
  }

 private:
  static constexpr int kInFlight = 8;

  ES_DEVICE void add_rows(int count, uint32_t there, uint32_t last, int first_bag) {
    const int each = (count + (1 << groups_.log_count) - 1) >> groups_.log_count;  // rows of a group
    int row = groups_.group * each;
    for (int left = each; left > 0; left -= kInFlight, row += kInFlight) {
      const uint32_t wanted = there >> row & bits_below(left);
      const uint32_t ends = last >> row;
      Stored<kDtype, kValues> stored[kInFlight];
      ES_UNROLL
      for (int i = 0; i < kInFlight; ++i) {
        // Of rows that are not wanted one piece of memory, for all lanes.
        const auto* values = reinterpret_cast<const uint8_t*>(shared_->address[row + i]);
        stored[i] = load_chunk<kDtype, kValues>(values, warp::opaque((wanted >> i & 1u) != 0 ? load_chunk_ : 0));
      }
      ES_UNROLL
      for (int i = 0; i < kInFlight; ++i) {
        if (i >= left) break;
        const auto scale = shared_->scale[row + i];
        sum_.add(stored[i], (load_chunk_ & 1u) != 0, scale.factor, scale.offset);
        if ((ends >> i & 1u) != 0) end_bag(row + i, first_bag);
      }
    }
  }

  // The row that the group has added is the last of its bag.
  ES_DEVICE void end_bag(int row, int first_bag) {
    if (kept_row_ < 0) {
      ES_UNROLL
      for (int v = 0; v < kValues; ++v) shared_->kept[v][lane_] = sum_.values[v];
      kept_row_ = row;
    } else {
      write(sum_, first_bag, row);
    }
    sum_.clear();
  }

  // Each group's first bag is written, with what the groups before had of it.
  ES_DEVICE void hand_on(int first_bag) {
    bool ended = kept_row_ >= 0;  // a bag, in this group or, from here on, in those before it that were added
    for (int distance = groups_.width; distance < warp::kLanes; distance *= 2) {
      const int from = (lane_ + warp::kLanes - distance) % warp::kLanes;
      const Sum<kDtype, kValues> before = sum_.from(from);
      const bool ended_before = (warp::ballot(ended) >> from & 1u) != 0;
      if (lane_ >= distance) {
        if (!ended) sum_.add(before);
        ended = ended || ended_before;
      }
    }
    // The group before; before the first one the last, whose rows are those before the next step's.
    Sum<kDtype, kValues> before = sum_;
    if (groups_.log_count > 0) before = sum_.from((lane_ + warp::kLanes - groups_.width) % warp::kLanes);
    if (kept_row_ >= 0) {
      Sum<kDtype, kValues> kept;
      ES_UNROLL
      for (int v = 0; v < kValues; ++v) kept.values[v] = shared_->kept[v][lane_];
      if (!groups_.is_first()) kept.add(before);
      write(kept, first_bag, kept_row_);
    }
    sum_ = before;
    if (!groups_.is_first()) sum_.clear();
  }

  // The bag of which `row` is the last.
  ES_DEVICE void write(const Sum<kDtype, kValues>& sum, int first_bag, int row) const {
    const auto close = shared_->close[row];
    float values[kValues];
    ES_UNROLL
    for (int v = 0; v < kValues; ++v) values[v] = sum.values[v] * close.divisor;
    store(values, first_bag + close.bag);
  }

  ES_DEVICE void store(const float* values, int bag) const {
    if (!groups_.mine()) return;
    store_pooled<kValues>(arguments_, (shared_->unit.first_bag + bag) * arguments_.dim + column_, values);
  }

  // The sums of all groups, which are of one bag, to group 0.
  ES_DEVICE void gather() {
    if (!spread_) return;
    for (int distance = groups_.width; distance < warp::kLanes; distance *= 2) sum_.add(sum_.from(lane_ ^ distance));
    if (!groups_.is_first()) sum_.clear();
    spread_ = false;
  }

  const PooledArguments& arguments_;
  const Groups groups_;
  const int column_;           // this lane's first one
  const uint32_t load_chunk_;  // what a lane without a chunk reads is not used
  const int lane_;
  PooledShared<kValues>* const shared_;
  Sum<kDtype, kValues> sum_;
  int kept_row_ = -1;
  bool spread_ = false;  // more groups than the first have sums
};

}  // namespace embedding_store::cuda
