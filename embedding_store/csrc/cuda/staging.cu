// Cold rows of a pooled lookup brought to the device, batch after batch.
#include <algorithm>

#include "dispatch.h"
#include "launch.h"
#include "staging_kernel.h"

namespace embedding_store::cuda {
namespace {

int64_t batch_of(const PooledArguments& arguments) { return std::min(arguments.count, kMostPositions); }

int64_t places_of(const PooledArguments& arguments, Dtype dtype, int64_t cold_rows) {
  const int64_t stride = staged_stride(is_quantised(dtype), arguments.table.row_bytes);
  return std::min({arguments.count, cold_rows, kStagedBytes / stride});
}

}  // namespace

int64_t staging_bytes(const PooledArguments& arguments, Dtype dtype, int64_t cold_rows) {
  if (arguments.count < kLeastPositions || cold_rows == 0) return 0;
  const int64_t stride = staged_stride(is_quantised(dtype), arguments.table.row_bytes);
  const int64_t words = staging_words(arguments.count, batch_of(arguments));
  return words * static_cast<int64_t>(sizeof(uint64_t)) + places_of(arguments, dtype, cold_rows) * stride;
}

void launch_staging(
    PooledArguments* arguments, Dtype dtype, int64_t cold_rows, uint8_t* memory, int processors, cudaStream_t stream) {
  const bool quantised = is_quantised(dtype);
  const StagingArguments all = staging_in(
      reinterpret_cast<uint64_t*>(memory), arguments->table, arguments->ids, arguments->count, batch_of(*arguments),
      places_of(*arguments, dtype, cold_rows), quantised);
  const int access = staging_access(quantised, arguments->table.row_bytes);
  each_batch(all, arguments->count, batch_of(*arguments), [&](StagingArguments batch, uint64_t* cleared, size_t bytes) {
    if (cudaMemsetAsync(cleared, 0xff, bytes, stream) != cudaSuccess) return;
    const Plan plan = lookup_plan(batch.count, processors);
    batch.ids_per_warp = plan.ids_per_warp;
    with_values<16, 8, 4, 2>(access, [&](auto chunk) {
      stage_kernel<decltype(chunk)::value><<<plan.blocks, plan.threads, 0, stream>>>(batch);
    });
  });
  arguments->staged = all.staged;
  arguments->ids = reinterpret_cast<const int64_t*>(all.staged.locations);
}

}  // namespace embedding_store::cuda
