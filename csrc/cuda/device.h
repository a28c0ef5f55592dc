// What the kernels need from the machine: CUDA's own where nvcc compiles them, and an emulation on
// the CPU (tests/cuda/emulator.h, one fiber per thread) where a C++ compiler does, so that the same
// kernels are tested where there is no GPU.
#pragma once

#include <cstdint>

#include "../core.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define VAEKERN_ISA cuda
#include "../axes.h"

namespace vaekern {
namespace cuda {

constexpr unsigned ALL_LANES = 0xffffffffu;

#define VAEKERN_ALIGNED(p, bytes)  // the device itself checks
#define VAEKERN_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

__device__ __forceinline__ float half_to_float(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}

__device__ __forceinline__ uint16_t float_to_half(float x) {
  return __half_as_ushort(__float2half_rn(x));
}

// C += A B for a warp, with A [8, 4] and B [4, 8] in float64: lane 4 g + t holds A[g][t], B[t][g]
// and C[g][2 t], C[g][2 t + 1].
__device__ __forceinline__ void multiply_add_8x8x4(double (&c)[2], double a, double b) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(c[0]), "+d"(c[1])
      : "d"(a), "d"(b));
}

// The most shared memory that one block of the current device may ask for.
inline int shared_memory_limit(int* bytes) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return error;
}

template <class Arguments>
int launch(void (*kernel)(Arguments), int64_t blocks, int threads, size_t shared, void* stream,
           const Arguments& arguments) {
  if (shared > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (error != cudaSuccess) return error;
  }
  kernel<<<unsigned(blocks), threads, shared, static_cast<cudaStream_t>(stream)>>>(arguments);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace vaekern

#else
#include "emulator.h"
#endif

namespace vaekern {
namespace cuda {

#define VAEKERN_DEVICE __device__ __forceinline__
// Compiled once for all kernels of a file.
#define VAEKERN_NOINLINE static __device__ __noinline__

VAEKERN_DEVICE float bfloat_to_float(uint16_t bits) {
  return __uint_as_float(uint32_t(bits) << 16);
}

// To nearest, ties to even.
VAEKERN_DEVICE uint16_t float_to_bfloat(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// N elements that lie next to each other, loaded and stored by one instruction.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T v[N];
};

template <class T, int N>
VAEKERN_DEVICE Vector<T, N> load_vector(const void* p) {
  VAEKERN_ALIGNED(p, sizeof(Vector<T, N>));
  return *static_cast<const Vector<T, N>*>(p);
}

template <class T, int N>
VAEKERN_DEVICE void store_vector(void* p, const Vector<T, N>& v) {
  VAEKERN_ALIGNED(p, sizeof(Vector<T, N>));
  *static_cast<Vector<T, N>*>(p) = v;
}

// The sum over groups of LANES neighbouring lanes, the same bits in every lane.
template <int LANES>
VAEKERN_DEVICE double sum_over_lanes(double x) {
#pragma unroll
  for (int k = LANES / 2; k > 0; k /= 2) x += __shfl_xor_sync(ALL_LANES, x, k);
  return x;
}

}  // namespace cuda
}  // namespace vaekern
