// Mappings as tensors.
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <stdexcept>

#include "mapping.h"
#include "ops.h"

namespace embedding_store {
namespace {

Mapping& mapping_of(const Tensor& storage) {
  Mapping* mapping = Mapping::at(storage.const_data_ptr());
  if (mapping == nullptr) throw std::invalid_argument("storage is no tensor that map_files made");
  return *mapping;
}

}  // namespace

Tensor map_files(
    const std::vector<std::string>& paths, const std::vector<int64_t>& bytes, const Tensor& crcs, bool copies,
    bool anew) {
  if (paths.empty() || paths.size() != bytes.size()) throw std::invalid_argument("paths and bytes differ in length");
  const Tensor contiguous = torch::stable::contiguous(crcs);
  const auto* values = contiguous.const_data_ptr<uint32_t>();
  auto* mapping = new Mapping(paths, bytes, {values, values + contiguous.numel()}, copies, anew);
  const int64_t size = mapping->bytes(), stride = 1;
  return torch::stable::from_blob(
      const_cast<uint8_t*>(mapping->data()), {&size, 1}, {&stride, 1},
      torch::stable::Device(torch::headeronly::DeviceType::CPU), ScalarType::Byte,
      [mapping](void*) { delete mapping; });
}

std::vector<int64_t> mapped_starts(const Tensor& storage) {
  std::vector<int64_t> starts;
  for (const MappedFile& file : mapping_of(storage).files()) starts.push_back(file.start);
  return starts;
}

void check_blocks(const Tensor& storage, int64_t first, int64_t count, double bytes_per_second) {
  Mapping& mapping = mapping_of(storage);
  if (first < 0 || count < 0 || first > mapping.blocks() || count > mapping.blocks() - first) {
    throw std::invalid_argument("there are " + std::to_string(mapping.blocks()) + " blocks");
  }
  mapping.check_blocks(first, count, bytes_per_second);
}

int64_t unchecked_blocks(const Tensor& storage) { return mapping_of(storage).unchecked(); }

void release_pages(const Tensor& storage) { mapping_of(storage).release_pages(); }

}  // namespace embedding_store
