// Rows through a warp: chunks of values read at once, decoded, and written at once.
#pragma once

#include "probe.h"

namespace embedding_store::cuda {

// Bytes that kValues stored values take; a lone int4 value takes its byte.
template <Dtype kDtype, int kValues>
constexpr int kStoredBytes = kDtype == Dtype::kFloat32 ? kValues * 4
                             : kDtype == Dtype::kInt8  ? kValues
                             : kDtype == Dtype::kInt4  ? (kValues + 1) / 2
                                                       : kValues * 2;

template <Dtype kDtype>
constexpr bool kQuantised = kDtype == Dtype::kInt8 || kDtype == Dtype::kInt4;

template <OutDtype kOut>
constexpr int kOutBytes = kOut == OutDtype::kFloat32 ? 4 : 2;

template <Dtype kDtype, int kValues>
using Stored = warp::Words<kStoredBytes<kDtype, kValues>>;

// Values chunk * kValues .. of a row, as decode_chunk takes them.
template <Dtype kDtype, int kValues>
ES_DEVICE Stored<kDtype, kValues> load_chunk(const uint8_t* row, int chunk) {
  constexpr int kBytes = kStoredBytes<kDtype, kValues>;
  const int64_t bytes = kDtype == Dtype::kInt4 && kValues == 1 ? chunk >> 1 : static_cast<int64_t>(chunk) * kBytes;
  return warp::load_past<kBytes>(row + bytes);
}

// `scale` and `offset` count for quantised rows only, `odd` for a lone int4 value: whether its chunk's number is odd.
template <Dtype kDtype, int kValues>
ES_DEVICE void decode_chunk(
    const Stored<kDtype, kValues>& stored, float scale, float offset, bool odd, float* values) {
  ES_UNROLL
  for (int i = 0; i < kValues; ++i) {
    if constexpr (kDtype == Dtype::kFloat32) values[i] = from_bits(stored.words[i]);
    if constexpr (kDtype == Dtype::kFloat16 || kDtype == Dtype::kBfloat16) {
      const uint32_t half = stored.words[i / 2] >> i % 2 * 16 & 0xffffu;
      values[i] = kDtype == Dtype::kFloat16 ? warp::half_to_float(half) : from_bits(half << 16);
    }
    if constexpr (kDtype == Dtype::kInt8) {
      values[i] = dequantise(stored.words[i / 4] >> i % 4 * 8 & 255u, scale, offset);
    }
    if constexpr (kDtype == Dtype::kInt4) {
      const int shift = kValues == 1 ? odd * 4 : i % 8 * 4;
      values[i] = dequantise(stored.words[i / 8] >> shift & 15u, scale, offset);
    }
  }
}

template <OutDtype kOut, int kValues>
ES_DEVICE warp::Words<kValues * kOutBytes<kOut>> encode_chunk(const float* values) {
  warp::Words<kValues * kOutBytes<kOut>> out;
  if constexpr (kOut == OutDtype::kFloat32) {
    ES_UNROLL
    for (int i = 0; i < kValues; ++i) out.words[i] = to_bits(values[i]);
  } else {
    ES_UNROLL
    for (int i = 0; i < kValues; i += 2) {
      const float next = i + 1 < kValues ? values[i + 1] : 0.0f;
      out.words[i / 2] =
          kOut == OutDtype::kFloat16 ? warp::to_halves(values[i], next) : warp::to_bfloat16s(values[i], next);
    }
  }
  return out;
}

// A lane's way through the chunks of consecutive rows: it takes every 32nd, without a division at each step.
struct Cursor {
  uint32_t row;
  uint32_t chunk;
  uint32_t row_step;
  uint32_t chunk_step;

  ES_DEVICE Cursor(uint32_t lane, uint32_t chunks)
      : row(lane / chunks), chunk(lane % chunks), row_step(warp::kLanes / chunks), chunk_step(warp::kLanes % chunks) {}

  ES_DEVICE void advance(uint32_t chunks) {
    row += row_step;
    chunk += chunk_step;
    if (chunk >= chunks) {
      chunk -= chunks;
      ++row;
    }
  }
};

// Write the first `count` lanes' rows one after another, zeros where there is none. The loads of kInFlight chunks are
// under way before the first is used, and a warp's stores fill a run of memory, whatever the dimension.
template <Dtype kDtype, OutDtype kOut, int kValues>
ES_DEVICE void copy_rows(
    const Row& row,  // lane i's is row i; none beyond `count`
    int count,       // 1 .. 32
    int chunks,      // of kValues values, in a row
    Cursor cursor,   // this lane's at the first row
    uint8_t* out,    // [count, chunks * kValues]
    int lane) {
  constexpr int kInFlight = kStoredBytes<kDtype, kValues> > 16 ? 4 : 8;
  constexpr int kChunkBytes = kValues * kOutBytes<kOut>;
  const int items = count * chunks;
  const uint64_t address = reinterpret_cast<uint64_t>(row.values);
  const uint32_t found = warp::ballot(row.found);
  for (int first = lane; first - lane < items; first += kInFlight * warp::kLanes) {
    Stored<kDtype, kValues> stored[kInFlight];
    uint32_t owner[kInFlight];
    uint32_t odd = 0;
    ES_UNROLL
    for (int i = 0; i < kInFlight; ++i) {
      owner[i] = cursor.row % warp::kLanes;
      const auto* values = reinterpret_cast<const uint8_t*>(warp::shuffle(address, owner[i]));
      // Beyond the end, chunk 0 of some row: one piece of memory, for all lanes.
      const bool there = first + i * warp::kLanes < items && (found >> owner[i] & 1u) != 0;
      stored[i] = load_chunk<kDtype, kValues>(values, there ? cursor.chunk : 0);
      odd |= (cursor.chunk & 1u) << i;
      cursor.advance(chunks);
    }
    ES_UNROLL
    for (int i = 0; i < kInFlight; ++i) {
      const int item = first + i * warp::kLanes;
      // After the loads: scale and offset are on their way as the values are.
      const float scale = kQuantised<kDtype> ? warp::shuffle(row.scale, owner[i]) : 0.0f;
      const float offset = kQuantised<kDtype> ? warp::shuffle(row.offset, owner[i]) : 0.0f;
      if (item < items) {
        float values[kValues];
        decode_chunk<kDtype, kValues>(stored[i], scale, offset, (odd >> i & 1u) != 0, values);
        uint8_t* target = out + static_cast<int64_t>(item) * kChunkBytes;
        warp::store_once<kChunkBytes>(target, encode_chunk<kOut, kValues>(values));
      }
    }
  }
}

}  // namespace embedding_store::cuda
