// lookup, lookup_tiered, lookup_versions and lookup_history on the CPU.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <limits>
#include <string>
#include <vector>

#include "ops.h"
#include "outputs.h"
#include "parallel.h"
#include "pipeline.h"
#include "table.h"

namespace embedding_store {
namespace {

constexpr int64_t kGrain = 1024;  // ids a thread, at least: waking one costs some microseconds
constexpr int kOrderBits = 12;  // of hashes, by which ids are ordered: a part of 100 million rows' index is 1 MiB
constexpr int64_t kMostPlaces = 4096;  // of each id: every place takes memory, whether a version is there or not
constexpr int64_t kStreamBytes = int64_t{1} << 20;  // outputs from here on leave no room in the caches: go past them

Tensor contiguous_ids(const Tensor& ids) {
  if (ids.scalar_type() != ScalarType::Long) throw std::invalid_argument("ids are not int64");
  return torch::stable::contiguous(ids);
}

// `tensor` as contiguous int64, one for each of `count`; `of` names these.
Tensor contiguous_longs(const Tensor& tensor, int64_t count, const std::string& name, const std::string& of) {
  if (tensor.scalar_type() != ScalarType::Long || tensor.numel() != count) {
    throw std::invalid_argument(name + " is not int64, one for each " + of);
  }
  return torch::stable::contiguous(tensor);
}

const int64_t* longs(const Tensor& contiguous) { return static_cast<const int64_t*>(contiguous.const_data_ptr()); }

std::vector<int64_t> shape_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }

// Found of `shape`, and vectors of one dimension more. `order` holds the ids, as many as `found` has elements, in the
// order in which they are looked up: number i of them belongs to position_of(i) of the outputs, and to the table that
// finder_of(i) gives, as find_all wants it. `ids` tells the device.
template <class FinderOf, class PositionOf>
std::tuple<Tensor, Tensor> lookup_in(
    const Tensor& ids, std::vector<int64_t> shape, const int64_t* order, const FinderOf& finder_of,
    const PositionOf& position_of, int64_t dim, Dtype dtype, ScalarType out, int64_t* counters) {
  Tensor found = torch::stable::new_empty(ids, shape, ScalarType::Bool);
  const int64_t count = found.numel();
  shape.push_back(dim);
  const OutDtype type = out_dtype(out);
  const int64_t out_bytes = dim * element_bytes(type);
  Tensor vectors = new_output(ids, shape, out, count * out_bytes);

  auto* vectors_data = static_cast<uint8_t*>(vectors.mutable_data_ptr());
  auto* found_data = static_cast<bool*>(found.mutable_data_ptr());
  const bool aligned = reinterpret_cast<uintptr_t>(vectors_data) % kCacheLine == 0 && out_bytes % kCacheLine == 0;
  const RowFunctions functions = row_functions(dtype, type);
  const bool streams = aligned && count * out_bytes >= kStreamBytes;
  const CopyRow copy = streams ? functions.stream : functions.copy;
  const ClearRow clear = streams ? functions.stream_zeros : functions.clear;
  std::array<std::atomic<int64_t>, 3> totals{};
  parallel(0, count, kGrain, [&](int64_t begin, int64_t end) {
    std::array<int64_t, 3> counts{};  // hot, cold, missing
    const auto finder = [&](int64_t i) { return finder_of(begin + i); };
    find_all(order + begin, end - begin, finder, [&](int64_t i, const Row& row, uint64_t segment) {
      const int64_t position = position_of(begin + i);
      uint8_t* target = vectors_data + position * out_bytes;
      const bool is_found = row.vector != nullptr;
      found_data[position] = is_found;
      ++counts[!is_found ? 2 : segment != 0];
      if (is_found) copy(row, dim, target);
      else clear(dim, target);
    });
    std::atomic_thread_fence(std::memory_order_seq_cst);  // streamed rows may be behind what is stored after them
    for (size_t i = 0; i < counts.size(); ++i) totals[i] += counts[i];
  });
  if (counters != nullptr) {
    for (size_t i = 0; i < totals.size(); ++i) counters[i] += totals[i];
  }
  return {vectors, found};
}

std::tuple<Tensor, Tensor> lookup_in(
    const TableView& table, const Tensor& ids_tensor, ScalarType out, int64_t* counters) {
  const Tensor ids = contiguous_ids(ids_tensor);
  const Finder finder(table);
  return lookup_in(
      ids, shape_of(ids), longs(ids), [&](int64_t) { return &finder; }, [](int64_t i) { return i; }, table.dim,
      table.dtype, out, counters);
}

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
  int64_t seed() const { return views_[0].seed; }  // of the first: tables of one series nearly always share it
  const Finder* finder(int64_t number) const { return number < 0 ? nullptr : &finders_[number]; }

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

// The positions of ids in the order of their tables, those of no table (-1) first. Looked up in this order the page
// tables of one table's memory at a time are in the caches; in a random order over many tables they are not.
std::vector<int64_t> by_table(
    const int64_t* choice,  // [count]: -1 .. tables - 1
    int64_t count, int64_t tables) {
  std::vector<int64_t> starts(tables + 2);  // of no table, of table 0, ...
  for (int64_t i = 0; i < count; ++i) ++starts[choice[i] + 2];
  for (size_t table = 1; table < starts.size(); ++table) starts[table] += starts[table - 1];
  std::vector<int64_t> positions(count);
  for (int64_t i = 0; i < count; ++i) positions[starts[choice[i] + 1]++] = i;
  return positions;
}

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

// Versions of a series, oldest first, and the newest of them that each id may see: the k up to it are its places.
struct History {
  const int64_t* ids;         // [count]
  const int64_t* timestamps;  // [count]
  const int64_t* newest;      // [count]: -1 .. versions - 1
  int64_t count;
  const int64_t* as_of;    // [versions]
  const int64_t* numbers;  // [versions]: each one's among the tables, -1: none
  int64_t versions, k;
};

// A lookup of a history.
struct Place {
  int64_t position;      // of the outputs
  const Finder* finder;  // nullptr: no table
};

// Lookups in the order in which they are made.
struct Order {
  std::vector<int64_t> ids;
  std::vector<Place> places;
};

// Version by version, for by_table's reason, and in each by_bucket. Those that ids with fewer than k versions lack count down from -1 to -k.
Order by_version(const History& history, const Tables& tables) {
  const int64_t k = history.k;
  std::vector<int64_t> changes(history.versions + k + 1);  // in how many ids see a version, from version -k on
  for (int64_t i = 0; i < history.count; ++i) {
    ++changes[history.newest[i] + 1];
    --changes[history.newest[i] + k + 1];
  }
  std::vector<int64_t> starts(history.versions + k);
  for (size_t i = 1, ids = changes[0]; i < starts.size(); ids += changes[i++]) starts[i] = starts[i - 1] + ids;
  Order order{std::vector<int64_t>(history.count * k), std::vector<Place>(history.count * k)};
  for (const int64_t i : by_bucket(history.ids, history.count, tables.seed())) {
    for (int64_t place = 0; place < k; ++place) {
      const int64_t version = history.newest[i] - place;
      const int64_t next = starts[version + k]++;
      order.ids[next] = history.ids[i];
      order.places[next] = {i * k + place, tables.finder(version < 0 ? -1 : history.numbers[version])};
    }
  }
  return order;
}

// timestamp - as_of where `mask`, else 0; int64's largest where it is more: a timestamp may ask for the newest.
Tensor ages_of(const History& history, const Tensor& mask) {
  const int64_t count = mask.numel();
  Tensor ages = new_output(mask, shape_of(mask), ScalarType::Long, count * static_cast<int64_t>(sizeof(int64_t)));
  const auto* held = static_cast<const bool*>(mask.const_data_ptr());
  auto* values = static_cast<int64_t*>(ages.mutable_data_ptr());
  parallel(0, history.count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t id = begin; id < end; ++id) {
      for (int64_t place = 0; place < history.k; ++place) {
        const int64_t position = id * history.k + place;
        int64_t age = 0;
        if (held[position] &&
            __builtin_sub_overflow(history.timestamps[id], history.as_of[history.newest[id] - place], &age)) {
          age = std::numeric_limits<int64_t>::max();
        }
        values[position] = age;
      }
    }
  });
  return ages;
}

}  // namespace

