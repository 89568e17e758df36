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

struct Plan {
  int ids_per_warp;  // a step: 4, 8, 16 or 32
  int threads;       // a block
  int blocks;
};

// The fewest ids a warp with which each warp that runs at once has one step, for then all accesses of a kind are under
// way together: the call takes as long as three accesses that wait for each other (id, buckets, row), some 700 ns each,
// if its bytes travel in less. With 132 processors, up to 12 672 ids are 4 a warp, 25 344 are 8, 50 688 are 16. More
// have 32: while one warp waits others work, and fewer instructions an id count for more.
inline Plan lookup_plan(int64_t count, int processors) {
  const int64_t warps = static_cast<int64_t>(processors) * kBlocksPerProcessor * kWarpsPerBlock;
  int ids = 4;
  while (ids < 32 && count > warps * ids) ids *= 2;
  const int64_t steps = (count + ids - 1) / ids;
  // A block goes to one processor: few steps have one each, so that as many processors as can be share the work.
  const bool few = steps <= static_cast<int64_t>(processors) * kBlocksPerProcessor;
  if (few) return {ids, 32, static_cast<int>(steps)};
  return {ids, kThreads, blocks_for(steps, processors)};
}

}  // namespace embedding_store::cuda
