// The kernel of `locate`. Apart from its launch, so that a test without a GPU runs it.
#pragma once

#include "locate.h"
#include "plan.h"

namespace embedding_store::cuda {

static __global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    locate_kernel(const __grid_constant__ LocateArguments arguments) {
  ES_SHARED(numbers, TableNumbers);
  read_numbers(arguments.table, threadIdx.x, &numbers);
  __syncthreads();
  const int64_t warps_here = blockDim.x / warp::kLanes;
  const int64_t warp = blockIdx.x * warps_here + threadIdx.x / warp::kLanes;
  locate_warp(arguments, numbers, warp, gridDim.x * warps_here, threadIdx.x % warp::kLanes);
}

}  // namespace embedding_store::cuda
