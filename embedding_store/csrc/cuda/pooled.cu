// Launches of `lookup_pooled` and `lookup_pooled_tiered`.
#include "dispatch.h"
#include "launch.h"
#include "pooled_kernel.h"

namespace embedding_store::cuda {
namespace {

void launch_finish(const PooledArguments& arguments, cudaStream_t stream) {
  with_values<4, 2>(arguments.dim, [&](auto values) {
    constexpr int kValues = decltype(values)::value;
    const auto blocks = static_cast<unsigned>((arguments.plan.units + kFinishWarps - 1) / kFinishWarps);
    const auto tiles = static_cast<unsigned>((arguments.dim + warp::kLanes * kValues - 1) / (warp::kLanes * kValues));
    finish_kernel<kValues><<<dim3(blocks, tiles), kFinishWarps * warp::kLanes, 0, stream>>>(arguments);
  });
}

}  // namespace

void launch_pooled(const PooledArguments& arguments, Dtype dtype, cudaStream_t stream) {
  const int64_t warps = arguments.plan.units * arguments.plan.ranges;
  const int in_block = arguments.plan.threads / warp::kLanes;
  const auto blocks = static_cast<unsigned>((warps + in_block - 1) / in_block);
  with_pooled(dtype, pooled_values(dtype, arguments.dim), [&](auto stored, auto values) {
    pooled_kernel<decltype(stored)::value, decltype(values)::value>
        <<<blocks, arguments.plan.threads, 0, stream>>>(arguments);
  });
  launch_finish(arguments, stream);
}

}  // namespace embedding_store::cuda
