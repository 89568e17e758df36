// lookup_versions and lookup_history on the CPU: each id in some of many tables.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "ops.h"
#include "outputs.h"
#include "parallel.h"
#include "pipeline.h"
#include "table.h"

namespace embedding_store {
namespace {

constexpr int64_t kAhead = 2 * kGroup;  // places on their way from memory: as many as in find_all
constexpr int64_t kPart = 8192;  // places of a version that are looked up at once: what is known of them is 256 KiB
constexpr int kOrderBits = 12;  // of hashes, and of addresses, by which ids and rows are ordered: some thousand parts

// The tables of one call, which share dim and dtype.
class Tables {
 public:
  Tables(
      const std::vector<Tensor>& storages, const std::vector<Tensor>& layouts, int64_t dim, const std::string& dtype) {
    if (storages.empty() || storages.size() != layouts.size()) {
      throw std::invalid_argument("storages and layouts are not one or more tensors each, as many as the other");
    }
    views_.reserve(storages.size());
    for (size_t i = 0; i < storages.size(); ++i) views_.emplace_back(storages[i], storages[i], layouts[i], dim, dtype);
    finders_.reserve(views_.size());
    for (const TableView& view : views_) finders_.emplace_back(view);
  }

  int64_t count() const { return static_cast<int64_t>(views_.size()); }
  Dtype dtype() const { return views_[0].dtype; }
  int64_t seed() const { return views_[0].index.seed; }  // of the first: tables of one series nearly always share it
  const Finder& finder(int64_t number) const { return finders_[number]; }

 private:
  std::vector<TableView> views_;
  std::vector<Finder> finders_;
};

// Each of `numbers` is -1 or that of one of `most` things that `of` names.
void check_numbers(
    const int64_t* numbers,  // [count]
    int64_t count, int64_t most, const std::string& name, const std::string& of) {
  for (int64_t i = 0; i < count; ++i) {
    if (numbers[i] < -1 || numbers[i] >= most) {
      throw std::invalid_argument(name + " is " + std::to_string(numbers[i]) + "; use -1 or the number of one of " +
                                  std::to_string(most) + " " + of);
    }
  }
}

// Versions of a series, oldest first, and the newest of them that each id may see: the k up to it are its places, of
// which the outputs have a row each, [count, k].
struct History {
  const int64_t* ids;     // [count]
  const int64_t* newest;  // [count]: -1 .. versions - 1
  int64_t count;
  const int64_t* tables;  // [versions]: the number of each one's table, -1: none
  int64_t versions, k;
  const Vectors& vectors;
  bool* mask;  // [count, k]
};

// The positions of ids, roughly in the order of their buckets in a table of this seed: neighbours find each other's
// entries of the index's page tables in the caches, where a few ids in each of many tables would find none.
std::vector<int64_t> by_bucket(
    const int64_t* ids,  // [count]
    int64_t count, int64_t seed) {
  const int bits = std::clamp<int>(std::bit_width(static_cast<uint64_t>(count)), 1, kOrderBits);
  const auto part = [&](int64_t id) { return hash_id(id, seed) >> (64 - bits); };
  std::vector<int64_t> starts((int64_t{1} << bits) + 1), positions(count);
  for (int64_t i = 0; i < count; ++i) ++starts[part(ids[i]) + 1];
  for (size_t i = 1; i < starts.size(); ++i) starts[i] += starts[i - 1];
  for (int64_t i = 0; i < count; ++i) positions[starts[part(ids[i])]++] = i;
  return positions;
}

// An id, and where in the outputs its place for version 0 is, or would be: that for version v lies v before it.
struct Seeing {
  int64_t id, place;
};

// All places, version by version: the page tables of one table's memory at a time are in the caches. The places for
// which an id has no version are of versions -1 to -k.
struct Order {
  Order(const History& history, int64_t seed);

