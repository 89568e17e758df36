#include "outputs.h"

#include <sys/mman.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <mutex>
#include <new>

#include "../common/names.h"
#include "../common/tensors.h"
#include "fork.h"
#include "pages.h"

namespace embedding_store {
namespace {

constexpr int64_t kLarge = int64_t{8} << 20;    // from here on malloc takes fresh memory each time, or may
constexpr int64_t kKept = int64_t{128} << 20;   // bytes that the process keeps at most
constexpr int64_t kStream = int64_t{1} << 20;   // outputs from here on leave no room in the caches: go past them

struct Block {
  void* data;
  int64_t bytes;
};

// Whole pages of 2 MiB where the system leaves that to the program (transparent_hugepage = madvise).
Block fresh(int64_t bytes) {
  const int64_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  const int64_t reserved = rounded + kHugePage;
  void* mapped = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw NoMemory(bytes);
  auto* first = static_cast<uint8_t*>(mapped);
  auto* data = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(first) + kHugePage - 1) / kHugePage * kHugePage);
  if (data > first) munmap(first, data - first);
  munmap(data + rounded, first + reserved - (data + rounded));
  madvise(data, rounded, MADV_HUGEPAGE);
  return {data, rounded};
}

std::mutex pool_mutex;
[[maybe_unused]] const bool pool_forks = free_in_child<pool_mutex>();

class Pool {
 public:
  Block take(int64_t bytes) {
    {
      const std::lock_guard lock(pool_mutex);
      const auto fits = [&](const Block& block) { return block.bytes >= bytes && block.bytes <= 2 * bytes; };
      const auto found = std::find_if(kept_.begin(), kept_.end(), fits);
      if (found != kept_.end()) {
        const Block block = *found;
        kept_.erase(found);
        kept_bytes_ -= block.bytes;
        return block;
      }
    }
    return fresh(bytes);
  }

  void give(Block block) {
    std::vector<Block> dropped;
    {
      const std::lock_guard lock(pool_mutex);
      kept_.push_back(block);
      kept_bytes_ += block.bytes;
      while (kept_bytes_ > kKept) {  // the oldest goes: sizes that are asked for no more do not stay for ever
        dropped.push_back(kept_.front());
        kept_bytes_ -= kept_.front().bytes;
        kept_.erase(kept_.begin());
      }
    }
    for (const Block& old : dropped) munmap(old.data, old.bytes);
  }

 private:
  std::vector<Block> kept_;
  int64_t kept_bytes_ = 0;
};

Pool& pool = *new Pool;  // never destroyed: a tensor may outlive the statics of this library

}  // namespace

torch::stable::Tensor new_output(
    const torch::stable::Tensor& ids, const std::vector<int64_t>& shape, torch::headeronly::ScalarType dtype,
    int64_t bytes) {
  if (bytes < kLarge) return empty_beside(ids, shape, dtype);
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  const Block block = pool.take(bytes);
  const torch::stable::Device device(torch::headeronly::DeviceType::CPU);
  return torch::stable::from_blob(
      block.data, shape, strides, device, dtype, [block](void*) { pool.give(block); });
}

Vectors::Vectors(
    const torch::stable::Tensor& ids, std::vector<int64_t> shape, int64_t dim, Dtype dtype,
    torch::headeronly::ScalarType out)
    : dim_(dim), row_bytes_(dim * element_bytes(out_dtype(out))) {
  int64_t bytes = row_bytes_;
  for (const int64_t size : shape) bytes *= size;
  shape.push_back(dim);
  tensor_ = new_output(ids, shape, out, bytes);
  data_ = static_cast<uint8_t*>(tensor_.mutable_data_ptr());
  const RowFunctions functions = row_functions(dtype, out_dtype(out));
  const bool aligned = reinterpret_cast<uintptr_t>(data_) % kCacheLine == 0 && row_bytes_ % kCacheLine == 0;
  const bool streams = aligned && bytes >= kStream;
  copy_ = streams ? functions.stream : functions.copy;
  clear_ = streams ? functions.stream_zeros : functions.clear;
}

}  // namespace embedding_store
