// Tables as tests give them to the emulator.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../../../embedding_store/csrc/cuda/checked_layout.h"
#include "../../../../embedding_store/csrc/cuda/plan.h"
#include "../../../../embedding_store/csrc/cuda/probe.h"

namespace embedding_store::cuda {

struct Table {
  const uint8_t* storage;
  int64_t storage_bytes;
  const uint8_t* cold;
  int64_t cold_bytes;
  const int64_t* layout;
  int64_t layout_values;
  int64_t layout_on_device;  // 1, or 0: the numbers are parameters
};

inline TableView view(const Table& table, Dtype dtype, int dim) {
  TableView view{};
  view.storage = table.storage;
  view.cold = table.cold;
  view.row_bytes = row_bytes(dtype, dim);
  if (table.layout_on_device != 0) {
    view.layout = table.layout;
    view.layout_values = static_cast<int>(table.layout_values);
  } else {
    std::copy(table.layout, table.layout + table.layout_values, view.numbers.values);
  }
  return view;
}

// What LayoutCheck says of a table whose layout the host knows, up to `room` bytes with the zero at the end; nothing if
// it lets it pass. `dim` 0: as for a search that looks at no rows.
extern "C" void emulate_check(const Table* table, int64_t tiered, int dtype, int dim, char* said, int64_t room) {
  TableBytes bytes{table->storage_bytes, std::nullopt};
  if (tiered != 0) bytes.cold = table->cold_bytes;
  std::string why;
  try {
    const LayoutCheck check(table->layout, table->layout_values, bytes);
    if (dim == 0) check.index();
    else check.table(static_cast<Dtype>(dtype), dim);
  } catch (const std::invalid_argument& error) {
    why = error.what();
  }
  std::strncpy(said, why.c_str(), room - 1);
}

// `order`: what turns are drawn from.
inline warp::Emulator emulator_for(const Table& table, std::vector<warp::Memory> others, uint64_t order) {
  others.push_back({"storage", table.storage, table.storage_bytes, false});
  others.push_back({"cold", table.cold, table.cold_bytes, false});
  others.push_back({"layout", table.layout, table.layout_values * 8, false});
  return warp::Emulator(others, order);
}

// So many warps: in blocks of two if that goes, else of one.
inline warp::Grid grid_of(int warps) {
  const int in_block = warps % 2 == 0 ? 2 : 1;
  return {{static_cast<unsigned>(warps / in_block), 1}, in_block * warp::kLanes};
}

// What kernels get that need whole blocks.
inline warp::Grid blocks_of(int blocks) { return {{static_cast<unsigned>(blocks), 1}, kThreads}; }

}  // namespace embedding_store::cuda