  std::vector<Seeing> ids;      // by the newest version, then by_bucket: those with a place for a version lie together
  std::vector<int64_t> firsts;  // [versions + k]: where in `ids` those with a place for version -k, -k + 1, ... begin
  std::vector<int64_t> places;  // [versions + k + 1]: how many places come before theirs, and there are in all
};

Order::Order(const History& history, int64_t seed) : ids(history.count) {
  const int64_t versions = history.versions, k = history.k;
  std::vector<int64_t> starts(versions + 2);  // in `ids`, of those that see none, version 0, ...
  for (int64_t i = 0; i < history.count; ++i) ++starts[history.newest[i] + 1];
  for (int64_t i = 0, before = 0; i < versions + 2; ++i) before += std::exchange(starts[i], before);
  places.push_back(0);
  for (int64_t version = -k; version < versions; ++version) {
    firsts.push_back(starts[std::max<int64_t>(version + 1, 0)]);
    places.push_back(places.back() + starts[std::min(version + k, versions) + 1] - firsts.back());
  }
  for (const int64_t i : by_bucket(history.ids, history.count, seed)) {
    ids[starts[history.newest[i] + 1]++] = {history.ids[i], i * k + history.newest[i]};
  }
}

// One thread's lookups, in one version at a time: all are found before their rows are copied, in the order in which
// these lie in memory. A few rows of each of many large tables, in any other order, cost more in misses of the page
// tables than in those of the data.
class Reader {
 public:
  Reader(const History& history, const Tables& tables) : history_(history), tables_(tables) {}

  // The places in `version` of these ids.
  void read(
      const Seeing* ids,  // [count]
      int64_t count, int64_t version) {
    const int64_t number = version < 0 ? -1 : history_.tables[version];
    if (number < 0) {
      for (int64_t i = 0; i < count; ++i) take({}, ids[i].place - version);
      return;
    }
    const Finder& finder = tables_.finder(number);
    find(finder, ids, count, version);
    order();
    copy(finder);
  }

 private:
  struct Found {
    Row row;
    int64_t position;
  };

  void find(const Finder& finder, const Seeing* ids, int64_t count, int64_t version) {
    found_.clear();
    std::array<uint64_t, kAhead> hashes;
    for (int64_t ahead = 0; ahead < count + kAhead; ++ahead) {
      uint64_t& hash = hashes[ahead % kAhead];
      if (const int64_t i = ahead - kAhead; i >= 0) {
        uint64_t segment;
        take(finder.find(ids[i].id, hash, &segment), ids[i].place - version);
      }
      if (ahead < count) hash = finder.hash(ids[ahead].id);
    }
  }

  // What is known of a place: its mask, and zeros if there is no row.
  void take(const Row& row, int64_t position) {
    const bool is_found = row.vector != nullptr;
    history_.mask[position] = is_found;
    if (is_found) found_.push_back({row, position});
    else history_.vectors.put(row, position);
  }

  // Rows roughly as they lie in memory.
  void order() {
    order_.resize(found_.size());
    if (found_.empty()) return;
    const auto before = [](const Found& a, const Found& b) { return a.row.vector < b.row.vector; };
    const auto [first, last] = std::minmax_element(found_.begin(), found_.end(), before);
    const uint8_t* start = first->row.vector;
    const int bits = std::min<int>(std::bit_width(found_.size()), kOrderBits);
    const int shift = std::max<int>(std::bit_width(static_cast<uint64_t>(last->row.vector - start)) - bits, 0);
    starts_.assign((size_t{1} << bits) + 1, 0);
    for (const Found& found : found_) ++starts_[((found.row.vector - start) >> shift) + 1];
    for (size_t i = 1; i < starts_.size(); ++i) starts_[i] += starts_[i - 1];
    for (size_t i = 0; i < found_.size(); ++i) order_[starts_[(found_[i].row.vector - start) >> shift]++] = i;
  }

  void copy(const Finder& finder) const {
    for (int64_t ahead = 0, count = order_.size(); ahead < count + kAhead; ++ahead) {
      if (ahead < count) finder.fetch(found_[order_[ahead]].row);
      if (ahead < kAhead) continue;
      const Found& found = found_[order_[ahead - kAhead]];
      history_.vectors.put(found.row, found.position);
    }
  }

