#include "crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define ES_CRC_INSTRUCTION __attribute__((target("sse4.2")))
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define ES_CRC_INSTRUCTION __attribute__((target("+crc")))
#endif

namespace embedding_store {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

using Table = std::array<uint32_t, 256>;

constexpr Table byte_table() {
  Table table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? kPolynomial : 0);
    table[i] = crc;
  }
  return table;
}

constexpr Table kByte = byte_table();

uint32_t update_portable(uint32_t crc, const uint8_t* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) crc = crc >> 8 ^ kByte[(crc ^ data[i]) & 255];
  return crc;
}

#if defined(ES_CRC_INSTRUCTION)

#if defined(__x86_64__)
bool find_instruction() { return __builtin_cpu_supports("sse4.2"); }
ES_CRC_INSTRUCTION inline uint32_t add_word(uint32_t crc, uint64_t word) {
  return static_cast<uint32_t>(_mm_crc32_u64(crc, word));
}
ES_CRC_INSTRUCTION inline uint32_t add_byte(uint32_t crc, uint8_t byte) { return _mm_crc32_u8(crc, byte); }
#else
bool find_instruction() { return getauxval(AT_HWCAP) & HWCAP_CRC32; }
ES_CRC_INSTRUCTION inline uint32_t add_word(uint32_t crc, uint64_t word) { return __crc32cd(crc, word); }
ES_CRC_INSTRUCTION inline uint32_t add_byte(uint32_t crc, uint8_t byte) { return __crc32cb(crc, byte); }
#endif

// Appends `bytes` zero bytes to a checksum. A linear map, so four tables, one for each byte of the checksum.
class AppendZeros {
 public:
  explicit AppendZeros(size_t bytes) {
    for (int bit = 0; bit < 32; ++bit) {
      uint32_t crc = uint32_t{1} << bit;
      for (size_t i = 0; i < bytes; ++i) crc = crc >> 8 ^ kByte[crc & 255];
      for (uint32_t value = 0; value < 256; ++value) {
        if (value >> bit % 8 & 1) tables_[bit / 8][value] ^= crc;
      }
    }
  }

  uint32_t operator()(uint32_t crc) const {
    return tables_[0][crc & 255] ^ tables_[1][crc >> 8 & 255] ^ tables_[2][crc >> 16 & 255] ^ tables_[3][crc >> 24];
  }

 private:
  std::array<Table, 4> tables_{};
};

inline uint64_t load(const uint8_t* data) {
  uint64_t word;
  memcpy(&word, data, sizeof word);
  return word;
}

// The instruction takes some three cycles but starts every cycle: three runs of `run` bytes side by side.
ES_CRC_INSTRUCTION uint32_t update_three_runs(
    uint32_t crc, const uint8_t* data, size_t run, const AppendZeros& append_run) {
  uint32_t first = crc, second = 0, third = 0;
  for (const uint8_t* end = data + run; data < end; data += 8) {
    first = add_word(first, load(data));
    second = add_word(second, load(data + run));
    third = add_word(third, load(data + 2 * run));
  }
  return append_run(append_run(first) ^ second) ^ third;
}

constexpr size_t kLong = 5456, kShort = 256;  // a block is four times three long runs and a little
// Made when the library is loaded: a child forked amid a first use would wait for ever for its end.
const AppendZeros append_long(kLong), append_short(kShort);
const bool has_instruction = find_instruction();

ES_CRC_INSTRUCTION uint32_t update_by_instruction(uint32_t crc, const uint8_t* data, size_t bytes) {
  for (; bytes >= 3 * kLong; data += 3 * kLong, bytes -= 3 * kLong) {
    crc = update_three_runs(crc, data, kLong, append_long);
  }
  for (; bytes >= 3 * kShort; data += 3 * kShort, bytes -= 3 * kShort) {
    crc = update_three_runs(crc, data, kShort, append_short);
  }
  for (; bytes >= 8; data += 8, bytes -= 8) crc = add_word(crc, load(data));
  for (; bytes > 0; ++data, --bytes) crc = add_byte(crc, *data);
  return crc;
}

#endif

uint32_t update(uint32_t crc, const uint8_t* data, size_t bytes) {
#if defined(ES_CRC_INSTRUCTION)
  if (has_instruction) return update_by_instruction(crc, data, bytes);
#endif
  return update_portable(crc, data, bytes);
}

}  // namespace

uint32_t crc32c(const void* data, size_t bytes, uint32_t crc) {
  return ~update(~crc, static_cast<const uint8_t*>(data), bytes);
}

}  // namespace embedding_store

// For Python's ctypes: bytes that are no tensors.
#define ES_EXPORT extern "C" __attribute__((visibility("default")))

ES_EXPORT uint32_t embedding_store_crc32c(const void* data, size_t bytes, uint32_t crc) {
  return embedding_store::crc32c(data, bytes, crc);
}

ES_EXPORT void embedding_store_crc32c_blocks(
    const void* data, size_t bytes,
    uint32_t* crcs  // [ceil(bytes / kBlockBytes)]
) {
  constexpr size_t kBlock = embedding_store::kBlockBytes;
  for (size_t start = 0; start < bytes; start += kBlock) {
    const size_t length = bytes - start < kBlock ? bytes - start : kBlock;
    *crcs++ = embedding_store::crc32c(static_cast<const uint8_t*>(data) + start, length);
  }
}
