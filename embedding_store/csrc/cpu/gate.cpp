// `enter` and `leave` on the CPU.
#include "../common/gate.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "../common/tensors.h"
#include "ops.h"

namespace embedding_store {
namespace {

using Atomic = std::atomic_ref<int64_t>;

int64_t* gate_values(Tensor& gate) {
  if (gate.scalar_type() != ScalarType::Long || gate.dim() != 1 || gate.numel() != kGateValues) {
    throw std::invalid_argument("gate is not an int64 tensor [3]");
  }
  return static_cast<int64_t*>(gate.mutable_data_ptr());
}

}  // namespace

Tensor enter(Tensor gate, const Tensor& rows) {
  int64_t* values = gate_values(gate);
  if (rows.scalar_type() != ScalarType::Long || rows.dim() != 2 || rows.size(0) != 2 || !rows.is_contiguous()) {
    throw std::invalid_argument("rows are not a contiguous int64 tensor [2, N]");
  }
  const int64_t count = rows.size(1);
  Tensor row = empty_beside(rows, {count + 1}, ScalarType::Long);
  const int64_t slot = enter_slot<Atomic>(values);
  auto* out = static_cast<int64_t*>(row.mutable_data_ptr());
  std::copy_n(static_cast<const int64_t*>(rows.const_data_ptr()) + slot * count, count, out);
  out[count] = slot;
  return row;
}

void leave(Tensor gate, const Tensor& row) {
  int64_t* values = gate_values(gate);
  if (row.scalar_type() != ScalarType::Long || row.dim() != 1 || row.numel() < 1 || !row.is_contiguous()) {
    throw std::invalid_argument("row is not what enter gave: an int64 tensor [N + 1]");
  }
  leave_slot<Atomic>(values, static_cast<const int64_t*>(row.const_data_ptr())[row.numel() - 1]);
}

}  // namespace embedding_store
