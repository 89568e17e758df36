// What kernels are given, for the host as well. Sizes count values, pointers are the device's.
#pragma once

#include <cstdint>

#include "../common/decode.h"

namespace embedding_store::cuda {

// A warp's rows together have fewer than 2^31 values, so that 32-bit numbers count them; addresses have 64 bits.

constexpr int kMaxParts = 3;  // of a table on a device: hot rows, cold rows, an overlay
constexpr int kLayoutValues = kLayoutHeader + 4 * kMaxParts;

// A layout as embedding_store/native/ops.py describes it, zeros after its end.
struct TableNumbers {
  int64_t values[kLayoutValues];
};

// A loaded table.
struct TableView {
  const uint8_t* storage;
  const uint8_t* cold;    // holds the second segment, in memory of the host; null: the storage holds both
  TableNumbers numbers;   // count unless there is a layout
  const int64_t* layout;  // [layout_values] in the device's memory: the host does not know what it says; or null
  int layout_values;      // kLayoutValues at most
  int64_t row_bytes;      // of a row's values
};

struct LookupArguments {
  TableView table;
  const int64_t* ids;  // [count]
  int64_t count;
  int dim;           // kMaxDim at most
  int ids_per_warp;  // a step: 4, 8, 16 or 32
  uint8_t* vectors;  // [count, dim]
  bool* found;       // [count]
};

struct PooledArguments {
  TableView table;
  const int64_t* ids;  // [count]
  int64_t count;
  const int64_t* offsets;  // [bags + 1]
  int64_t bags;
  const float* weights;  // [count], or null: 1
  int dim;               // kMaxDim at most
  bool mean;
  OutDtype out;
  uint8_t* pooled;  // [bags, dim]
  int64_t* found;   // [bags]
};

}  // namespace embedding_store::cuda
