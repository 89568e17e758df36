// Kernels of `enter` and `leave`: one block, of which one thread goes through the gate.
#include <cuda/atomic>

#include "../common/gate.h"
#include "gate.h"

namespace embedding_store::cuda {
namespace {

// Of the system: the writer is a copy from the host.
using Atomic = ::cuda::atomic_ref<int64_t, ::cuda::thread_scope_system>;

__global__ void enter_kernel(int64_t* gate, const int64_t* rows, int64_t count, int64_t* row) {
  __shared__ int64_t slot;
  if (threadIdx.x == 0) slot = enter_slot<Atomic>(gate);
  __syncthreads();
  // Volatile: written by the host while this kernel may have been running already.
  const volatile int64_t* numbers = rows + slot * count;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) row[i] = numbers[i];
  if (threadIdx.x == 0) row[count] = slot;
}

__global__ void leave_kernel(int64_t* gate, const int64_t* slot) { leave_slot<Atomic>(gate, *slot); }

}  // namespace

void launch_enter(int64_t* gate, const int64_t* rows, int64_t count, int64_t* row, cudaStream_t stream) {
  enter_kernel<<<1, 32, 0, stream>>>(gate, rows, count, row);
}

void launch_leave(int64_t* gate, const int64_t* slot, cudaStream_t stream) {
  leave_kernel<<<1, 1, 0, stream>>>(gate, slot);
}

}  // namespace embedding_store::cuda
