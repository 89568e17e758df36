// What the compiler calls before every access to memory with -fsanitize=thread: here it tells the emulator, in place of
// the thread sanitizer's own library, which is not linked. Not told of, and used by no kernel but for a thread's own
// variables: memcpy and memset; a struct that is given to a function by value, where it is read; and one that a function
// returns, where it is made in its place.
#include <cstdint>

namespace embedding_store::warp {

void plain_access(const void* address, int64_t bytes, bool writes);

}  // namespace embedding_store::warp

using embedding_store::warp::plain_access;

#define ES_ACCESS(kind, bytes, writes) \
  void __tsan_##kind##bytes(void* address) { plain_access(address, bytes, writes); }
#define ES_ACCESSES(bytes)                  \
  ES_ACCESS(read, bytes, false)             \
  ES_ACCESS(write, bytes, true)             \
  ES_ACCESS(unaligned_read, bytes, false)   \
  ES_ACCESS(unaligned_write, bytes, true)

extern "C" {

ES_ACCESSES(1)
ES_ACCESSES(2)
ES_ACCESSES(4)
ES_ACCESSES(8)
ES_ACCESSES(16)

void __tsan_read_range(void* address, uintptr_t bytes) { plain_access(address, static_cast<int64_t>(bytes), false); }
void __tsan_write_range(void* address, uintptr_t bytes) { plain_access(address, static_cast<int64_t>(bytes), true); }

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

}  // extern "C"
