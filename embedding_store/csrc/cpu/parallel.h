// torch's threads, with exceptions.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <mutex>

namespace embedding_store {

// function(begin, end) over begin .. end - 1 in pieces of at least `grain`. What one of them throws is thrown here;
// torch's own parallel_for would lose the message on its way through the stable ABI.
template <class Function>
void parallel(int64_t begin, int64_t end, int64_t grain, const Function& function) {
  if (begin >= end) return;
  if (end - begin <= grain) {
    function(begin, end);
    return;
  }
  std::exception_ptr error;
  std::mutex mutex;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    try {
      function(first, last);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace embedding_store
