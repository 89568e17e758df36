// Mutexes over a fork. In the child only the forking thread lives: what another one held would stay held for ever, and
// what it guards half changed.
#pragma once

#include <pthread.h>

#include <new>
#include <system_error>
#include <type_traits>

namespace embedding_store {

// From now on a fork waits for `mutex`, so that the child finds what it guards whole, and finds it free. Call it once
// for each mutex, when the library is loaded. (The child makes it anew: a lock may belong to a thread by its number, and
// there the forking thread has another one.)
template <auto& mutex>
bool free_in_child() {
  const auto renew = [] { new (&mutex) std::remove_reference_t<decltype(mutex)>; };
  const int error = pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, renew);
  if (error != 0) throw std::system_error(error, std::generic_category(), "pthread_atfork");
  return true;
}

}  // namespace embedding_store
