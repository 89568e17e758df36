// Kernels of `lookup` and `lookup_tiered`.
#include "dispatch.h"
#include "launch.h"
#include "lookup.h"
#include "plan.h"

namespace embedding_store::cuda {
namespace {

template <Dtype kDtype, OutDtype kOut, int kValues>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    lookup_kernel(const LookupArguments arguments, unsigned long long* counters) {
  const int lane = threadIdx.x % warp::kLanes;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / warp::kLanes;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
  const Hits hits = lookup_warp<kDtype, kOut, kValues>(arguments, warp, warps, lane);
  if (counters == nullptr) return;
  __shared__ unsigned long long block_hits[3];
  if (threadIdx.x < 3) block_hits[threadIdx.x] = 0;
  __syncthreads();
  if (lane < 3) {
    const int64_t mine = lane == 0 ? hits.hot : lane == 1 ? hits.cold : hits.missing;
    atomicAdd(&block_hits[lane], static_cast<unsigned long long>(mine));
  }
  __syncthreads();
  if (threadIdx.x < 3) atomicAdd(counters + threadIdx.x, block_hits[threadIdx.x]);
}

}  // namespace

void launch_lookup(
    LookupArguments arguments, Dtype dtype, OutDtype out, unsigned long long* counters, int processors,
    cudaStream_t stream) {
  arguments.ids_per_warp = ids_per_warp(arguments.count, processors);
  arguments.count_hits = counters != nullptr;
  const int64_t steps = (arguments.count + arguments.ids_per_warp - 1) / arguments.ids_per_warp;
  const int blocks = blocks_for(steps, processors);
  with_dtype(dtype, [&](auto dtype_constant) {
    with_out(out, [&](auto out_constant) {
      constexpr Dtype kDtype = decltype(dtype_constant)::value;
      constexpr OutDtype kOut = decltype(out_constant)::value;
      with_values<16 / kOutBytes<kOut>, 4, 2>(arguments.dim, [&](auto values) {
        constexpr int kValues = decltype(values)::value;
        lookup_kernel<kDtype, kOut, kValues><<<blocks, kThreads, 0, stream>>>(arguments, counters);
      });
    });
  });
}

}  // namespace embedding_store::cuda