std::tuple<Tensor, Tensor> lookup(
    const Tensor& ids, const Tensor& storage, const Tensor& layout, int64_t dim, const std::string& dtype,
    ScalarType out) {
  return lookup_in(TableView(storage, storage, layout, dim, dtype), ids, out, nullptr);
}

std::tuple<Tensor, Tensor> lookup_tiered(
    const Tensor& ids, const Tensor& storage, const Tensor& cold, const Tensor& layout, int64_t dim,
    const std::string& dtype, ScalarType out, Tensor counters) {
  if (counters.scalar_type() != ScalarType::Long || counters.numel() != 3 || !counters.is_contiguous()) {
    throw std::invalid_argument("counters are not a contiguous int64 tensor [3]");
  }
  auto* counts = static_cast<int64_t*>(counters.mutable_data_ptr());
  return lookup_in(TableView(storage, cold, layout, dim, dtype), ids, out, counts);
}

std::tuple<Tensor, Tensor> lookup_versions(
    const Tensor& ids_tensor, const Tensor& choice_tensor, const std::vector<Tensor>& storages,
    const std::vector<Tensor>& layouts, int64_t dim, const std::string& dtype, ScalarType out) {
  const Tables tables(storages, layouts, dim, dtype);
  const Tensor ids = contiguous_ids(ids_tensor);
  const Tensor choices = contiguous_longs(choice_tensor, ids.numel(), "choice", "id");
  const int64_t* ids_data = longs(ids);
  const int64_t* choice = longs(choices);
  check_numbers(choice, ids.numel(), tables.count(), "choice", "tables");
  const std::vector<int64_t> positions = by_table(choice, ids.numel(), tables.count());
  std::vector<int64_t> order(positions.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = ids_data[positions[i]];
  const auto finder_of = [&](int64_t i) { return tables.finder(choice[positions[i]]); };
  const auto position_of = [&](int64_t i) { return positions[i]; };
  return lookup_in(ids, shape_of(ids), order.data(), finder_of, position_of, dim, tables.dtype(), out, nullptr);
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
  const History history{
      longs(ids), longs(timestamps), longs(newest), count, longs(as_of), longs(numbers), versions, k};
  const Order order = by_version(history, tables);
  std::vector<int64_t> shape = shape_of(ids);
  shape.push_back(k);
  const auto finder_of = [&](int64_t i) { return order.places[i].finder; };
  const auto position_of = [&](int64_t i) { return order.places[i].position; };
  auto [vectors, mask] =
      lookup_in(ids, shape, order.ids.data(), finder_of, position_of, dim, tables.dtype(), out, nullptr);
  return {vectors, mask, ages_of(history, mask)};
}

}  // namespace embedding_store
