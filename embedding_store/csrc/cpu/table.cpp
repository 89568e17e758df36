#include "table.h"

#include <stdexcept>

#include "../common/errors.h"

namespace embedding_store {

using torch::headeronly::ScalarType;

Bytes::Bytes(const Tensor& storage) {
  if (storage.scalar_type() != ScalarType::Byte || storage.dim() != 1 || !storage.is_contiguous()) {
    throw std::invalid_argument("storage is not a contiguous uint8 tensor [bytes]");
  }
  data = static_cast<const uint8_t*>(storage.const_data_ptr());
  size = storage.numel();
  if (reinterpret_cast<uintptr_t>(data) % alignof(Bucket) != 0) {
    throw std::invalid_argument("storage does not begin at a multiple of 8 bytes; pass a whole tensor, not a slice");
  }
  mapping = Mapping::at(data);
}

bool Bytes::contain(int64_t start, int64_t count) const {
  if (!is_within(start, count, size)) return false;
  return mapping == nullptr || count == 0 || mapping->in_one_file(data + start - mapping->data(), count);
}

bool Bytes::contain_joined(int64_t start, int64_t count) const {
  if (!is_within(start, count, size)) return false;
  return mapping == nullptr || count == 0 || mapping->in_joined_files(data + start - mapping->data(), count);
}

TableView::TableView(
    const Tensor& storage_tensor, const Tensor& cold_tensor, const Tensor& layout, int64_t dim_,
    const std::string& name)
    : storage(storage_tensor), cold(cold_tensor), dim(dim_), dtype(dtype_named(name)) {
  if (dim < 1 || dim > kMaxDim) {
    throw std::invalid_argument("dim is " + std::to_string(dim) + "; use 1 .. " + std::to_string(kMaxDim));
  }
  if (layout.scalar_type() != ScalarType::Long || layout.dim() != 1 || !layout.is_contiguous() ||
      layout.numel() < kLayoutHeader) {
    throw std::invalid_argument("layout is not a contiguous int64 tensor [8 + 4 * segments]");
  }
  const auto* header = static_cast<const int64_t*>(layout.const_data_ptr());
  form = row_form(dtype, dim, header[kStrideAt]);
  segments = reinterpret_cast<const Segment*>(header + kLayoutHeader);
  segment_count = static_cast<uint64_t>((layout.numel() - kLayoutHeader) / 4);
  const bool overlaid = header[kOverlaidAt] != 0;
  if (header[kSegmentsAt] < 0 || static_cast<uint64_t>(header[kSegmentsAt]) + overlaid > segment_count) {
    throw std::invalid_argument("layout has room for fewer segments than it names");
  }
  segment_count = static_cast<uint64_t>(header[kSegmentsAt]);
  index_cold = header[kIndexColdAt] != 0;
  index = index_at(header);
  if (overlaid) overlay = index_at(header + kLayoutHeader + 4 * segment_count);
  good_segments_ = std::make_unique<std::atomic<uint64_t>[]>(segment_count / 64 + 1);
}

Index TableView::index_at(const int64_t* numbers) const {
  const Bytes& bytes = index_cold ? cold : storage;
  const auto contains = [&](int64_t start, int64_t count) { return bytes.contain_joined(start, count); };
  if (wrong_in_index(numbers, alignof(Bucket), contains) != kNothingWrong) {
    const std::string message = "its buckets lie outside of the file; write the snapshot again";
    raise_corrupt("InvalidIndexError", path_at(numbers[0]), message);
  }
  return {reinterpret_cast<const Bucket*>(bytes.data + numbers[0]), numbers[1], numbers[2], numbers[3]};
}

void TableView::check_segment(uint64_t number) const {
  const Bytes& bytes = bytes_of(number);
  const auto contains = [&](int64_t start, int64_t count) { return bytes.contain(start, count); };
  const int64_t element = is_quantised(dtype) ? 1 : dtype == Dtype::kFloat32 ? 4 : 2;
  if (wrong_in_segment(segments[number], form, element, bytes.size, contains) != kNothingWrong) {
    const std::string message = "segment " + std::to_string(number) + " lies outside of the stored bytes";
    raise_corrupt("InvalidIndexError", path_of(index), message + "; write the snapshot again");
  }
}

void TableView::raise_location(const Index& one, int64_t id, uint64_t location) const {
  const std::string where = "segment " + std::to_string(location_segment(location)) + " row " +
                            std::to_string(location_row(location));
  const std::string message = "leads from id " + std::to_string(id) + " to " + where + ", which does not exist";
  raise_corrupt("InvalidIndexError", path_of(one), message + "; write the snapshot again");
}

std::string TableView::path_of(const Index& one) const {
  return path_at(reinterpret_cast<const uint8_t*>(one.buckets) - (index_cold ? cold : storage).data);
}

std::string TableView::path_at(int64_t start) const {
  if (storage.mapping == nullptr) return "the index in memory";
  return storage.mapping->path_at(start >= 0 && start < storage.size ? start : 0);
}

}  // namespace embedding_store
