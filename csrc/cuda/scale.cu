// grads *= factor in place, the factor read on the device; nothing moves where it is 1.
#include "kernels.h"
#include "layout.h"

namespace vaekern {
namespace cuda {

namespace {

constexpr int MOST_GRADS = 8;
constexpr int SCALE_THREADS = 256;
constexpr int64_t MOST_BLOCKS = 1024;

struct Scale {
  char* data[MOST_GRADS];
  int64_t numel[MOST_GRADS];
  DType dtype[MOST_GRADS];
  int count;
  const char* factor;
  DType factor_dtype;
};

template <class T, int N>
VAEKERN_DEVICE void scale_one(char* data, int64_t numel, T factor, int64_t rank, int64_t size) {
  T* p = reinterpret_cast<T*>(data);
  const int64_t vectors = reinterpret_cast<uintptr_t>(p) % 16 == 0 ? numel / N : 0;
  for (int64_t i = rank; i < vectors; i += size) {
    Vector<T, N> v = load_vector<T, N>(p + i * N);
#pragma unroll
    for (int k = 0; k < N; ++k) v.v[k] *= factor;
    store_vector(p + i * N, v);
  }
  for (int64_t i = vectors * N + rank; i < numel; i += size) p[i] *= factor;
}

__global__ void __launch_bounds__(SCALE_THREADS) scale_all(const __grid_constant__ Scale a) {
  const double factor = load_one<double>(a.factor_dtype, a.factor);
  if (factor == 1.0) return;
  const int64_t rank = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t size = int64_t(gridDim.x) * blockDim.x;
#pragma unroll 1
  for (int k = 0; k < a.count; ++k) {
    if (a.dtype[k] == DType::f64)
      scale_one<double, 2>(a.data[k], a.numel[k], factor, rank, size);
    else
      scale_one<float, 4>(a.data[k], a.numel[k], float(factor), rank, size);
  }
}

}  // namespace

// The gradients are the forward's own buffers: dense, float32 or float64.
int scale(const Tensor* grads, int count, const Tensor& factor, void* stream) {
  Scale a{};
  int64_t most = 0;
  for (int k = 0; k < count; ++k) {
    const int64_t numel = grads[k].numel();
    if (numel == 0) continue;
    a.data[a.count] = static_cast<char*>(grads[k].data);
    a.dtype[a.count] = grads[k].dtype;
    a.numel[a.count++] = numel;
    most = std::max(most, numel);
  }
  if (a.count == 0) return 0;
  a.factor = static_cast<const char*>(factor.data);
  a.factor_dtype = factor.dtype;
  const int64_t blocks = (most + 8 * SCALE_THREADS - 1) / (8 * SCALE_THREADS);
  return launch(scale_all, std::min(blocks, MOST_BLOCKS), SCALE_THREADS, 0, stream, a);
}

}  // namespace cuda
}  // namespace vaekern
