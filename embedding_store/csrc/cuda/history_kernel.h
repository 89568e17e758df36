// The kernel of `lookup_history`. Apart from its launch, so that a test looks at the machine code of one of them.
#pragma once

#include "history.h"
#include "plan.h"

namespace embedding_store::cuda {

template <Dtype kDtype, OutDtype kOut, int kValues>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    history_kernel(const __grid_constant__ HistoryArguments arguments) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / warp::kLanes;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
  history_warp<kDtype, kOut, kValues>(arguments, warp, warps, threadIdx.x % warp::kLanes);
}

}  // namespace embedding_store::cuda
