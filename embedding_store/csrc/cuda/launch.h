// Host functions that launch the kernels: what ops.cpp sees of them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "arguments.h"

namespace embedding_store::cuda {

// `counters`: int64 [3] on the device += hot, cold, missing; or null. Errors are left to cudaGetLastError.
void launch_lookup(
    LookupArguments arguments, Dtype dtype, OutDtype out, unsigned long long* counters, int processors,
    cudaStream_t stream);

void launch_pooled(const PooledArguments& arguments, Dtype dtype, int processors, cudaStream_t stream);

}  // namespace embedding_store::cuda
