// The kernel that stages the rows of pooled lookups. Apart from its launch, so that a test looks at its machine code.
#pragma once

#include "plan.h"
#include "staging.h"

namespace embedding_store::cuda {

template <int kBytes>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    stage_kernel(const __grid_constant__ StagingArguments arguments) {
  const int lane = threadIdx.x % warp::kLanes;
  const int64_t warps_here = blockDim.x / warp::kLanes;
  const int64_t warp = blockIdx.x * warps_here + threadIdx.x / warp::kLanes;
  const int64_t id = first_id(arguments, warp, lane);
  ES_SHARED(numbers, TableNumbers);
  read_numbers(arguments.table, threadIdx.x, &numbers);
  __syncthreads();
  stage_warp<kBytes>(arguments, numbers, id, warp, gridDim.x * warps_here, lane);
}

}  // namespace embedding_store::cuda
