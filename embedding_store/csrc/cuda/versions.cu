// Kernels of `lookup_versions` and `locate`.
#include "dispatch.h"
#include "launch.h"
#include "locate.h"
#include "plan.h"
#include "versions.h"

namespace embedding_store::cuda {
namespace {

template <Dtype kDtype, OutDtype kOut, int kValues>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    versions_kernel(const __grid_constant__ VersionsArguments arguments) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / warp::kLanes;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
  versions_warp<kDtype, kOut, kValues>(arguments, warp, warps, threadIdx.x % warp::kLanes);
}

__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    locate_kernel(const __grid_constant__ LocateArguments arguments) {
  __shared__ TableNumbers numbers;
  read_numbers(arguments.table, threadIdx.x, &numbers);
  __syncthreads();
  const int64_t warps_here = blockDim.x / warp::kLanes;
  const int64_t warp = blockIdx.x * warps_here + threadIdx.x / warp::kLanes;
  locate_warp(arguments, numbers, warp, gridDim.x * warps_here, threadIdx.x % warp::kLanes);
}

}  // namespace

void launch_versions(
    const VersionsArguments& arguments, Dtype dtype, OutDtype out, int processors, cudaStream_t stream) {
  const int blocks = blocks_for((arguments.count + warp::kLanes - 1) / warp::kLanes, processors);
  with_lookup<4>(dtype, out, arguments.dim, [&](auto stored, auto result, auto values) {
    versions_kernel<decltype(stored)::value, decltype(result)::value, decltype(values)::value>
        <<<blocks, kThreads, 0, stream>>>(arguments);
  });
}

void launch_locate(LocateArguments arguments, int processors, cudaStream_t stream) {
  const Plan plan = lookup_plan(arguments.count, processors);
  arguments.ids_per_warp = plan.ids_per_warp;
  locate_kernel<<<plan.blocks, plan.threads, 0, stream>>>(arguments);
}

}  // namespace embedding_store::cuda
