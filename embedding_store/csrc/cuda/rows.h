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

template <Dtype kDtype, int kValues>
using Stored = warp::Words<kStoredBytes<kDtype, kValues>>;

// Values chunk * kValues .. of a row, as decode_chunk takes them.
template <Dtype kDtype, int kValues>
ES_DEVICE Stored<kDtype, kValues> load_chunk(const uint8_t* row, uint32_t chunk) {
  constexpr int kBytes = kStoredBytes<kDtype, kValues>;
  const uint64_t bytes = kDtype == Dtype::kInt4 && kValues == 1 ? chunk >> 1 : static_cast<uint64_t>(chunk) * kBytes;
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
    const uint32_t sum = chunk + chunk_step;
    row += row_step + (sum >= chunks ? 1 : 0);
    chunk = sum >= chunks ? sum - chunks : sum;
  }
};

// Rows on their way through a warp: chunk after chunk of the first `count` lanes' rows.
template <Dtype kDtype, OutDtype kOut, int kValues>
struct Copy {
  static constexpr int kChunkBytes = kValues * kOutBytes<kOut>;

  const Row& row;  // lane i's is row i; none beyond `count`
  uint32_t found;   // bit i: row i is there
  uint32_t chunks;  // of kValues values, in a row
  int items;        // chunks of all rows
  uint8_t* out;     // [items, kValues]
  Cursor cursor;    // where this lane's next chunk is
  int next;         // and its number

  // kLoads chunks a lane: all loads are under way before the first is used.
  template <int kLoads>
  ES_DEVICE void advance() {
    const uint64_t address = reinterpret_cast<uint64_t>(row.values);
    const int left = items - next;
    Stored<kDtype, kValues> stored[kLoads];
    uint32_t owner[kLoads];
    uint32_t odd = 0;
    ES_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      owner[i] = cursor.row % warp::kLanes;
      const auto* values = reinterpret_cast<const uint8_t*>(warp::shuffle(address, owner[i]));
      // Beyond the end, chunk 0 of some row: one piece of memory, for all lanes.
      const bool there = left > i * warp::kLanes && (found >> owner[i] & 1u) != 0;
      stored[i] = load_chunk<kDtype, kValues>(values, warp::opaque(there ? cursor.chunk : 0));
      // Opaque: else what is odd at first is kept in predicates, of which the loads of buckets need many.
      odd |= (warp::opaque(cursor.chunk) & 1u) << i;
      cursor.advance(chunks);
    }
    uint8_t* target = out + static_cast<int64_t>(next) * kChunkBytes;
    ES_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      // After the loads: scale and offset are on their way as the values are.
      const float scale = kQuantised<kDtype> ? warp::shuffle(row.scale, owner[i]) : 0.0f;
      const float offset = kQuantised<kDtype> ? warp::shuffle(row.offset, owner[i]) : 0.0f;
      if (left > i * warp::kLanes) {
        float values[kValues];
        decode_chunk<kDtype, kValues>(stored[i], scale, offset, (odd >> i & 1u) != 0, values);
        warp::store_once<kChunkBytes>(target + i * warp::kLanes * kChunkBytes, encode_chunk<kOut, kValues>(values));
      }
    }
    next += kLoads * warp::kLanes;
  }
};

// Write the first `count` lanes' rows one after another, zeros where there is none. A warp's stores fill a run of
// memory, whatever the dimension.
template <Dtype kDtype, OutDtype kOut, int kValues>
ES_DEVICE void copy_rows(
    const Row& row,        // lane i's is row i; none beyond `count`
    int count,             // 1 .. 32
    uint32_t chunks,       // of kValues values, in a row
    const Cursor& cursor,  // this lane's at the first row
    uint8_t* out,          // [count, chunks * kValues]
    int lane) {
  constexpr int kMost = kStoredBytes<kDtype, kValues> > 16 ? 4 : 8;  // 32 registers of a lane
  const int items = count * static_cast<int>(chunks);
  Copy<kDtype, kOut, kValues> copy{row, warp::ballot(row.found), chunks, items, out, cursor, lane};
  int left = (items + warp::kLanes - 1) / warp::kLanes;  // loads a lane
  for (; left > kMost / 2; left -= kMost) copy.template advance<kMost>();
  // The rest without loads in vain: few rows of few values, say of a small batch, have no more.
  if (kMost == 8 && left > 2) copy.template advance<4>();
  else if (left > 1) copy.template advance<2>();
  else if (left > 0) copy.template advance<1>();
}

}  // namespace embedding_store::cuda
