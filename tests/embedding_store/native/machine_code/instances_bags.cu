// Some kernels of pooled lookups for test_machine_code_bags.py: every dtype, every width and the last step at least once.
#include "../../../../embedding_store/csrc/cuda/pooled_kernel.h"

namespace embedding_store::cuda {

#define POOLED(dtype, values) \
  template __global__ void pooled_kernel<Dtype::dtype, values>(const __grid_constant__ PooledArguments)

POOLED(kFloat32, 4);
POOLED(kFloat32, 2);
POOLED(kFloat16, 8);
POOLED(kBfloat16, 1);
POOLED(kInt8, 8);
POOLED(kInt4, 4);
POOLED(kInt4, 16);

template __global__ void finish_kernel<4>(const __grid_constant__ PooledArguments);

}  // namespace embedding_store::cuda
