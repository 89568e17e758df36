// Host functions that launch the kernels: what ops.cpp sees of them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "arguments.h"
#include "pooled_plan.h"

namespace embedding_store::cuda {

// Errors are left to cudaGetLastError. `arguments.ids_per_warp` is chosen here.
void launch_lookup(LookupArguments arguments, Dtype dtype, OutDtype out, int processors, cudaStream_t stream);

// Words of device memory, whatever is in it, with which a cold row of several ids is read once; 0: not worth while.
int64_t tiered_scratch_words(int64_t count);

// `counters`: int64 [4] on the device += hot, cold, missing, rows read from the host's memory. `scratch`:
// [tiered_scratch_words(count)], or null: every id reads its row.
void launch_lookup_tiered(
    LookupArguments arguments, Dtype dtype, OutDtype out, unsigned long long* counters, uint64_t* scratch,
    int processors, cudaStream_t stream);

// Bytes of device memory, whatever is in it, with which a cold row of several ids of a pooled lookup is read once; 0:
// not worth while. `cold_rows`: as many as there are, or more.
int64_t staging_bytes(const PooledArguments& arguments, Dtype dtype, int64_t cold_rows);

// Ids are located and rows brought to the device: `arguments` is changed to what launch_pooled reads then. `memory`:
// [staging_bytes(...)], at a multiple of 16.
void launch_staging(
    PooledArguments* arguments, Dtype dtype, int64_t cold_rows, uint8_t* memory, int processors, cudaStream_t stream);

// Two kernels, one after the other.
void launch_pooled(const PooledArguments& arguments, Dtype dtype, cudaStream_t stream);

void launch_versions(
    const VersionsArguments& arguments, Dtype dtype, OutDtype out, int processors, cudaStream_t stream);

// As launch_lookup.
void launch_locate(LocateArguments arguments, int processors, cudaStream_t stream);

}  // namespace embedding_store::cuda
