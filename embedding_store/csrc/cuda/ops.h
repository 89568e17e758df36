// The ops on CUDA, as ../common/ops.cpp registers them; shapes and meanings are in embedding_store/native/ops.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

// A `layout`, int64 [8 + 4 * S] and 4 more with an overlay, 20 at most, may be on the CPU, then its numbers are the
// kernel's parameters, or on the device: a kernel in a captured graph reads there what is there when it runs.
namespace embedding_store::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> lookup(
    const Tensor& ids,      // int64 [...]
    const Tensor& storage,  // uint8 [bytes]
    const Tensor& layout,   // int64 [...], on the CPU or the device
    int64_t dim, const std::string& dtype, ScalarType out);

// The answer to offsets that do not rise from 0 to N is NaN, and -1 found: to refuse them, the host would have to wait
// for the device.
std::tuple<Tensor, Tensor> lookup_pooled(
    const Tensor& ids,                     // int64 [N]
    const Tensor& offsets,                 // int64 [B + 1]
    const std::optional<Tensor>& weights,  // float32 [N]
    const Tensor& storage,                 // uint8 [bytes]
    const Tensor& layout,                  // int64 [...], on the CPU or the device
    int64_t dim, const std::string& dtype, const std::string& mode, ScalarType out);

// The third: int64 [4], hot hits, cold hits, misses, rows read from `cold`.
std::tuple<Tensor, Tensor, Tensor> lookup_pooled_tiered(
    const Tensor& ids,                     // int64 [N]
    const Tensor& offsets,                 // int64 [B + 1]
    const std::optional<Tensor>& weights,  // float32 [N]
    const Tensor& storage,                 // uint8 [bytes]: the index and segment 0
    const Tensor& cold,                    // uint8 [bytes]: all other segments, in pinned host memory
    const Tensor& layout,                  // int64 [...], on the CPU or the device
    int64_t dim, const std::string& dtype, const std::string& mode, ScalarType out);

std::tuple<Tensor, Tensor> lookup_versions(
    const Tensor& ids,                    // int64 [...]
    const Tensor& choice,                 // int64 [...]: for each id the table to look into; another number: none
    const std::vector<Tensor>& storages,  // uint8 [bytes] each
    const std::vector<Tensor>& layouts,   // int64 [...] each, on the CPU or the device
    int64_t dim, const std::string& dtype, ScalarType out);

Tensor locate(
    const Tensor& ids,      // int64 [...]
    const Tensor& storage,  // uint8 [bytes]
    const Tensor& layout);  // int64 [...], on the CPU or the device

std::tuple<Tensor, Tensor> lookup_tiered(
    const Tensor& ids,      // int64 [...]
    const Tensor& storage,  // uint8 [bytes]: segment 0, and the index unless it is in `cold`
    const Tensor& cold,     // uint8 [bytes]: all other segments, in pinned host memory
    const Tensor& layout,   // int64 [...], on the CPU or the device
    int64_t dim, const std::string& dtype, ScalarType out,
    Tensor counters);  // int64 [4]: += hot hits, cold hits, misses, rows read from `cold`

// The numbers of the slot that is entered, and which one that is: int64 [N + 1].
Tensor enter(
    Tensor gate,          // int64 [3]
    const Tensor& rows);  // int64 [2, N]

void leave(
    Tensor gate,         // int64 [3]
    const Tensor& row);  // int64 [N + 1]

}  // namespace embedding_store::cuda
