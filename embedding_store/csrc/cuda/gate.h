// `enter` and `leave` on CUDA: the ops, and what launches their kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace embedding_store::cuda {

// `row`: int64 [count + 1] gets the numbers of the slot that is entered, and which one that is.
void launch_enter(int64_t* gate, const int64_t* rows, int64_t count, int64_t* row, cudaStream_t stream);

void launch_leave(int64_t* gate, const int64_t* slot, cudaStream_t stream);

}  // namespace embedding_store::cuda
