// Kernels of `lookup_history`.
#include "dispatch.h"
#include "history_kernel.h"
#include "launch.h"

namespace embedding_store::cuda {

void launch_history(
    const HistoryArguments& arguments, Dtype dtype, OutDtype out, int processors, cudaStream_t stream) {
  const int64_t places = arguments.count * arguments.k;
  const int blocks = blocks_for((places + warp::kLanes - 1) / warp::kLanes, processors);
  with_dtype(dtype, [&](auto dtype_constant) {
    with_out(out, [&](auto out_constant) {
      constexpr Dtype kDtype = decltype(dtype_constant)::value;
      constexpr OutDtype kOut = decltype(out_constant)::value;
      with_values<16 / kOutBytes<kOut>, 4>(arguments.dim, [&](auto values) {
        history_kernel<kDtype, kOut, decltype(values)::value><<<blocks, kThreads, 0, stream>>>(arguments);
      });
    });
  });
}

}  // namespace embedding_store::cuda
