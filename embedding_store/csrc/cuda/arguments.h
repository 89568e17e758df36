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

// What is counted of a lookup in a tiered table: ids found in the device's memory, in the host's, not at all, and rows
// that were read from the host's memory.
constexpr int kCounts = 4;

struct LookupArguments {
  TableView table;
  const int64_t* ids;  // [count]
  int64_t count;
  int dim;           // kMaxDim at most
  int ids_per_warp;  // a step: 4, 8, 16 or 32
  uint8_t* vectors;  // [count, dim]
  bool* found;       // [count]
};

struct LocateArguments {
  TableView table;
  const int64_t* ids;  // [count]
  int64_t count;
  int ids_per_warp;    // a step: 4, 8, 16 or 32
  int64_t* locations;  // [count]: -1 where there is none
};

// One of the tables. All have the same dtype and dimension, and their rows in one place.
struct VersionView {
  const uint8_t* storage;
  const TableNumbers* numbers;  // in the device's memory, no more of them than there are
};

struct VersionsArguments {
  const VersionView* tables;  // [table_count], in the device's memory
  int64_t table_count;
  int64_t row_bytes;
  const int64_t* ids;     // [count]
  const int64_t* choice;  // [count]: the number of a table; any other: none
  int64_t count;
  int dim;
  uint8_t* vectors;  // [count, dim]
  bool* found;       // [count]
};

}  // namespace embedding_store::cuda
