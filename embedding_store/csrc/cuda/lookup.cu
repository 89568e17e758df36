// `lookup`: its kernels chosen and launched.
#include "dispatch.h"
#include "launch.h"
#include "lookup_kernel.h"

namespace embedding_store::cuda {

void launch_lookup(LookupArguments arguments, Dtype dtype, OutDtype out, int processors, cudaStream_t stream) {
  const Plan plan = lookup_plan(arguments.count, processors);
  arguments.ids_per_warp = plan.ids_per_warp;
  with_lookup<4, 2>(dtype, out, arguments.dim, [&](auto stored, auto result, auto values) {
    lookup_kernel<decltype(stored)::value, decltype(result)::value, decltype(values)::value>
        <<<plan.blocks, plan.threads, 0, stream>>>(arguments);
  });
}

}  // namespace embedding_store::cuda
