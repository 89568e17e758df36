// Kernels of `lookup_pooled`.
#include "dispatch.h"
#include "launch.h"
#include "plan.h"
#include "pooled.h"

namespace embedding_store::cuda {
namespace {

template <Dtype kDtype, int kValues>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    pooled_kernel(const __grid_constant__ PooledArguments arguments) {
  __shared__ TableNumbers numbers;
  read_numbers(arguments.table, threadIdx.x, &numbers);
  __syncthreads();
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / warp::kLanes;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
  pooled_warp<kDtype, kValues>(arguments, numbers, warp, warps, threadIdx.x % warp::kLanes);
}

}  // namespace

void launch_pooled(const PooledArguments& arguments, Dtype dtype, int processors, cudaStream_t stream) {
  const int blocks = blocks_for(arguments.bags, processors);
  with_dtype(dtype, [&](auto dtype_constant) {
    constexpr Dtype kDtype = decltype(dtype_constant)::value;
    with_values<4, 2>(arguments.dim, [&](auto values) {
      pooled_kernel<kDtype, decltype(values)::value><<<blocks, kThreads, 0, stream>>>(arguments);
    });
  });
}

}  // namespace embedding_store::cuda
