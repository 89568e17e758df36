// The kernels of `enter` and `leave` beside a writer, run by the emulator: what test_emulator_gate.py calls.
#include <vector>

#include "../../../../embedding_store/csrc/cuda/gate_kernel.h"

using namespace embedding_store;
using namespace embedding_store::cuda;

namespace {

constexpr int64_t kNumbers = 40;  // of a slot: more than a block has threads
constexpr int kReads = 4;         // of each reader

// All of them let others go first.
struct Atomic {
  int64_t& value;

  explicit Atomic(int64_t& value_) : value(value_) {}
  int64_t fetch_add(int64_t by) const {
    return static_cast<int64_t>(warp::add(reinterpret_cast<uint64_t*>(&value), static_cast<uint64_t>(by)));
  }
  int64_t fetch_sub(int64_t by) const { return fetch_add(-by); }
  int64_t load() const { return fetch_add(0); }
};

// What readers and the writer share.
struct Slots {
  int64_t gate[kGateValues] = {};
  int64_t rows[2][kNumbers] = {};
  int64_t memory[2] = {};  // what the numbers speak of
};

// Version after version, as serve/slots.py does it.
void write_versions(Slots* slots, int64_t versions) {
  for (int64_t version = 1; version <= versions; ++version) {
    const int64_t slot = 1 - Atomic(slots->gate[0]).load();
    while (Atomic(slots->gate[1 + slot]).load() != 0) {}
    Atomic(slots->memory[slot]).fetch_add(version - slots->memory[slot]);
    for (int64_t& number : slots->rows[slot]) Atomic(number).fetch_add(version - number);
    Atomic(slots->gate[0]).fetch_add(slot == 0 ? -1 : 1);
  }
}

// Whether a block was given numbers of several versions, or what they speak of was another when it left. `counted`: or
// it goes past the gate.
bool is_torn(Slots* slots, bool counted, int64_t* row) {
  if (counted) {
    enter_kernel<Atomic>(slots->gate, slots->rows[0], kNumbers, row);
  } else if (threadIdx.x == 0) {
    row[kNumbers] = Atomic(slots->gate[0]).load();
    for (int64_t i = 0; i < kNumbers; ++i) row[i] = Atomic(slots->rows[row[kNumbers]][i]).load();
  }
  __syncthreads();
  bool torn = false;
  for (int64_t i = 0; i < kNumbers; ++i) torn |= row[i] != Atomic(slots->memory[row[kNumbers]]).load();
  torn = __syncthreads_or(torn) != 0;
  if (counted && threadIdx.x == 0) leave_kernel<Atomic>(slots->gate, row + kNumbers);
  __syncthreads();
  return torn;
}

}  // namespace

extern "C" {

// So many readers beside one writer. `seen`: the version that each has read last. Returns how many readings were torn.
int64_t emulate_gate(int64_t readers, int64_t versions, int counted, uint64_t order, int64_t* seen) {
  Slots slots;
  std::vector<int64_t> rows(readers * (kNumbers + 1)), torn(readers);
  // That readers and the writer keep out of each other's way, the gate sees to: not in an order that Trail knows.
  warp::Emulator emulator(
      {{"slots", &slots, sizeof slots, true, warp::Sharing::kOrdered},
       {"rows", rows.data(), static_cast<int64_t>(rows.size()) * 8, true},
       {"torn", torn.data(), readers * 8, true}, {"seen", seen, readers * 8, true}},
      order);
  emulator.launch("gate", {{static_cast<unsigned>(readers + 1), 1}, warp::kLanes}, [&] {
    if (blockIdx.x == readers) {
      if (threadIdx.x == 0) write_versions(&slots, versions);
      return;
    }
    int64_t* row = &rows[blockIdx.x * (kNumbers + 1)];
    for (int read = 0; read < kReads; ++read) {
      const bool bad = is_torn(&slots, counted != 0, row);
      if (threadIdx.x == 0) torn[blockIdx.x] += bad, seen[blockIdx.x] = row[0];
    }
  });
  int64_t all = 0;
  for (const int64_t one : torn) all += one;
  return slots.gate[1] == 0 && slots.gate[2] == 0 ? all : -1;
}

}  // extern "C"
