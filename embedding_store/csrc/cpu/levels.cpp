// Which set of loops this processor runs.
#include <algorithm>
#include <atomic>

#include "products.h"
#include "rows.h"

namespace embedding_store {
namespace {

enum Level { kBaseline, kAvx2, kAvx512 };

Level best_level() {
#if defined(ES_X86_LEVELS)
  __builtin_cpu_init();
  const bool both = __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && both) return kAvx512;
  if (__builtin_cpu_supports("avx2") && both) return kAvx2;
#endif
  return kBaseline;
}

// Set when the library is loaded: a child forked while another thread did it at its first lookup would wait for that one.
std::atomic<int> level{best_level()};

}  // namespace

RowFunctions row_functions(Dtype dtype, OutDtype out) {
#if defined(ES_X86_LEVELS)
  if (level == kAvx512) return avx512::row_functions(dtype, out);
  if (level == kAvx2) return avx2::row_functions(dtype, out);
#endif
  return baseline::row_functions(dtype, out);
}

ProductFunctions product_functions() {
#if defined(ES_X86_LEVELS)
  if (level == kAvx512) return avx512::product_functions();
  if (level == kAvx2) return avx2::product_functions();
#endif
  return baseline::product_functions();
}

}  // namespace embedding_store

// For tests: use level 0, 1 or 2 from now on, or the best one that this processor has, if lower. Returns which.
extern "C" __attribute__((visibility("default"))) int embedding_store_use_level(int wanted) {
  embedding_store::level = std::min<int>(wanted, embedding_store::best_level());
  return embedding_store::level;
}
