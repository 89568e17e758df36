// Some kernels of lookups in many versions for test_machine_code.py: every dtype, every type of result and
// every width at least once.
#include "../../../../embedding_store/csrc/cuda/history_kernel.h"
#include "../../../../embedding_store/csrc/cuda/versions_kernel.h"

namespace embedding_store::cuda {

#define VERSIONS(dtype, out, values)                                               \
  template __global__ void versions_kernel<Dtype::dtype, OutDtype::out, values>( \
      const __grid_constant__ VersionsArguments)

VERSIONS(kFloat32, kFloat32, 4);
VERSIONS(kFloat16, kFloat16, 8);
VERSIONS(kInt8, kFloat32, 4);
VERSIONS(kInt4, kBfloat16, 2);

#define HISTORY(dtype, out, values)                                               \
  template __global__ void history_kernel<Dtype::dtype, OutDtype::out, values>( \
      const __grid_constant__ HistoryArguments)

HISTORY(kFloat32, kFloat32, 4);
HISTORY(kFloat32, kFloat16, 8);
HISTORY(kFloat16, kFloat16, 8);
HISTORY(kBfloat16, kFloat32, 1);
HISTORY(kInt8, kFloat32, 4);
HISTORY(kInt8, kFloat16, 8);
HISTORY(kInt4, kBfloat16, 2);

}  // namespace embedding_store::cuda
