// One stored row to one row of output: vectorised loops, one set for each level of instructions.
#pragma once

#include <cstdint>

#include "../common/decode.h"

namespace embedding_store {

constexpr int64_t kCacheLine = 64;

// A row as it lies in memory. `scale` and `offset` are nullptr unless it is quantised.
struct Row {
  const uint8_t* vector;
  const float* scale;
  const float* offset;
};

using CopyRow = void (*)(const Row& row, int64_t dim, void* out);
using ClearRow = void (*)(int64_t dim, void* out);
using AddRow = void (*)(const Row& row, int64_t dim, float weight, float* sum);
using StoreSum = void (*)(const float* sum, int64_t dim, float factor, void* out);

struct RowFunctions {
  CopyRow copy;           // out = the row
  ClearRow clear;         // out = zeros
  CopyRow stream;         // the same two past the caches: `out` and its rows must be aligned to 64 bytes
  ClearRow stream_zeros;
  AddRow add;             // sum += weight * the row
  StoreSum finish;        // out = factor * sum
};

// The best that this processor can run.
RowFunctions row_functions(Dtype dtype, OutDtype out);

// rows.cpp is compiled once for each level; a level that is no better than the next lower one is left out.
namespace baseline {
RowFunctions row_functions(Dtype dtype, OutDtype out);
}
namespace avx2 {
RowFunctions row_functions(Dtype dtype, OutDtype out);
}
namespace avx512 {
RowFunctions row_functions(Dtype dtype, OutDtype out);
}

}  // namespace embedding_store
