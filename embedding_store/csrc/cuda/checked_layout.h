// A layout that the host knows, checked: the kernels trust its numbers. Apart from the ops, so that a test without a
// GPU runs it, too.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "../common/layout.h"
#include "arguments.h"

namespace embedding_store::cuda {

constexpr int64_t kAccessBytes = 16;          // the widest a lane reads at once
constexpr int64_t kQuantisedAccessBytes = 8;  // and of a quantised row

struct TableBytes {
  int64_t storage;
  std::optional<int64_t> cold;  // of a tiered table
};

// Whether all that kernels read by a layout's numbers lies in the table's memory, and at addresses that they can read
// from. Throws std::invalid_argument, which names the number that is wrong; without allocations if none is.
class LayoutCheck {
 public:
  LayoutCheck(const int64_t* values, int64_t count, const TableBytes& bytes)
      : values_(values), count_(count), bytes_(bytes) {}

  // What a search reads.
  void index() const {
    parts();
    const bool cold = values_[kIndexColdAt] != 0;
    if (cold && !bytes_.cold) refuse(kIndexColdAt, ": the index lies in the cold part of a tiered table; give that too");
    buckets(0, cold);
    if (is_overlaid()) buckets(kLayoutHeader + 4 * values_[kSegmentsAt], cold);
  }

  // And what a lookup does.
  void table(Dtype dtype, int64_t dim) const {
    index();
    const RowForm form = row_form(dtype, dim, values_[kStrideAt]);
    const int64_t access = form.quantised ? kQuantisedAccessBytes : kAccessBytes;
    if (form.in_row && form.stride % access != 0) {
      refuse(kStrideAt, " bytes from a row to the next one; use 0, or a multiple of " + std::to_string(access));
    }
    for (int64_t number = 0; number < values_[kSegmentsAt]; ++number) segment(number, form, access);
  }

 private:
  // As many numbers as the layout says that it has.
  void parts() const {
    const int64_t segments = values_[kSegmentsAt];
    if (segments < 0 || segments > kMaxParts) refuse(kSegmentsAt, " segments; use 0 .. " + std::to_string(kMaxParts));
    const int64_t parts = segments + (is_overlaid() ? 1 : 0);
    if (count_ == kLayoutHeader + 4 * parts) return;
    throw std::invalid_argument(
        "layout has " + std::to_string(count_) + " values, not 8 and 4 for each of the " + std::to_string(parts) +
        " segments and overlays that it names");
  }

  bool is_overlaid() const { return values_[kOverlaidAt] != 0; }

  int64_t size(bool cold) const { return cold ? *bytes_.cold : bytes_.storage; }

  void buckets(int64_t at, bool cold) const {
    const auto contains = [&](int64_t start, int64_t count) { return is_within(start, count, size(cold)); };
    switch (wrong_in_index(values_ + at, kAccessBytes, contains)) {
      case kNothingWrong: return;
      case 0: refuse(at, ": " + std::to_string(values_[at + 2]) + " buckets" + not_there(cold, kAccessBytes));
      case 1: refuse(at + 1, " home buckets; use 1 or more");
      default:
        refuse(at + 2, " buckets; use " + std::to_string(values_[at + 1]) + ", the home buckets, or more, below 2^46");
    }
  }

  void segment(int64_t number, const RowForm& form, int64_t access) const {
    const int64_t at = kLayoutHeader + 4 * number;
    const Segment segment{values_[at], values_[at + 1], values_[at + 2], values_[at + 3]};
    const bool cold = number > 0 && bytes_.cold;
    const auto of = [&](const char* what) {
      return ": the " + std::string(what) + " of " + std::to_string(segment.rows) + " rows of segment " +
             std::to_string(number);
    };
    const auto contains = [&](int64_t start, int64_t count) { return is_within(start, count, size(cold)); };
    switch (wrong_in_segment(segment, form, access, size(cold), contains)) {
      case kNothingWrong: break;
      case 0: refuse(at, of("values") + not_there(cold, access));
      case 1: refuse(at + 1, of("scales") + not_there(cold, sizeof(float)));
      case 2: refuse(at + 2, of("offsets") + not_there(cold, sizeof(float)));
      default: refuse(at + 3, " rows of segment " + std::to_string(number) + "; use 0 or more");
    }
    // Both are read with one access, in front of the values, wherever the layout says that they are.
    if (!form.quantised || !form.in_row || segment.rows == 0) return;
    if (segment.scale != segment.vector - kScaleBytes) refuse(at + 1, before_values(at, kScaleBytes));
    if (segment.offset != segment.vector - kScaleBytes / 2) refuse(at + 2, before_values(at, kScaleBytes / 2));
  }

  std::string not_there(bool cold, int64_t alignment) const {
    return " do not lie there in the " + std::to_string(size(cold)) + " bytes of " + (cold ? "cold" : "storage") +
           ", at a multiple of " + std::to_string(alignment) + "; give the tensors and the layout of one table";
  }

  std::string before_values(int64_t at, int64_t bytes) const {
    return "; with rows " + std::to_string(values_[kStrideAt]) + " bytes apart use layout[" + std::to_string(at) +
           "] - " + std::to_string(bytes);
  }

  [[noreturn]] void refuse(int64_t at, const std::string& why) const {
    throw std::invalid_argument("layout[" + std::to_string(at) + "] is " + std::to_string(values_[at]) + why);
  }

  const int64_t* values_;  // [count_], kLayoutHeader at least
  int64_t count_;
  TableBytes bytes_;
};

}  // namespace embedding_store::cuda
