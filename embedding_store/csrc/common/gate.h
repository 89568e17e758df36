// Two slots, of which readers use the current one while a writer fills the other: native/gate.py has the protocol.
// Compiled for the host and for CUDA, with that one's atomics.
#pragma once

#include <cstdint>

#include "index.h"

namespace embedding_store {

constexpr int64_t kGateValues = 3;  // the current slot, 0 or 1, then how many readers are in each

// Where the reader is from now on. `Atomic(place)` is atomic and sequentially consistent: either the writer, which
// changes the slot before it looks at the counts, sees this reader, or the reader sees that the slot has changed.
template <class Atomic>
ES_HOST_DEVICE int64_t enter_slot(int64_t* gate) {
  for (;;) {
    const int64_t slot = Atomic(gate[0]).load() & 1;
    Atomic(gate[1 + slot]).fetch_add(1);
    if ((Atomic(gate[0]).load() & 1) == slot) return slot;
    Atomic(gate[1 + slot]).fetch_sub(1);
  }
}

template <class Atomic>
ES_HOST_DEVICE void leave_slot(int64_t* gate, int64_t slot) {
  Atomic(gate[1 + (slot & 1)]).fetch_sub(1);
}

}  // namespace embedding_store
