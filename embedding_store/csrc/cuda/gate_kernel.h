// The kernels of `enter` and `leave`: one block, of which one thread goes through the gate. Apart from their launch, so
// that a test without a GPU runs them. `Atomic`: see common/gate.h.
#pragma once

#include "../common/gate.h"
#include "warp.h"

namespace embedding_store::cuda {

template <class Atomic>
__global__ void enter_kernel(int64_t* gate, const int64_t* rows, int64_t count, int64_t* row) {
  ES_SHARED(slot, int64_t);
  if (threadIdx.x == 0) slot = enter_slot<Atomic>(gate);
  __syncthreads();
  // Volatile: written by the host while this kernel may have been running already.
  const volatile int64_t* numbers = rows + slot * count;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) row[i] = numbers[i];
  if (threadIdx.x == 0) row[count] = slot;
}

template <class Atomic>
__global__ void leave_kernel(int64_t* gate, const int64_t* slot) {
  leave_slot<Atomic>(gate, *slot);
}

}  // namespace embedding_store::cuda
