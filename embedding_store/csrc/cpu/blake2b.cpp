// BLAKE2b with digests of 8 bytes and no key (RFC 7693): the ids of text.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "parallel.h"

namespace embedding_store {
namespace {

constexpr int64_t kMessageBytes = 128;  // compressed at once
constexpr int64_t kGrain = 4096;        // keys a thread, at least
constexpr uint64_t kParameters = 0x01010000 | 8;  // depth and fan-out of 1, no key, 8 bytes of digest

constexpr std::array<uint64_t, 8> kStart = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};

constexpr uint8_t kOrder[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

inline uint64_t rotate(uint64_t x, int bits) { return x >> bits | x << (64 - bits); }

inline void mix(uint64_t& a, uint64_t& b, uint64_t& c, uint64_t& d, uint64_t x, uint64_t y) {
  a += b + x;
  d = rotate(d ^ a, 32);
  c += d;
  b = rotate(b ^ c, 24);
  a += b + y;
  d = rotate(d ^ a, 16);
  c += d;
  b = rotate(b ^ c, 63);
}

// `taken`: bytes of the text up to the end of this message.
void compress(std::array<uint64_t, 8>& state, const uint8_t* message, uint64_t taken, bool last) {
  uint64_t m[16], v[16];
  memcpy(m, message, sizeof m);
  for (int i = 0; i < 8; ++i) v[i] = state[i], v[i + 8] = kStart[i];
  v[12] ^= taken;
  if (last) v[14] = ~v[14];
#pragma GCC unroll 12
  for (int round = 0; round < 12; ++round) {
    const uint8_t* s = kOrder[round % 10];
    for (int i = 0; i < 4; ++i) mix(v[i], v[i + 4], v[i + 8], v[i + 12], m[s[2 * i]], m[s[2 * i + 1]]);
    for (int i = 0; i < 4; ++i) {
      mix(v[i], v[(i + 1) % 4 + 4], v[(i + 2) % 4 + 8], v[(i + 3) % 4 + 12], m[s[2 * i + 8]], m[s[2 * i + 9]]);
    }
  }
  for (int i = 0; i < 8; ++i) state[i] ^= v[i] ^ v[i + 8];
}

int64_t digest(const uint8_t* text, int64_t bytes) {
  std::array<uint64_t, 8> state = kStart;
  state[0] ^= kParameters;
  int64_t done = 0;
  for (; bytes - done > kMessageBytes; done += kMessageBytes) {
    compress(state, text + done, done + kMessageBytes, false);
  }
  uint8_t rest[kMessageBytes] = {};
  if (bytes > done) memcpy(rest, text + done, bytes - done);
  compress(state, rest, bytes, true);
  return static_cast<int64_t>(state[0]);
}

}  // namespace
}  // namespace embedding_store

// For Python's ctypes. Key i is text[offsets[i]] .. text[offsets[i + 1] - 1]. Returns -1 or, with nothing done, the
// number of the first key that ends before it starts or outside of the text.
extern "C" __attribute__((visibility("default"))) int64_t embedding_store_hash_keys(
    const int64_t* offsets,  // [count + 1]
    int64_t count, const uint8_t* text, int64_t text_bytes,
    int64_t* ids  // [count]
) {
  for (int64_t i = 0; i < count; ++i) {
    if (offsets[i] < 0 || offsets[i + 1] < offsets[i] || offsets[i + 1] > text_bytes) return i;
  }
  embedding_store::parallel(0, count, embedding_store::kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ids[i] = embedding_store::digest(text + offsets[i], offsets[i + 1] - offsets[i]);
    }
  });
  return -1;
}
