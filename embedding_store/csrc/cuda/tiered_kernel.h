// The kernels of `lookup_tiered`. Apart from their launch, so that a test looks at the machine code of one of them.
#pragma once

#include "plan.h"
#include "tiered.h"

namespace embedding_store::cuda {

template <Dtype kDtype, OutDtype kOut, int kValues>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) lookup_tiered_kernel(
    const __grid_constant__ LookupArguments arguments, const Claims claims, unsigned long long* counters) {
  const int lane = threadIdx.x % warp::kLanes;
  const int64_t warps_here = blockDim.x / warp::kLanes;
  const int64_t warp = blockIdx.x * warps_here + threadIdx.x / warp::kLanes;
  const int64_t id = first_id(arguments, warp, lane);
  ES_SHARED(numbers, TableNumbers);
  ES_SHARED(counts, int[kCounts]);
  read_numbers(arguments.table, threadIdx.x, &numbers);
  if (threadIdx.x < kCounts) counts[threadIdx.x] = 0;
  __syncthreads();
  lookup_tiered_warp<kDtype, kOut, kValues>(
      arguments, numbers, claims, counts, id, warp, gridDim.x * warps_here, lane);
  __syncthreads();
  if (threadIdx.x < kCounts) {
    atomicAdd(counters + threadIdx.x, static_cast<unsigned long long>(counts[threadIdx.x]));
  }
}

template <int kBytes>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    copy_repeats_kernel(const Claims claims, int64_t row_bytes, uint8_t* vectors) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / warp::kLanes;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
  copy_repeats_warp<kBytes>(claims, row_bytes, vectors, warp, warps, threadIdx.x % warp::kLanes);
}

}  // namespace embedding_store::cuda
