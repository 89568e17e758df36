// distinct and gather on the CPU: what a lookup does before and after ranks exchange ids and rows.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "arguments.h"
#include "ops.h"
#include "outputs.h"
#include "parallel.h"
#include "pipeline.h"

namespace embedding_store {
namespace {

constexpr int64_t kAhead = 16;  // ids, or rows, on their way from memory

// Numbers ids 0, 1, 2, ... in the order in which they are first met.
class Numbers {
 public:
  explicit Numbers(int64_t ids) {
    uint64_t slots = 64;
    while (slots < 2 * static_cast<uint64_t>(ids)) slots *= 2;
    slots_.assign(slots, -1);
    mask_ = slots - 1;
  }

  void fetch(uint64_t hash) const { __builtin_prefetch(&slots_[hash & mask_]); }

  // The id's number; `met` holds all before, and it too if it is new.
  int32_t of(int64_t id, uint64_t hash, std::vector<int64_t>& met) {
    for (uint64_t slot = hash & mask_;; slot = (slot + 1) & mask_) {
      const int32_t number = slots_[slot];
      if (number < 0) {
        slots_[slot] = static_cast<int32_t>(met.size());
        met.push_back(id);
        return slots_[slot];
      }
      if (met[number] == id) return number;
    }
  }

 private:
  std::vector<int32_t> slots_;  // -1: empty. By the hash's low bits: its high ones say which part an id belongs to
  uint64_t mask_;
};

// A row with all that belongs to it: the vector, the scale and the offset of a quantised one, and a word that is not 0.
struct Record {
  Record(Dtype dtype, int64_t dim) {
    const int64_t vector = (row_bytes(dtype, dim) + 3) / 4 * 4;
    scale = is_quantised(dtype) ? vector : -1;
    flag = vector + (is_quantised(dtype) ? 8 : 0);
    bytes = flag + 4;
  }

  Row at(const uint8_t* record) const {
    uint32_t there;
    std::memcpy(&there, record + flag, sizeof there);
    if (there == 0) return {nullptr, nullptr, nullptr};
    if (scale < 0) return {record, nullptr, nullptr};
    const auto* numbers = reinterpret_cast<const float*>(record + scale);
    return {record, numbers, numbers + 1};
  }

  int64_t scale, flag, bytes;
};

const uint8_t* records_of(const Tensor& tensor, const Record& record, const char* name) {
  if (tensor.scalar_type() != ScalarType::Byte || tensor.dim() != 2 || tensor.size(1) != record.bytes ||
      !tensor.is_contiguous() || reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 4 != 0) {
    throw std::invalid_argument(
        std::string(name) + " is not a contiguous uint8 tensor [N, " + std::to_string(record.bytes) + "]");
  }
  return static_cast<const uint8_t*>(tensor.const_data_ptr());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> distinct(const Tensor& ids_tensor, int64_t parts) {
  if (parts < 1 || parts > std::numeric_limits<int32_t>::max()) throw std::invalid_argument("parts is not 1 or more");
  const Tensor ids = contiguous_ids(ids_tensor);
  const int64_t count = ids.numel();
  if (count > std::numeric_limits<int32_t>::max()) throw std::invalid_argument("more than 2^31 - 1 ids in one call");
  Numbers numbers(count);
  std::vector<int64_t> met;
  met.reserve(count);
  Tensor places = torch::stable::new_empty(ids, shape_of(ids), ScalarType::Long);
  auto* place = static_cast<int64_t*>(places.mutable_data_ptr());
  uint64_t hashes[kAhead];
  for (int64_t first = 0; first < count; first += kAhead) {
    const int64_t last = std::min(first + kAhead, count);
    for (int64_t i = first; i < last; ++i) {
      hashes[i - first] = hash_id(longs(ids)[i], 0);
      numbers.fetch(hashes[i - first]);
    }
    for (int64_t i = first; i < last; ++i) place[i] = numbers.of(longs(ids)[i], hashes[i - first], met);
  }
  Tensor found = torch::stable::new_empty(ids, {static_cast<int64_t>(met.size())}, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(ids, {parts}, ScalarType::Long);
  auto* sorted = static_cast<int64_t*>(found.mutable_data_ptr());
  auto* sizes = static_cast<int64_t*>(counts.mutable_data_ptr());
  std::fill_n(sizes, parts, 0);
  std::vector<int64_t> moved(met.size());
  for (size_t i = 0; i < met.size(); ++i) ++sizes[moved[i] = home_bucket(hash_id(met[i], 0), parts)];
  std::vector<int64_t> next(parts, 0);
  for (int64_t part = 1; part < parts; ++part) next[part] = next[part - 1] + sizes[part - 1];
  for (size_t i = 0; i < met.size(); ++i) {
    moved[i] = next[moved[i]]++;
    sorted[moved[i]] = met[i];
  }
  for (int64_t i = 0; i < count; ++i) place[i] = moved[place[i]];
  return {found, counts, places};
}

std::tuple<Tensor, Tensor> gather(
    const Tensor& places_tensor, const Tensor& own_tensor, const Tensor& received_tensor, int64_t dim,
    const std::string& name, ScalarType out) {
  if (dim < 1 || dim > kMaxDim) throw std::invalid_argument("dim is " + std::to_string(dim));
  const Dtype dtype = dtype_named(name);
  const Record record(dtype, dim);
  const uint8_t* own = records_of(own_tensor, record, "own");
  const uint8_t* received = records_of(received_tensor, record, "received");
  const int64_t owned = own_tensor.size(0), all = owned + received_tensor.size(0);
  const Tensor places = contiguous_ids(places_tensor);
  const int64_t* place = longs(places);
  const Vectors vectors(places, shape_of(places), dim, dtype, out);
  Tensor found = torch::stable::new_empty(places, shape_of(places), ScalarType::Bool);
  auto* found_data = static_cast<bool*>(found.mutable_data_ptr());
  const auto at = [&](int64_t number) {
    return number < owned ? own + number * record.bytes : received + (number - owned) * record.bytes;
  };
  parallel(0, places.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (place[i] >= all) throw std::invalid_argument("places has " + std::to_string(place[i]) + ", beyond all rows");
      if (i + kAhead < end && place[i + kAhead] >= 0 && place[i + kAhead] < all) {
        prefetch(at(place[i + kAhead]), record.bytes);
      }
      const Row row = place[i] < 0 ? Row{nullptr, nullptr, nullptr} : record.at(at(place[i]));
      found_data[i] = row.vector != nullptr;
      vectors.put(row, i);
    }
    vectors.settle();
  });
  return {vectors.tensor(), found};
}

}  // namespace embedding_store
