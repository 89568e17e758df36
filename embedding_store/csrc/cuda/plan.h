// How much of the device a call takes.
#pragma once

#include <cstdint>

namespace embedding_store::cuda {

constexpr int kWarpsPerBlock = 4;
constexpr int kThreads = kWarpsPerBlock * 32;
constexpr int kBlocksPerProcessor = 6;  // 80 registers a thread; 24 warps with 8 loads of 16 bytes in flight a lane

// Blocks for so many steps of a warp: no more than run at once, each warp takes several steps then.
inline int blocks_for(int64_t steps, int processors) {
  const int64_t blocks = (steps + kWarpsPerBlock - 1) / kWarpsPerBlock;
  const int64_t most = static_cast<int64_t>(processors) * kBlocksPerProcessor;
  return static_cast<int>(blocks < most ? blocks : most);
}

// Ids a warp takes a step. Many hide latencies best, as long as all of the device has work for several steps.
inline int ids_per_warp(int64_t count, int processors) {
  const int64_t warps = static_cast<int64_t>(processors) * kBlocksPerProcessor * kWarpsPerBlock;
  int ids = 32;
  while (ids > 8 && count < 4 * warps * ids) ids /= 2;
  return ids;
}

}  // namespace embedding_store::cuda
