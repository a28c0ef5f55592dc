// The kernels as a C library that runs on the CPU: tests/cuda/conftest.py loads it with ctypes.
#include "../../csrc/cuda/assignment.cu"
#include "../../csrc/cuda/right_svd.cu"

using namespace vaekern;

extern "C" {

void set_emulator(int order, int shared_memory_limit) {
  emulator::order = emulator::Order(order);
  emulator::shared_memory_limit = shared_memory_limit;
}

int64_t svd_workspace(int64_t batch, int64_t m, int64_t d) {
  size_t bytes = 0;
  return cuda::right_svd_workspace(batch, m, d, &bytes) ? -1 : int64_t(bytes);
}

static Tensor tensor(void* data, int dtype, const int64_t* shape, const int64_t* stride) {
  Tensor t;
  t.data = data;
  t.dtype = DType(dtype);
  t.present = true;
  t.ndim = 3;
  for (int k = 0; k < 3; ++k) {
    t.shape[k] = shape[k];
    t.stride[k] = stride[k];
  }
  return t;
}

int svd(void* data, int dtype, const int64_t* shape, const int64_t* stride, float* S, float* V,
        int32_t* sweeps, uint8_t* converged, uint8_t* finite, void* workspace) {
  cuda::RightSvdArgs args;
  args.jacobian = tensor(data, dtype, shape, stride);
  args.S = S;
  args.V = V;
  args.sweeps = sweeps;
  args.converged = converged;
  args.finite = finite;
  args.workspace = workspace;
  return cuda::right_svd(args);
}

int assign(void* data, int dtype, const int64_t* shape, const int64_t* stride, int64_t* columns) {
  cuda::AssignmentArgs args;
  args.cost = tensor(data, dtype, shape, stride);
  args.columns = columns;
  return cuda::assignment(args);
}
}
