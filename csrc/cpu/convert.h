// Between the storage dtypes and the two compute types; rounding is to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

#include "../axes.h"
#include "simd.h"

namespace vaekern {
namespace VAEKERN_ISA {

VAEKERN_INLINE float bf16_to_float(uint16_t h) {
  uint32_t b = uint32_t(h) << 16;
  float f;
  std::memcpy(&f, &b, sizeof f);
  return f;
}

VAEKERN_INLINE uint16_t float_to_bf16(float f) {
  uint32_t b;
  std::memcpy(&b, &f, sizeof b);
  uint32_t rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  uint32_t nan = (b >> 16) | 0x40;
  return uint16_t((b & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

VAEKERN_INLINE float f16_to_float(uint16_t h) {
  // the exponent is rebased by a multiplication, which also normalises subnormals
  uint32_t sign = uint32_t(h & 0x8000) << 16, rest = uint32_t(h & 0x7fff) << 13;
  float f, magic = 5.192296858534828e33f;  // 2^112
  std::memcpy(&f, &rest, sizeof f);
  f *= magic;
  uint32_t b;
  std::memcpy(&b, &f, sizeof b);
  if ((h & 0x7c00) == 0x7c00) b = 0x7f800000 | rest;
  b |= sign;
  std::memcpy(&f, &b, sizeof f);
  return f;
}

VAEKERN_INLINE uint16_t float_to_f16(float value) {
  uint32_t b;
  std::memcpy(&b, &value, sizeof b);
  uint32_t sign = (b >> 16) & 0x8000;
  b &= 0x7fffffff;
  if (b > 0x7f800000) return uint16_t(sign | 0x7e00 | ((b >> 13) & 0x3ff));
  if (b >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 2^16 or more
  if (b < 0x38800000) {  // subnormal in half: let the float adder round at 2^-24
    float f, magic = 0.5f;
    std::memcpy(&f, &b, sizeof f);
    f += magic;
    std::memcpy(&b, &f, sizeof b);
    return uint16_t(sign | (b - 0x3f000000));
  }
  return uint16_t(sign | ((b + 0xc8000fff + ((b >> 13) & 1)) >> 13));
}

// n elements from `p`, `stride` elements apart, to C
template <class C>
inline void load_run(const void* p, DType dtype, int64_t stride, int64_t n, C* out) {
  switch (dtype) {
    case DType::f32: {
      const float* q = static_cast<const float*>(p);
      if (stride == 0)
        for (int64_t i = 0; i < n; ++i) out[i] = C(*q);
      else if (stride == 1)
        for (int64_t i = 0; i < n; ++i) out[i] = C(q[i]);
      else
        for (int64_t i = 0; i < n; ++i) out[i] = C(q[i * stride]);
      return;
    }
    case DType::f64: {
      const double* q = static_cast<const double*>(p);
      for (int64_t i = 0; i < n; ++i) out[i] = C(q[i * stride]);
      return;
    }
    case DType::bf16: {
      const uint16_t* q = static_cast<const uint16_t*>(p);
      if (stride == 1)
        for (int64_t i = 0; i < n; ++i) out[i] = C(bf16_to_float(q[i]));
      else
        for (int64_t i = 0; i < n; ++i) out[i] = C(bf16_to_float(q[i * stride]));
      return;
    }
    case DType::f16: {
      const uint16_t* q = static_cast<const uint16_t*>(p);
      int64_t i = 0;
#if defined(__F16C__)
      if (stride == 1)
        for (; i + 8 <= n; i += 8) {
          __m256 v = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q + i)));
          float lane[8];
          std::memcpy(lane, &v, sizeof lane);
          for (int k = 0; k < 8; ++k) out[i + k] = C(lane[k]);
        }
#endif
      for (; i < n; ++i) out[i] = C(f16_to_float(q[i * stride]));
      return;
    }
  }
}

template <class C>
inline void store_run(void* p, DType dtype, int64_t stride, int64_t n, const C* in) {
  switch (dtype) {
    case DType::f32: {
      float* q = static_cast<float*>(p);
      if (stride == 1)
        for (int64_t i = 0; i < n; ++i) q[i] = float(in[i]);
      else
        for (int64_t i = 0; i < n; ++i) q[i * stride] = float(in[i]);
      return;
    }
    case DType::f64: {
      double* q = static_cast<double*>(p);
      for (int64_t i = 0; i < n; ++i) q[i * stride] = double(in[i]);
      return;
    }
    case DType::bf16: {
      uint16_t* q = static_cast<uint16_t*>(p);
      if (stride == 1)
        for (int64_t i = 0; i < n; ++i) q[i] = float_to_bf16(float(in[i]));
      else
        for (int64_t i = 0; i < n; ++i) q[i * stride] = float_to_bf16(float(in[i]));
      return;
    }
    case DType::f16: {
      uint16_t* q = static_cast<uint16_t*>(p);
      int64_t i = 0;
#if defined(__F16C__)
      if (stride == 1 && sizeof(C) == 4)
        for (; i + 8 <= n; i += 8) {
          __m256 v;
          std::memcpy(&v, in + i, sizeof v);
          _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i),
                           _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
        }
#endif
      for (; i < n; ++i) q[i * stride] = float_to_f16(float(in[i]));
      return;
    }
  }
}

// A bound as C: +-3e38 stands for none (vaekern/ops.py, UNBOUNDED), so that infinities pass.
template <class C>
inline C bounded(double bound) {
  constexpr double none = 3e38;
  constexpr C infinity = std::numeric_limits<C>::infinity();
  return bound <= -none ? -infinity : bound >= none ? infinity : C(bound);
}

// The only element of a one-element tensor
inline double scalar(const Tensor& t) {
  double v;
  load_run<double>(t.data, t.dtype, 1, 1, &v);
  return v;
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
