// Memory for the tensors that lookups give back.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "rows.h"

namespace embedding_store {

// An uninitialised CPU tensor. A large one's memory is kept when the tensor is gone, up to a bound for the process, for
// the next one of about its size: fresh memory from the system costs more than the rows that go into it.
torch::stable::Tensor new_output(
    const torch::stable::Tensor& ids,  // for its device
    const std::vector<int64_t>& shape, torch::headeronly::ScalarType dtype, int64_t bytes);

// The vectors of a lookup, a row for each position. Threads may write different ones.
class Vectors {
 public:
  Vectors(
      const torch::stable::Tensor& ids,  // for its device
      std::vector<int64_t> shape,        // of the positions: `dim` comes after it
      int64_t dim, Dtype dtype, torch::headeronly::ScalarType out);

  // `row`, or zeros if row.vector is nullptr.
  void put(const Row& row, int64_t position) const {
    uint8_t* target = data_ + position * row_bytes_;
    if (row.vector != nullptr) copy_(row, dim_, target);
    else clear_(dim_, target);
  }

  // Rows past the caches may be behind what is stored after them, until this: for each thread that put any.
  void settle() const { std::atomic_thread_fence(std::memory_order_seq_cst); }

  const torch::stable::Tensor& tensor() const { return tensor_; }

 private:
  torch::stable::Tensor tensor_;
  int64_t dim_, row_bytes_;
  uint8_t* data_;
  CopyRow copy_;
  ClearRow clear_;
};

}  // namespace embedding_store
