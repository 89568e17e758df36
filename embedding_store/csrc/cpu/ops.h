// The ops on the CPU, as common/ops.cpp registers them; shapes and meanings are in embedding_store/native/ops.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace embedding_store {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> lookup(
    const Tensor& ids,      // int64 [...]
    const Tensor& storage,  // uint8 [bytes]
    const Tensor& layout,   // int64 [8 + 4 * S]
    int64_t dim, const std::string& dtype, ScalarType out);

std::tuple<Tensor, Tensor> lookup_versions(
    const Tensor& ids,                    // int64 [...]
    const Tensor& choice,                 // int64 [...]: for each id the table to look into, -1: none
    const std::vector<Tensor>& storages,  // uint8 [bytes] each
    const std::vector<Tensor>& layouts,   // int64 [8 + 4 * S] each
    int64_t dim, const std::string& dtype, ScalarType out);

std::tuple<Tensor, Tensor, Tensor> lookup_history(
    const Tensor& ids,                    // int64 [...]
    const Tensor& timestamps,             // int64 [...]
    const Tensor& newest,                 // int64 [...]: for each id the newest version that it may see, -1: none
    const Tensor& as_of,                  // int64 [V], of each version, oldest first
    const Tensor& numbers,                // int64 [V]: for each version its table, -1: none
    const std::vector<Tensor>& storages,  // uint8 [bytes] each
    const std::vector<Tensor>& layouts,   // int64 [8 + 4 * S] each
    int64_t k, int64_t dim, const std::string& dtype, ScalarType out);

std::tuple<Tensor, Tensor> lookup_pooled(
    const Tensor& ids,                     // int64 [N]
    const Tensor& offsets,                 // int64 [B + 1]
    const std::optional<Tensor>& weights,  // float32 [N]
    const Tensor& storage,                 // uint8 [bytes]
    const Tensor& layout,                  // int64 [8 + 4 * S]
    int64_t dim, const std::string& dtype, const std::string& mode, ScalarType out);

// The third: int64 [4], hot hits, cold hits, misses, rows read from `cold`.
std::tuple<Tensor, Tensor, Tensor> lookup_pooled_tiered(
    const Tensor& ids,                     // int64 [N]
    const Tensor& offsets,                 // int64 [B + 1]
    const std::optional<Tensor>& weights,  // float32 [N]
    const Tensor& storage,                 // uint8 [bytes]: the index and segment 0
    const Tensor& cold,                    // uint8 [bytes]: all other segments
    const Tensor& layout,                  // int64 [8 + 4 * S]
    int64_t dim, const std::string& dtype, const std::string& mode, ScalarType out);

std::tuple<Tensor, Tensor> lookup_tiered(
    const Tensor& ids,      // int64 [...]
    const Tensor& storage,  // uint8 [bytes]: segment 0, and the index unless it is in `cold`
    const Tensor& cold,     // uint8 [bytes]: all other segments
    const Tensor& layout,   // int64 [8 + 4 * S]
    int64_t dim, const std::string& dtype, ScalarType out,
    Tensor counters);  // int64 [4]: += hot hits, cold hits, misses, rows read from `cold`

std::tuple<Tensor, Tensor> nearest(
    const Tensor& users,  // float32 [U, D]
    const Tensor& items,  // float32 [N, D]
    int64_t k,
    const Tensor& without_users,   // int64 [P]: pairs that are left out, rows of users
    const Tensor& without_items);  // int64 [P]: and of items

// The location of each id, int64 [...]: segment * 2^40 + row, -1 without one.
Tensor locate(
    const Tensor& ids,      // int64 [...]
    const Tensor& storage,  // uint8 [bytes]
    const Tensor& layout);  // int64 [8 + 4 * S], or 4 more with an overlay

// Different ids, int64 [M], part after part of the hash's range; how many are of each, int64 [parts]; and where among
// them each id is, int64 [...].
std::tuple<Tensor, Tensor, Tensor> distinct(const Tensor& ids /* int64 [...] */, int64_t parts);

std::tuple<Tensor, Tensor> gather(
    const Tensor& places,    // int64 [...]: a record of `own`, or after those of `received`; negative: none
    const Tensor& own,       // uint8 [A, R]
    const Tensor& received,  // uint8 [B, R]
    int64_t dim, const std::string& dtype, ScalarType out);

Tensor map_files(
    const std::vector<std::string>& paths, const std::vector<int64_t>& bytes, const Tensor& crcs, bool copies,
    bool anew);
std::vector<int64_t> mapped_starts(const Tensor& storage);
void check_blocks(const Tensor& storage, int64_t first, int64_t count, double bytes_per_second);
int64_t unchecked_blocks(const Tensor& storage);
void release_pages(const Tensor& storage);

// The numbers of the slot that is entered, and which one that is: int64 [N + 1].
Tensor enter(
    Tensor gate,          // int64 [3]
    const Tensor& rows);  // int64 [2, N]

void leave(
    Tensor gate,         // int64 [3]
    const Tensor& row);  // int64 [N + 1]

}  // namespace embedding_store
