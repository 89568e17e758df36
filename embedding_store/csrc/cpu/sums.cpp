// What the statistics of a snapshot are made of, in one pass over its vectors.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int64_t kLanes = 16;   // partial sums of a row, side by side
constexpr int64_t kBlock = 256;  // rows whose columns are summed in float32

float norm(const float* row, int64_t dim) {
  float partial[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) partial[lane] += row[i + lane] * row[i + lane];
  }
  float sum = 0;
  for (; i < dim; ++i) sum += row[i] * row[i];
  for (const float part : partial) sum += part;
  return std::sqrt(sum);
}

}  // namespace

// sums[0] = the sum of the rows' L2 norms; sums[1 + i] = the sum of column i. A norm beyond float32 is infinite.
extern "C" __attribute__((visibility("default"))) void embedding_store_sums(
    const float* vectors,  // [rows, dim]
    int64_t rows, int64_t dim,
    double* sums) {  // [1 + dim]
  std::fill(sums, sums + 1 + dim, 0.0);
  std::vector<float> columns(dim);
  for (int64_t start = 0; start < rows; start += kBlock) {
    std::fill(columns.begin(), columns.end(), 0.0f);
    for (int64_t row = start; row < std::min(rows, start + kBlock); ++row) {
      const float* values = vectors + row * dim;
      sums[0] += norm(values, dim);
      for (int64_t i = 0; i < dim; ++i) columns[i] += values[i];
    }
    for (int64_t i = 0; i < dim; ++i) sums[1 + i] += columns[i];
  }
}
