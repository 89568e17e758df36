// Kernels of `lookup_history`.
#include "dispatch.h"
#include "history_kernel.h"
#include "launch.h"

namespace embedding_store::cuda {

void launch_history(
    const HistoryArguments& arguments, Dtype dtype, OutDtype out, int processors, cudaStream_t stream) {
  const int64_t places = arguments.count * arguments.k;
  const int blocks = blocks_for((places + warp::kLanes - 1) / warp::kLanes, processors);
  with_lookup<4>(dtype, out, arguments.dim, [&](auto stored, auto result, auto values) {
    history_kernel<decltype(stored)::value, decltype(result)::value, decltype(values)::value>
        <<<blocks, kThreads, 0, stream>>>(arguments);
  });
}

}  // namespace embedding_store::cuda
