// Compiled once for each ES_LEVEL, with the compiler's options for that level.
#include "rows.h"

#include <cstring>

#include "lanes.h"

namespace embedding_store {
namespace ES_LEVEL {
namespace {

// How a row of each dtype is read: sixteen values from value i on, or the one value i.
template <class T>
struct Floats {
  const T* values;
  explicit Floats(const Row& row) : values(reinterpret_cast<const T*>(row.vector)) {}
  Lanes lanes(int64_t i) const { return load(values + i); }
  float value(int64_t i) const { return to_float(values[i]); }
};

struct Quantised {
  const uint8_t* q;
  float scale, offset;
  explicit Quantised(const Row& row) : q(row.vector), scale(*row.scale), offset(*row.offset) {}
  Lanes scaled(Lanes x) const { return add(multiply(x, broadcast(scale)), broadcast(offset)); }
};

struct Int8 : Quantised {
  using Quantised::Quantised;
  Lanes lanes(int64_t i) const { return scaled(load_int8(q + i)); }
  float value(int64_t i) const { return dequantise(q[i], scale, offset); }
};

struct Int4 : Quantised {
  using Quantised::Quantised;
  Lanes lanes(int64_t i) const { return scaled(load_int4(q + i / 2)); }
  float value(int64_t i) const { return dequantise(int4_at(q, i), scale, offset); }
};

template <class Stored, class Out>
void copy(const Row& row, int64_t dim, void* out) {
  const Stored stored(row);
  auto* values = static_cast<Out*>(out);
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) ES_LEVEL::store(stored.lanes(i), values + i);
  for (; i < dim; ++i) embedding_store::store(stored.value(i), values + i);
}

template <class Out>
void clear(int64_t dim, void* out) {
  std::memset(out, 0, dim * sizeof(Out));
}

// Writes whole groups of lanes: a row of a multiple of 64 bytes has no values left over.
template <class Stored, class Out>
void stream_row(const Row& row, int64_t dim, void* out) {
  const Stored stored(row);
  auto* values = static_cast<Out*>(out);
  for (int64_t i = 0; i < dim; i += kLanes) stream(stored.lanes(i), values + i);
}

template <class Out>
void stream_zeros(int64_t dim, void* out) {
  auto* values = static_cast<Out*>(out);
  for (int64_t i = 0; i < dim; i += kLanes) stream(broadcast(0.0f), values + i);
}

template <class Stored>
void add_row(const Row& row, int64_t dim, float weight, float* sum) {
  const Stored stored(row);
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    ES_LEVEL::store(add(load(sum + i), multiply(stored.lanes(i), broadcast(weight))), sum + i);
  }
  for (; i < dim; ++i) sum[i] += weight * stored.value(i);
}

template <class Out>
void finish(const float* sum, int64_t dim, float factor, void* out) {
  auto* values = static_cast<Out*>(out);
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    ES_LEVEL::store(multiply(load(sum + i), broadcast(factor)), values + i);
  }
  for (; i < dim; ++i) embedding_store::store(sum[i] * factor, values + i);
}

template <class Stored, class Out>
RowFunctions functions() {
  return {copy<Stored, Out>,       clear<Out>,      stream_row<Stored, Out>,
          stream_zeros<Out>, add_row<Stored>, finish<Out>};
}

template <class Stored>
RowFunctions functions(OutDtype out) {
  switch (out) {
    case OutDtype::kFloat32: return functions<Stored, float>();
    case OutDtype::kFloat16: return functions<Stored, Half>();
    default: return functions<Stored, Bfloat16>();
  }
}

}  // namespace

RowFunctions row_functions(Dtype dtype, OutDtype out) {
  switch (dtype) {
    case Dtype::kFloat32: return functions<Floats<float>>(out);
    case Dtype::kFloat16: return functions<Floats<Half>>(out);
    case Dtype::kBfloat16: return functions<Floats<Bfloat16>>(out);
    case Dtype::kInt8: return functions<Int8>(out);
    default: return functions<Int4>(out);
  }
}

}  // namespace ES_LEVEL
}  // namespace embedding_store
