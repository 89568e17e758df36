// The size of the system's large pages.
#pragma once

#include <cstdint>

namespace embedding_store {

constexpr int64_t kHugePage = int64_t{2} << 20;

}  // namespace embedding_store
