// CRC-32C (Castagnoli), the checksum of blocks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace embedding_store {

constexpr int64_t kBlockBytes = 65536;

// The checksum of bytes whose beginning has the checksum `crc` (0 for none).
uint32_t crc32c(const void* data, size_t bytes, uint32_t crc = 0);

}  // namespace embedding_store
