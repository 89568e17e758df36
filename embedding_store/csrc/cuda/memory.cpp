// Memory of a GPU for tables, outside of torch's caching allocator, and streams, outside of its pool, for Python's ctypes:
// native/gpu.py says why. Those that return a cudaError_t leave no error behind for the next call to find.
#include <cuda_runtime.h>

#include <cstdint>

#define ES_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// While it lives, this thread's allocations are allowed beside captures of CUDA graphs in other threads, whatever their
// mode: else they would fail, and end the capture. None of what is done here belongs to a capture.
class BesideCaptures {
 public:
  BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCaptures(const BesideCaptures&) = delete;
  BesideCaptures& operator=(const BesideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

int result(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace

// The caller has made the device current for torch, and undoes that.
ES_EXPORT int embedding_store_cuda_allocate(int device, int64_t bytes, void** memory) {
  const BesideCaptures beside;
  const cudaError_t error = cudaSetDevice(device);
  return result(error == cudaSuccess ? cudaMalloc(memory, static_cast<size_t>(bytes)) : error);
}

// Returns when nothing on the device can be reading the memory any more: cudaFree waits for that.
ES_EXPORT int embedding_store_cuda_free(int device, void* memory) {
  const BesideCaptures beside;
  const cudaError_t error = cudaSetDevice(device);
  return result(error == cudaSuccess ? cudaFree(memory) : error);
}

// Host memory that the device may read from now on, until it is told that it may not.
ES_EXPORT int embedding_store_cuda_pin(int device, void* memory, int64_t bytes) {
  const BesideCaptures beside;
  const cudaError_t error = cudaSetDevice(device);
  return result(
      error == cudaSuccess ? cudaHostRegister(memory, static_cast<size_t>(bytes), cudaHostRegisterDefault) : error);
}

ES_EXPORT int embedding_store_cuda_unpin(int device, void* memory) {
  const BesideCaptures beside;
  const cudaError_t error = cudaSetDevice(device);
  return result(error == cudaSuccess ? cudaHostUnregister(memory) : error);
}

// A stream that waits for no other, the legacy default stream included, as torch's do not. It is never destroyed.
ES_EXPORT int embedding_store_cuda_stream(int device, void** stream) {
  const BesideCaptures beside;
  const cudaError_t error = cudaSetDevice(device);
  return result(
      error == cudaSuccess
          ? cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream), cudaStreamNonBlocking)
          : error);
}

// How captures of other threads bind this one: `mode` from now on. Returns what it was, or -1 if that is not known.
ES_EXPORT int embedding_store_cuda_capture_mode(int mode) {
  auto exchanged = static_cast<cudaStreamCaptureMode>(mode);
  return result(cudaThreadExchangeStreamCaptureMode(&exchanged)) == cudaSuccess ? static_cast<int>(exchanged) : -1;
}

// The newest CUDA that the driver runs, as 1000 * major + 10 * minor; 0 if there is none.
ES_EXPORT int embedding_store_cuda_driver() {
  int version = 0;
  return result(cudaDriverGetVersion(&version)) == cudaSuccess ? version : 0;
}

ES_EXPORT const char* embedding_store_cuda_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
