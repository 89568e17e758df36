// Memory for the tensors that lookups give back.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

namespace embedding_store {

// An uninitialised CPU tensor. A large one's memory is kept when the tensor is gone, up to a bound for the process, for
// the next one of about its size: fresh memory from the system costs more than the rows that go into it.
torch::stable::Tensor new_output(
    const torch::stable::Tensor& ids,  // for its device
    const std::vector<int64_t>& shape, torch::headeronly::ScalarType dtype, int64_t bytes);

}  // namespace embedding_store
