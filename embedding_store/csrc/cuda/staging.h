// Before a pooled lookup in a tiered table: where the row of each id is, and each cold row brought to the device, once
// for all ids of a batch that ask for it. What is pooled then is read there, in the order in which it would be without.
#pragma once

#include "claims.h"
#include "lookup.h"
#include "pooled_plan.h"

namespace embedding_store::cuda {

// Of the rows that are brought to the device: what there is no place for is read from the host once an id.
constexpr int64_t kStagedBytes = int64_t{64} << 20;

struct StagingArguments {
  TableView table;
  const int64_t* ids;  // [count], of a batch
  int64_t count;       // kMostPositions at most
  int64_t first;       // the number of the batch's first id
  int ids_per_warp;    // a step: 4, 8, 16 or 32
  bool quantised;
  ClaimSlots claims;  // of the batch
  Staged staged;      // of all batches
};

// Bytes of a row on the device, and of an access that copies it: of a quantised one scale and offset are in front.
inline int64_t staged_row_bytes(bool quantised, int64_t row_bytes) { return row_bytes + (quantised ? kScaleBytes : 0); }

inline int64_t staged_stride(bool quantised, int64_t row_bytes) {
  const int64_t bytes = staged_row_bytes(quantised, row_bytes);
  return quantised ? (bytes + kScaleBytes - 1) / kScaleBytes * kScaleBytes : bytes;
}

inline int staging_access(bool quantised, int64_t row_bytes) {
  int bytes = quantised ? kScaleBytes : 16;
  while (staged_row_bytes(quantised, row_bytes) % bytes != 0) bytes /= 2;
  return bytes;
}

// A whole number of accesses of 16 bytes: one word for `taken`, the slots of a batch, the locations, one to spare.
inline int64_t staging_words(int64_t ids, int64_t batch) { return (1 + slots_for(batch) + ids + 1) / 2 * 2; }

// For so many ids, in memory of staging_words(ids, batch) words and staged_stride(...) bytes for each of the places.
inline StagingArguments staging_in(
    uint64_t* words, const TableView& table, const int64_t* ids, int64_t count, int64_t batch, int64_t places,
    bool quantised) {
  StagingArguments arguments{};
  arguments.table = table;
  arguments.ids = ids;
  arguments.quantised = quantised;
  arguments.claims = {words + 1, static_cast<uint64_t>(slots_for(batch))};
  arguments.staged.taken = words;
  arguments.staged.locations = words + 1 + slots_for(batch);
  arguments.staged.rows = reinterpret_cast<uint8_t*>(words + staging_words(count, batch));
  arguments.staged.places = places;
  arguments.staged.stride = staged_stride(quantised, table.row_bytes);
  return arguments;
}

// `stage(arguments, memory, bytes)` for one batch after the other; this memory is to be set to 0xff before: the slots,
// and once the word in front of them, `taken`.
template <class Stage>
void each_batch(StagingArguments arguments, int64_t count, int64_t batch, const Stage& stage) {
  const size_t slots_bytes = arguments.claims.capacity * sizeof(uint64_t);
  for (; arguments.first < count; arguments.first += batch, arguments.ids += batch) {
    const int64_t left = count - arguments.first;
    arguments.count = left < batch ? left : batch;
    if (arguments.first == 0) stage(arguments, arguments.staged.taken, slots_bytes + sizeof(uint64_t));
    else stage(arguments, arguments.claims.slots, slots_bytes);
  }
}

// Which bit of `bits` is the one with so many below it.
ES_DEVICE int nth_bit(uint32_t bits, int below) {
  int at = 0;
  ES_UNROLL
  for (int half = warp::kLanes / 2; half > 0; half /= 2) {
    if (warp::count_bits(bits & ((1u << (at + half)) - 1)) <= below) at += half;
  }
  return at;
}

// Copy the first `count` lanes' rows, as they are. All loads of a lane are under way before the first is stored; what comes
// after the rows is read from the device, not where they are, which is beyond a bus.
template <int kBytes>
ES_DEVICE void move_rows(
    uint64_t from,    // this lane's row
    int count,        // 1 .. 32
    uint32_t chunks,  // of kBytes, in a row
    uint8_t* to,      // the first row
    uint32_t stride,  // and from there to the next one
    int lane) {
  constexpr int kInFlight = 8;
  const int items = count * static_cast<int>(chunks);
  Cursor cursor(lane, chunks);
  for (int item = lane; item - lane < items; item += kInFlight * warp::kLanes) {
    warp::Words<kBytes> words[kInFlight];
    // Again, for the stores: to keep where they go takes more registers.
    Cursor behind = cursor;
    behind.row = warp::opaque(behind.row), behind.chunk = warp::opaque(behind.chunk);
    ES_UNROLL
    for (int i = 0; i < kInFlight; ++i) {
      const uint64_t row = warp::shuffle(from, static_cast<int>(cursor.row % warp::kLanes));
      const auto* source = reinterpret_cast<const uint8_t*>(row + cursor.chunk * kBytes);
      words[i] = warp::load_past<kBytes>(item + i * warp::kLanes < items ? source : warp::zeros(lane));
      cursor.advance(chunks);
    }
    ES_UNROLL
    for (int i = 0; i < kInFlight; ++i) {
      uint8_t* target = to + static_cast<int64_t>(behind.row) * stride + behind.chunk * kBytes;
      if (item + i * warp::kLanes < items) warp::store<kBytes>(target, words[i]);
      behind.advance(chunks);
    }
  }
}

// Bring the rows of the lanes in `staged` to the places from `first` on.
template <int kBytes>
ES_DEVICE void stage_rows(
    const StagingArguments& arguments, const TableNumbers& numbers, uint64_t location, uint32_t staged, uint64_t first,
    int lane) {
  const int count = warp::count_bits(staged);
  const int64_t stride = numbers.values[kStrideAt];
  const Row row = row_at<Dtype::kFloat32>(arguments.table, numbers, location, arguments.table.cold, lane);
  // Opaque: no predicates that are kept for the next step, whose loads of buckets need many.
  const int before = warp::opaque(arguments.quantised ? kScaleBytes : 0);
  const int along = warp::opaque(is_in_row(stride) ? before : 0);  // bytes before the values that are copied with them
  const int mine = nth_bit(staged, lane);
  const uint64_t from = warp::shuffle(reinterpret_cast<uint64_t>(row.values), mine) - along;
  uint8_t* to = arguments.staged.rows + static_cast<int64_t>(first) * arguments.staged.stride;
  const auto chunks = static_cast<uint32_t>((arguments.table.row_bytes + along) / kBytes);
  move_rows<kBytes>(from, count, chunks, to + before - along, static_cast<uint32_t>(arguments.staged.stride), lane);
  if (before == along) return;
  // A column each.
  const uint64_t place = warp::shuffle(location, mine);
  if (lane >= count) return;
  const int64_t* segment = numbers.values + kLayoutHeader + static_cast<int>(location_segment(place)) * 4;
  const uint8_t* cold = arguments.table.cold;
  const auto index = static_cast<int64_t>(location_row(place));
  const float scale = warp::load(reinterpret_cast<const float*>(cold + segment[1]) + index);
  const float offset = warp::load(reinterpret_cast<const float*>(cold + segment[2]) + index);
  warp::store<kScaleBytes>(to + lane * arguments.staged.stride, {{to_bits(scale), to_bits(offset)}});
}

// A batch's share of one warp. kBytes: staging_access.
template <int kBytes>
ES_DEVICE void stage_warp(
    const StagingArguments& arguments, const TableNumbers& numbers,
    int64_t id,  // first_id
    int64_t warp, int64_t warps, int lane) {
  const TableView& table = arguments.table;
  const Staged& staged = arguments.staged;
  const int64_t step = warps * arguments.ids_per_warp;
  for (int64_t first = warp * arguments.ids_per_warp; first < arguments.count; first += step) {
    const int here = warp::opaque(lane);
    const int64_t left = arguments.count - first;
    const int count = left < arguments.ids_per_warp ? static_cast<int>(left) : arguments.ids_per_warp;
    const bool wanted = here < count;
    const int64_t next_id = id_at(arguments, first + step, here);
    const uint64_t location = locate_ids(table, numbers, id, wanted, arguments.ids_per_warp, here);
    const bool hot = location_segment(location) == 0;
    const bool found = is_row(numbers, location) && (hot || table.cold != nullptr);
    const auto position = static_cast<uint32_t>(first + here);
    uint32_t reader = position;
    if (found && !hot) reader = claim(arguments.claims, location, position);
    const uint32_t claims = warp::ballot(found && !hot && reader == position);
    uint64_t place = 0;
    if (claims != 0 && here == 0) place = warp::add(staged.taken, warp::count_bits(claims)) + 1;
    const uint64_t first_place = warp::shuffle(place, 0);
    place = first_place + warp::count_bits(claims & ((1u << here) - 1));
    const bool brings = (claims >> here & 1u) != 0 && place < static_cast<uint64_t>(staged.places);
    uint64_t answer = found ? location : kEmpty;
    if (reader != position) answer = pack_location(kRepeatSegment, arguments.first + reader);
    if (brings) answer = pack_location(kStagedSegment, place);
    if (wanted) warp::store(staged.locations + arguments.first + position, answer);
    if (first + step < arguments.count) prefetch_bucket(table, numbers, next_id);
    const uint32_t brought = warp::ballot(brings);
    if (brought != 0) stage_rows<kBytes>(arguments, numbers, location, brought, first_place, here);
    id = next_id;
  }
}

}  // namespace embedding_store::cuda
