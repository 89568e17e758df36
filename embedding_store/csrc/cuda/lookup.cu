// `lookup`: its kernels chosen and launched.
#include "dispatch.h"
#include "launch.h"
#include "lookup_kernel.h"

namespace embedding_store::cuda {

void launch_lookup(LookupArguments arguments, Dtype dtype, OutDtype out, int processors, cudaStream_t stream) {
  const Plan plan = lookup_plan(arguments.count, processors);
  arguments.ids_per_warp = plan.ids_per_warp;
  with_dtype(dtype, [&](auto dtype_constant) {
    with_out(out, [&](auto out_constant) {
      constexpr Dtype kDtype = decltype(dtype_constant)::value;
      constexpr OutDtype kOut = decltype(out_constant)::value;
      with_values<16 / kOutBytes<kOut>, 4, 2>(arguments.dim, [&](auto values) {
        constexpr int kValues = decltype(values)::value;
        lookup_kernel<kDtype, kOut, kValues><<<plan.blocks, plan.threads, 0, stream>>>(arguments);
      });
    });
  });
}

}  // namespace embedding_store::cuda
