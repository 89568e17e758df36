// What kernels are given, for the host as well. Sizes count values, pointers are the device's.
#pragma once

#include <cstdint>

#include "../common/decode.h"

namespace embedding_store::cuda {

// A warp's rows together have fewer than 2^31 values, so that 32-bit numbers count them; addresses have 64 bits.

// A loaded table. `layout` is in the device's memory: the host does not know what it says.
struct TableView {
  const uint8_t* storage;
  const uint8_t* cold;    // holds all segments but the first; null: the storage holds all
  const int64_t* layout;  // [8 + 4 * segments]
  int64_t segments;  // that there is room for: an overlay's numbers take that of one
  int64_t row_bytes;
};

struct LookupArguments {
  TableView table;
  const int64_t* ids;  // [count]
  int64_t count;
  int dim;           // kMaxDim at most
  int ids_per_warp;  // a step: 8, 16 or 32
  bool count_hits;
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
