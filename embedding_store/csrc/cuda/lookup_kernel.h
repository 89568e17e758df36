// The kernel of `lookup`. Apart from its launch, so that a test looks at the machine code of one of them.
#pragma once

#include "lookup.h"
#include "plan.h"

namespace embedding_store::cuda {

template <Dtype kDtype, OutDtype kOut, int kValues>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    lookup_kernel(const __grid_constant__ LookupArguments arguments) {
  const int lane = threadIdx.x % warp::kLanes;
  const int64_t warps_here = blockDim.x / warp::kLanes;
  const int64_t warp = blockIdx.x * warps_here + threadIdx.x / warp::kLanes;
  // On its way while the block gets the numbers.
  const int64_t id = first_id(arguments, warp, lane);
  ES_SHARED(numbers, TableNumbers);
  read_numbers(arguments.table, threadIdx.x, &numbers);
  __syncthreads();
  lookup_warp<kDtype, kOut, kValues>(arguments, numbers, id, warp, gridDim.x * warps_here, lane);
}

}  // namespace embedding_store::cuda
