# The image of a cluster's jobs: this package with its CUDA library, torch and TorchRec for CUDA, obstore.
#   docker build -f docker/cuda.Dockerfile -t recsys-derm:cuda .
# It is the image that the components in launchers/ name by default. The versions of torch are those of the Makefile; the
# toolkit only compiles embedding_store's kernels, with the runtime linked in: take one whose major version is that of
# the CUDA that torch brings (python -c 'import torch; print(torch.version.cuda)').
ARG CUDA=13.0.1
ARG UBUNTU=ubuntu24.04

FROM nvidia/cuda:${CUDA}-devel-${UBUNTU} AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3 python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/recsys
ENV PATH=/opt/recsys/bin:$PATH
RUN pip install --no-cache-dir torch==2.13.0 'scikit-build-core>=0.11,<1' 'cmake>=3.24,<5' 'ninja>=1.11,<2'
COPY . /src
RUN pip install --no-cache-dir --no-build-isolation '/src[cuda,objects]' \
    && test -s "$(python -c 'import importlib.util as u; print(u.find_spec("embedding_store").submodule_search_locations[0])')/libembedding_store_cuda.so"

FROM nvidia/cuda:${CUDA}-base-${UBUNTU}
# g++ is what a ranker is compiled with (--compiled).
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/recsys /opt/recsys
ENV PATH=/opt/recsys/bin:$PATH