  const History& history_;
  const Tables& tables_;
  std::vector<Found> found_;
  std::vector<int32_t> order_, starts_;
};

void look_up(const History& history, const Tables& tables) {
  const Order order(history, tables.seed());
  parallel(0, history.count * history.k, kGrain, [&](int64_t begin, int64_t end) {
    Reader reader(history, tables);
    for (int64_t number = 0, stop; begin < end; begin = stop) {
      while (order.places[number + 1] <= begin) ++number;
      stop = std::min({end, order.places[number + 1], begin + kPart});
      const int64_t first = order.firsts[number] + begin - order.places[number];
      reader.read(order.ids.data() + first, stop - begin, number - history.k);
    }
    history.vectors.settle();
  });
}

// timestamp - as_of where `mask`, else 0; int64's largest where it is more: a timestamp may ask for the newest.
Tensor ages_of(
    const History& history, const Tensor& mask,
    const int64_t* timestamps,  // [count]
    const int64_t* as_of) {     // [versions]
  const int64_t count = mask.numel();
  Tensor ages = new_output(mask, shape_of(mask), ScalarType::Long, count * static_cast<int64_t>(sizeof(int64_t)));
  auto* values = static_cast<int64_t*>(ages.mutable_data_ptr());
  parallel(0, history.count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t id = begin; id < end; ++id) {
      for (int64_t place = 0; place < history.k; ++place) {
        const int64_t position = id * history.k + place;
        int64_t age = 0;
        if (history.mask[position] &&
            __builtin_sub_overflow(timestamps[id], as_of[history.newest[id] - place], &age)) {
          age = std::numeric_limits<int64_t>::max();
        }
        values[position] = age;
      }
    }
  });
  return ages;
}

}  // namespace

std::tuple<Tensor, Tensor> lookup_versions(
    const Tensor& ids_tensor, const Tensor& choice_tensor, const std::vector<Tensor>& storages,
    const std::vector<Tensor>& layouts, int64_t dim, const std::string& dtype, ScalarType out) {
  const Tables tables(storages, layouts, dim, dtype);
  const Tensor ids = contiguous_ids(ids_tensor);
  const Tensor choice = contiguous_longs(choice_tensor, ids.numel(), "choice", "id");
  check_numbers(longs(choice), ids.numel(), tables.count(), "choice", "tables");
  std::vector<int64_t> numbers(tables.count());
  std::iota(numbers.begin(), numbers.end(), 0);
  const Vectors vectors(ids, shape_of(ids), dim, tables.dtype(), out);
  Tensor found = empty_beside(ids, shape_of(ids), ScalarType::Bool);
  const History history{
      longs(ids), longs(choice), ids.numel(), numbers.data(), tables.count(), 1, vectors,
      static_cast<bool*>(found.mutable_data_ptr())};
  look_up(history, tables);
  return {vectors.tensor(), found};
}

std::tuple<Tensor, Tensor, Tensor> lookup_history(
    const Tensor& ids_tensor, const Tensor& timestamps_tensor, const Tensor& newest_tensor,
    const Tensor& as_of_tensor, const Tensor& numbers_tensor, const std::vector<Tensor>& storages,
    const std::vector<Tensor>& layouts, int64_t k, int64_t dim, const std::string& dtype, ScalarType out) {
  if (k < 1 || k > kMostPlaces) {
    throw std::invalid_argument("k is " + std::to_string(k) + "; use 1 .. " + std::to_string(kMostPlaces));
  }
  const Tables tables(storages, layouts, dim, dtype);
  const Tensor ids = contiguous_ids(ids_tensor);
  const int64_t count = ids.numel(), versions = as_of_tensor.numel();
  const Tensor timestamps = contiguous_longs(timestamps_tensor, count, "timestamps", "id");
  const Tensor newest = contiguous_longs(newest_tensor, count, "newest", "id");
  const Tensor as_of = contiguous_longs(as_of_tensor, versions, "as_of", "version");
  const Tensor numbers = contiguous_longs(numbers_tensor, versions, "numbers", "version");
  check_numbers(longs(newest), count, versions, "newest", "versions");
  check_numbers(longs(numbers), versions, tables.count(), "numbers", "tables");
  std::vector<int64_t> shape = shape_of(ids);
  shape.push_back(k);
  const Vectors vectors(ids, shape, dim, tables.dtype(), out);
  Tensor mask = empty_beside(ids, shape, ScalarType::Bool);
  const History history{
      longs(ids), longs(newest), count, longs(numbers), versions, k, vectors,
      static_cast<bool*>(mask.mutable_data_ptr())};
  look_up(history, tables);
  return {vectors.tensor(), mask, ages_of(history, mask, longs(timestamps), longs(as_of))};
}

}  // namespace embedding_store
