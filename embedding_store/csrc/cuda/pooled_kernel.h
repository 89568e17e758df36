// The kernels of `lookup_pooled`. Apart from their launch, so that a test looks at the machine code of some of them.
#pragma once

#include "pooled.h"
#include "pooled_finish.h"

namespace embedding_store::cuda {

template <Dtype kDtype, int kValues>
__global__ void __launch_bounds__(kThreads, pooled_blocks(kValues))
    pooled_kernel(const __grid_constant__ PooledArguments arguments) {
  ES_SHARED(numbers, TableNumbers);
  ES_SHARED(shared, PooledShared<kValues>[kWarpsPerBlock]);
  read_numbers(arguments.table, threadIdx.x, &numbers);
  __syncthreads();
  const int in_block = threadIdx.x / warp::kLanes;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (blockDim.x / warp::kLanes) + in_block;
  // Warps side by side have the ranges of columns of one unit: its buckets are in the caches for all but the first.
  const int64_t unit = warp / arguments.plan.ranges;
  if (unit >= arguments.plan.units) return;
  const int range = static_cast<int>(warp % arguments.plan.ranges);
  pooled_warp<kDtype, kValues>(arguments, numbers, unit, range, &shared[in_block], threadIdx.x % warp::kLanes);
}

template <int kValues>
__global__ void __launch_bounds__(kFinishWarps * warp::kLanes, 1)
    finish_kernel(const __grid_constant__ PooledArguments arguments) {
  ES_SHARED(shared, FinishShared<kValues>);
  ES_SHARED(long_one, int);  // which of the block's units has a bag of many parts; -1: none
  const int lane = threadIdx.x % warp::kLanes;
  const int warp = threadIdx.x / warp::kLanes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kFinishWarps;
  const bool cuts = first + warp < arguments.plan.units && arguments.results[first + warp].cut_bag >= 0;
  if (threadIdx.x == 0) long_one = -1;
  bool bad = false;
  for (int64_t unit = threadIdx.x; unit < arguments.plan.units; unit += blockDim.x) bad |= arguments.bad[unit];
  if (__syncthreads_or(bad)) {
    const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    const int64_t threads = static_cast<int64_t>(gridDim.x) * gridDim.y * blockDim.x;
    return refuse_all(arguments, block * blockDim.x + threadIdx.x, threads);
  }
  if (arguments.hits != nullptr && blockIdx.x == 0 && blockIdx.y == 0 && warp == 0) {
    const int64_t hits = total_hits(arguments, lane);
    if (lane < kCounts) arguments.hits[lane] = hits;
  }
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * warp::kLanes + lane) * kValues;
  if (cuts) {
    const CutBag cut(arguments, first + warp);
    if (cut.parts <= kFewParts) finish_alone<kValues>(arguments, cut, column, lane);
    else if (lane == 0) long_one = warp;
  }
  __syncthreads();
  if (long_one < 0) return;
  const CutBag cut(arguments, first + long_one);
  finish_share<kValues>(arguments, cut, column, warp, lane, &shared);
  __syncthreads();
  if (warp == 0) finish_shared<kValues>(arguments, cut, column, lane, shared);
}

}  // namespace embedding_store::cuda
