// `lookup_tiered`: its kernels chosen and launched, batch after batch.
#include "dispatch.h"
#include "launch.h"
#include "tiered_kernel.h"

namespace embedding_store::cuda {
namespace {

// Of up to kMostPositions ids.
void launch_batch(
    LookupArguments arguments, Dtype dtype, OutDtype out, const Claims& claims, unsigned long long* counters,
    int processors, cudaStream_t stream) {
  const Plan plan = lookup_plan(arguments.count, processors);
  arguments.ids_per_warp = plan.ids_per_warp;
  with_lookup<4, 2>(dtype, out, arguments.dim, [&](auto stored, auto result, auto values) {
    lookup_tiered_kernel<decltype(stored)::value, decltype(result)::value, decltype(values)::value>
        <<<plan.blocks, plan.threads, 0, stream>>>(arguments, claims, counters);
  });
  if (claims.slots == nullptr) return;
  const int64_t row_bytes = arguments.dim * element_bytes(out);
  const int blocks = blocks_for((arguments.count + warp::kLanes - 1) / warp::kLanes, processors);
  with_values<8, 4, 2>(static_cast<int>(row_bytes / 2), [&](auto halves) {  // of 16 bytes, 8, 4 or 2
    copy_repeats_kernel<2 * decltype(halves)::value>
        <<<blocks, kThreads, 0, stream>>>(claims, row_bytes, arguments.vectors);
  });
}

}  // namespace

int64_t tiered_scratch_words(int64_t count) {
  return count < kLeastPositions ? 0 : claim_words(count < kMostPositions ? count : kMostPositions);
}

void launch_lookup_tiered(
    LookupArguments arguments, Dtype dtype, OutDtype out, unsigned long long* counters, uint64_t* scratch,
    int processors, cudaStream_t stream) {
  const int64_t row_bytes = arguments.dim * element_bytes(out);
  for (int64_t left = arguments.count; left > 0; left -= arguments.count) {
    arguments.count = left < kMostPositions ? left : kMostPositions;
    Claims claims{};
    if (scratch != nullptr) {
      claims = claims_in(scratch, arguments.count);
      if (cudaMemsetAsync(scratch, 0xff, cleared_bytes(claims), stream) != cudaSuccess) return;
    }
    launch_batch(arguments, dtype, out, claims, counters, processors, stream);
    arguments.ids += arguments.count;
    arguments.found += arguments.count;
    arguments.vectors += arguments.count * row_bytes;
  }
}

}  // namespace embedding_store::cuda
