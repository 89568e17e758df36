// Launches of `enter` and `leave`.
#include "gate.h"

#include <cuda/atomic>

#include "gate_kernel.h"

namespace embedding_store::cuda {
namespace {

// Of the system: the writer is a copy from the host.
using Atomic = ::cuda::atomic_ref<int64_t, ::cuda::thread_scope_system>;

}  // namespace

void launch_enter(int64_t* gate, const int64_t* rows, int64_t count, int64_t* row, cudaStream_t stream) {
  enter_kernel<Atomic><<<1, 32, 0, stream>>>(gate, rows, count, row);
}

void launch_leave(int64_t* gate, const int64_t* slot, cudaStream_t stream) {
  leave_kernel<Atomic><<<1, 1, 0, stream>>>(gate, slot);
}

}  // namespace embedding_store::cuda
