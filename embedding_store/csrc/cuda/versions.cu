// Kernels of `lookup_versions` and `locate`.
#include "dispatch.h"
#include "launch.h"
#include "locate_kernel.h"
#include "versions_kernel.h"

namespace embedding_store::cuda {

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
