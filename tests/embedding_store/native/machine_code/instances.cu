// Some kernels of each kind, so that test_machine_code.py sees in seconds what would take minutes for all: every dtype,
// every type of result and every width at least once.
#include "../../../../embedding_store/csrc/cuda/lookup_kernel.h"
#include "../../../../embedding_store/csrc/cuda/staging_kernel.h"
#include "../../../../embedding_store/csrc/cuda/tiered_kernel.h"

namespace embedding_store::cuda {

#define LOOKUP(dtype, out, values)                                     \
  template __global__ void lookup_kernel<Dtype::dtype, OutDtype::out, values>( \
      const __grid_constant__ LookupArguments)

LOOKUP(kFloat32, kFloat32, 4);
LOOKUP(kFloat32, kFloat16, 8);
LOOKUP(kFloat16, kFloat16, 8);
LOOKUP(kBfloat16, kFloat32, 1);
LOOKUP(kInt8, kFloat32, 4);
LOOKUP(kInt8, kFloat16, 8);
LOOKUP(kInt4, kBfloat16, 2);

#define TIERED(dtype, out, values)                                            \
  template __global__ void lookup_tiered_kernel<Dtype::dtype, OutDtype::out, values>( \
      const __grid_constant__ LookupArguments, const Claims, unsigned long long*)

TIERED(kFloat32, kFloat32, 4);
TIERED(kFloat16, kFloat16, 8);
TIERED(kInt8, kFloat16, 8);
TIERED(kInt4, kBfloat16, 2);
TIERED(kInt4, kFloat32, 1);

#define STAGE(bytes) template __global__ void stage_kernel<bytes>(const __grid_constant__ StagingArguments)

STAGE(16);
STAGE(8);
STAGE(1);

}  // namespace embedding_store::cuda
