// Every schema and every registration. This file is compiled into both libraries: the CPU library declares the ops and
// registers the CPU's functions, the CUDA library (EMBEDDING_STORE_CUDA) adds those of CUDA.
#include <torch/csrc/stable/library.h>

#if defined(EMBEDDING_STORE_CUDA)

#include "../cuda/ops.h"

STABLE_TORCH_LIBRARY_IMPL(embedding_store, CUDA, m) {
  m.impl("lookup", TORCH_BOX(&embedding_store::cuda::lookup));
  m.impl("lookup_versions", TORCH_BOX(&embedding_store::cuda::lookup_versions));
  m.impl("lookup_history", TORCH_BOX(&embedding_store::cuda::lookup_history));
  m.impl("lookup_pooled", TORCH_BOX(&embedding_store::cuda::lookup_pooled));
  m.impl("lookup_pooled_tiered", TORCH_BOX(&embedding_store::cuda::lookup_pooled_tiered));
  m.impl("lookup_tiered", TORCH_BOX(&embedding_store::cuda::lookup_tiered));
  m.impl("locate", TORCH_BOX(&embedding_store::cuda::locate));
  m.impl("enter", TORCH_BOX(&embedding_store::cuda::enter));
  m.impl("leave", TORCH_BOX(&embedding_store::cuda::leave));
}

#else

#include "../cpu/ops.h"

STABLE_TORCH_LIBRARY(embedding_store, m) {
  m.def("lookup(Tensor ids, Tensor storage, Tensor layout, int dim, str dtype, ScalarType out) -> (Tensor, Tensor)");
  m.def(
      "lookup_versions(Tensor ids, Tensor choice, Tensor[] storages, Tensor[] layouts, int dim, str dtype, "
      "ScalarType out) -> (Tensor, Tensor)");
  m.def(
      "lookup_history(Tensor ids, Tensor timestamps, Tensor newest, Tensor as_of, Tensor numbers, Tensor[] storages, "
      "Tensor[] layouts, int k, int dim, str dtype, ScalarType out) -> (Tensor, Tensor, Tensor)");
  m.def(
      "lookup_pooled(Tensor ids, Tensor offsets, Tensor? weights, Tensor storage, Tensor layout, int dim, str dtype, "
      "str mode, ScalarType out) -> (Tensor, Tensor)");
  m.def(
      "lookup_pooled_tiered(Tensor ids, Tensor offsets, Tensor? weights, Tensor storage, Tensor cold, Tensor layout, "
      "int dim, str dtype, str mode, ScalarType out) -> (Tensor, Tensor, Tensor)");
  m.def(
      "lookup_tiered(Tensor ids, Tensor storage, Tensor cold, Tensor layout, int dim, str dtype, ScalarType out, "
      "Tensor(a!) counters) -> (Tensor, Tensor)");
  m.def("locate(Tensor ids, Tensor storage, Tensor layout) -> Tensor");
  m.def("nearest(Tensor users, Tensor items, int k, Tensor without_users, Tensor without_items) -> (Tensor, Tensor)");
  m.def("distinct(Tensor ids, int parts) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gather(Tensor places, Tensor own, Tensor received, int dim, str dtype, ScalarType out) -> (Tensor, Tensor)");
  // Two slots of memory; see native/gate.py.
  m.def("enter(Tensor(a!) gate, Tensor rows) -> Tensor");
  m.def("leave(Tensor(a!) gate, Tensor row) -> ()");
  // A snapshot's files as one tensor; see native/mapping.py.
  m.def("map_files(str[] paths, int[] bytes, Tensor crcs, bool copies, bool anew) -> Tensor");
  m.def("mapped_starts(Tensor storage) -> int[]");
  m.def("check_blocks(Tensor storage, int first, int count, float bytes_per_second) -> ()");
  m.def("unchecked_blocks(Tensor storage) -> int");
  m.def("release_pages(Tensor storage) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(embedding_store, CPU, m) {
  m.impl("lookup", TORCH_BOX(&embedding_store::lookup));
  m.impl("lookup_versions", TORCH_BOX(&embedding_store::lookup_versions));
  m.impl("lookup_history", TORCH_BOX(&embedding_store::lookup_history));
  m.impl("lookup_pooled", TORCH_BOX(&embedding_store::lookup_pooled));
  m.impl("lookup_pooled_tiered", TORCH_BOX(&embedding_store::lookup_pooled_tiered));
  m.impl("lookup_tiered", TORCH_BOX(&embedding_store::lookup_tiered));
  m.impl("locate", TORCH_BOX(&embedding_store::locate));
  m.impl("nearest", TORCH_BOX(&embedding_store::nearest));
  m.impl("distinct", TORCH_BOX(&embedding_store::distinct));
  m.impl("gather", TORCH_BOX(&embedding_store::gather));
  m.impl("enter", TORCH_BOX(&embedding_store::enter));
  m.impl("leave", TORCH_BOX(&embedding_store::leave));
  m.impl("map_files", TORCH_BOX(&embedding_store::map_files));
  m.impl("mapped_starts", TORCH_BOX(&embedding_store::mapped_starts));
  m.impl("check_blocks", TORCH_BOX(&embedding_store::check_blocks));
  m.impl("unchecked_blocks", TORCH_BOX(&embedding_store::unchecked_blocks));
  m.impl("release_pages", TORCH_BOX(&embedding_store::release_pages));
}

#endif
