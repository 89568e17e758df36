// Kernels of `lookup_tiered`.
#include "tiered.h"

#include "dispatch.h"
#include "launch.h"
#include "plan.h"

namespace embedding_store::cuda {
namespace {

template <Dtype kDtype, OutDtype kOut, int kValues>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    lookup_tiered_kernel(const __grid_constant__ LookupArguments arguments, unsigned long long* counters) {
  const int lane = threadIdx.x % warp::kLanes;
  const int64_t warps_here = blockDim.x / warp::kLanes;
  const int64_t warp = blockIdx.x * warps_here + threadIdx.x / warp::kLanes;
  const int64_t id = first_id(arguments, warp, lane);
  __shared__ TableNumbers numbers;
  __shared__ unsigned long long block_hits[3];
  read_numbers(arguments.table, threadIdx.x, &numbers);
  if (threadIdx.x < 3) block_hits[threadIdx.x] = 0;
  __syncthreads();
  const Hits hits =
      lookup_tiered_warp<kDtype, kOut, kValues>(arguments, numbers, id, warp, gridDim.x * warps_here, lane);
  if (lane < 3) {
    const int64_t mine = lane == 0 ? hits.hot : lane == 1 ? hits.cold : hits.missing;
    atomicAdd(&block_hits[lane], static_cast<unsigned long long>(mine));
  }
  __syncthreads();
  if (threadIdx.x < 3) atomicAdd(counters + threadIdx.x, block_hits[threadIdx.x]);
}

}  // namespace

void launch_lookup_tiered(
    LookupArguments arguments, Dtype dtype, OutDtype out, unsigned long long* counters, int processors,
    cudaStream_t stream) {
  const Plan plan = lookup_plan(arguments.count, processors);
  arguments.ids_per_warp = plan.ids_per_warp;
  with_dtype(dtype, [&](auto dtype_constant) {
    with_out(out, [&](auto out_constant) {
      constexpr Dtype kDtype = decltype(dtype_constant)::value;
      constexpr OutDtype kOut = decltype(out_constant)::value;
      with_values<16 / kOutBytes<kOut>, 4, 2>(arguments.dim, [&](auto values) {
        constexpr int kValues = decltype(values)::value;
        lookup_tiered_kernel<kDtype, kOut, kValues>
            <<<plan.blocks, plan.threads, 0, stream>>>(arguments, counters);
      });
    });
  });
}

}  // namespace embedding_store::cuda
