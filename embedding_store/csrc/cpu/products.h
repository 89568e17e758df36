// Inner products of some items with a few users at once, of which only those that beat a user's bar are kept: one set of
// loops for each level of instructions.
#pragma once

#include <cstdint>

namespace embedding_store {

// An inner product that beats its user's bar.
struct Hit {
  int32_t item;  // from the first of the call on
  int32_t user;  // of the panel
  float score;
};

// Writes them to `hits`, which has room for count * width, and returns how many.
using FindHits = int64_t (*)(
    const float* items,  // [count, dim]
    int64_t count, int64_t dim,
    const float* panel,  // [dim, width]: users, each a column
    const float* bars,   // [width]
    Hit* hits);

struct ProductFunctions {
  int64_t width;  // users of a panel
  FindHits find_hits;
};

// The best that this processor can run.
ProductFunctions product_functions();

// products.cpp is compiled once for each level.
namespace baseline {
ProductFunctions product_functions();
}
namespace avx2 {
ProductFunctions product_functions();
}
namespace avx512 {
ProductFunctions product_functions();
}

}  // namespace embedding_store
