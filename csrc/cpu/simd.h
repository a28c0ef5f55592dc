// Fixed-width vectors in GCC/Clang vector extensions: the same source becomes SSE2, AVX2 or AVX-512
// (or NEON) code, by the flags of the translation unit that includes it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef VAEKERN_ISA
#define VAEKERN_ISA baseline
#endif

#if defined(__AVX512F__)
#define VAEKERN_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VAEKERN_VECTOR_BYTES 32
#else
#define VAEKERN_VECTOR_BYTES 16
#endif

#define VAEKERN_INLINE inline __attribute__((always_inline))

namespace vaekern {
namespace VAEKERN_ISA {

template <class C>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(VAEKERN_VECTOR_BYTES)));
  typedef int32_t bits __attribute__((vector_size(VAEKERN_VECTOR_BYTES)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(VAEKERN_VECTOR_BYTES)));
  typedef int64_t bits __attribute__((vector_size(VAEKERN_VECTOR_BYTES)));
};

template <class C>
using Vec = typename VecOf<C>::type;
template <class C>
using Bits = typename VecOf<C>::bits;
template <class C>
constexpr int LANES = VAEKERN_VECTOR_BYTES / sizeof(C);

template <class C>
VAEKERN_INLINE Vec<C> load(const C* p) {
  Vec<C> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class C>
VAEKERN_INLINE Vec<C> splat(C s) {
  return s - Vec<C>{};
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// The first n lanes.
template <class C>
VAEKERN_INLINE __m256i first_lanes(int n) {
  constexpr int64_t all = -1;
  alignas(64) static constexpr int64_t lanes[8] = {all, all, all, all, 0, 0, 0, 0};
  const char* end = reinterpret_cast<const char*>(lanes + 4);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(end - n * int(sizeof(C))));
}
#endif

// Fewer than LANES elements: absent lanes hold `fill`. Narrow rows are nothing but this: a masked
// load, where memcpy of a length that is not known is a call.
template <class C>
VAEKERN_INLINE Vec<C> load_part(const C* p, int n, C fill = 0) {
  const Vec<C> rest = splat(fill);
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == 4)
    return (Vec<C>)_mm512_mask_loadu_ps((__m512)rest, __mmask16((1u << n) - 1), p);
  else
    return (Vec<C>)_mm512_mask_loadu_pd((__m512d)rest, __mmask8((1u << n) - 1), p);
#elif defined(__AVX2__)
  const __m256i mask = first_lanes<C>(n);
  if constexpr (sizeof(C) == 4)
    return (Vec<C>)_mm256_blendv_ps((__m256)rest, _mm256_maskload_ps(p, mask), (__m256)mask);
  else
    return (Vec<C>)_mm256_blendv_pd((__m256d)rest, _mm256_maskload_pd(p, mask), (__m256d)mask);
#else
  Vec<C> v = rest;
  std::memcpy(&v, p, n * sizeof(C));
  return v;
#endif
}

template <class C>
VAEKERN_INLINE void store(C* p, Vec<C> v) {
  std::memcpy(p, &v, sizeof v);
}

template <class C>
VAEKERN_INLINE void store_part(C* p, Vec<C> v, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == 4)
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
  else
    _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
#elif defined(__AVX2__)
  if constexpr (sizeof(C) == 4)
    _mm256_maskstore_ps(p, first_lanes<C>(n), (__m256)v);
  else
    _mm256_maskstore_pd(p, first_lanes<C>(n), (__m256d)v);
#else
  std::memcpy(p, &v, n * sizeof(C));
#endif
}

// Past the caches: saves reading the line that is about to be overwritten. p must be aligned.
VAEKERN_INLINE void stream(float* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)v);
#elif defined(__SSE2__)
  _mm_stream_ps(p, (__m128)v);
#else
  store(p, v);
#endif
}

VAEKERN_INLINE void stream(double* p, Vec<double> v) {
#if defined(__AVX512F__)
  _mm512_stream_pd(p, (__m512d)v);
#elif defined(__AVX2__)
  _mm256_stream_pd(p, (__m256d)v);
#elif defined(__SSE2__)
  _mm_stream_pd(p, (__m128d)v);
#else
  store(p, v);
#endif
}

VAEKERN_INLINE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Lane by lane in order, in double: the same bits whatever the caller's loop. Those from `used` on
// hold zeros, which change no bit either.
template <class C>
VAEKERN_INLINE double sum_lanes(Vec<C> v, int64_t used = LANES<C>) {
  C lane[LANES<C>];
  std::memcpy(lane, &v, sizeof v);
  double s = 0;
  if (used >= LANES<C>)
    for (int k = 0; k < LANES<C>; ++k) s += double(lane[k]);
  else
    for (int k = 0; k < used; ++k) s += double(lane[k]);
  return s;
}

template <class C>
VAEKERN_INLINE Vec<C> select(Bits<C> mask, Vec<C> a, Vec<C> b) {
  return mask ? a : b;
}

template <class C>
VAEKERN_INLINE Bits<C> as_bits(Vec<C> v) {
  Bits<C> b;
  std::memcpy(&b, &v, sizeof b);
  return b;
}

template <class C>
VAEKERN_INLINE Vec<C> from_bits(Bits<C> b) {
  Vec<C> v;
  std::memcpy(&v, &b, sizeof v);
  return v;
}

template <class C>
struct Float;
template <>
struct Float<float> {
  static constexpr int mantissa = 23, bias = 127;
  static constexpr int32_t mantissa_mask = 0x007fffff, one = 0x3f800000;
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
};
template <>
struct Float<double> {
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr int64_t mantissa_mask = 0x000fffffffffffffLL, one = 0x3ff0000000000000LL;
  static constexpr double magic = 6755399441055744.0;
};

// t = k ln 2 + f with |f| <= ln 2 / 2; returns f and the rounded k as a floating-point number.
template <class C>
VAEKERN_INLINE Vec<C> split_exponent(Vec<C> t, Vec<C>& k) {
  constexpr C inv_ln2 = C(1.4426950408889634074);
  // ln 2 in two parts, the first short enough that k times it is exact
  constexpr C hi = sizeof(C) == 4 ? C(0.693359375) : C(6.93145751953125e-1);
  constexpr C lo = sizeof(C) == 4 ? C(-2.12194440054690583e-4) : C(1.42860682030941723212e-6);
  const Vec<C> magic = splat(Float<C>::magic);
  k = (t * inv_ln2 + magic) - magic;
  return (t - k * hi) - k * lo;
}

// (e^f - 1 - f) / f^2 for |f| <= 0.3466: the Taylor series, to the last bit of C.
template <class C>
VAEKERN_INLINE Vec<C> excess_series(Vec<C> f) {
  constexpr int terms = sizeof(C) == 4 ? 7 : 14;
  constexpr double inverse_factorial[] = {1.0 / 2,
                                          1.0 / 6,
                                          1.0 / 24,
                                          1.0 / 120,
                                          1.0 / 720,
                                          1.0 / 5040,
                                          1.0 / 40320,
                                          1.0 / 362880,
                                          1.0 / 3628800,
                                          1.0 / 39916800,
                                          1.0 / 479001600.0,
                                          1.0 / 6227020800.0,
                                          1.0 / 87178291200.0,
                                          1.0 / 1307674368000.0};
  Vec<C> s = splat(C(inverse_factorial[terms - 1]));
#pragma GCC unroll 16
  for (int n = terms - 2; n >= 0; --n) s = s * f + C(inverse_factorial[n]);
  return s;
}

// 2^k for integral k within C's exponents
template <class C>
VAEKERN_INLINE Vec<C> power_of_two(Vec<C> k) {
  Bits<C> e = __builtin_convertvector(k, Bits<C>);
  return from_bits<C>((e + Float<C>::bias) << Float<C>::mantissa);
}

// v 2^k for integral k, in two steps where one would leave the range
#if defined(__AVX512F__)
VAEKERN_INLINE Vec<float> scale_by_power(Vec<float> v, Vec<float> k) {
  return (Vec<float>)_mm512_scalef_ps((__m512)v, (__m512)k);
}
VAEKERN_INLINE Vec<double> scale_by_power(Vec<double> v, Vec<double> k) {
  return (Vec<double>)_mm512_scalef_pd((__m512d)v, (__m512d)k);
}
#else
template <class V, class C = typename std::remove_reference<decltype(V{}[0])>::type>
VAEKERN_INLINE V scale_by_power(V v, V k) {
  V half = __builtin_convertvector(__builtin_convertvector(k, Bits<C>) >> 1, Vec<C>);
  return v * power_of_two<C>(half) * power_of_two<C>(k - half);
}
#endif

// e^t and, without cancellation, e^t - 1 and e^t - 1 - t. NaN stays NaN; overflow gives infinity.
template <class C>
struct Exp {
  Vec<C> exp, minus_one, excess;
};

template <class C>
VAEKERN_INLINE Exp<C> exp_all(Vec<C> t) {
  constexpr C top = sizeof(C) == 4 ? C(89) : C(710);        // e^top is infinite
  constexpr C bottom = sizeof(C) == 4 ? C(-104) : C(-746);  // e^bottom is 0
  Vec<C> capped = select<C>(t > top, splat(top), t);        // a comparison with NaN is false
  Vec<C> k;
  Vec<C> f = split_exponent<C>(select<C>(capped < bottom, splat(bottom), capped), k);
  Vec<C> f2q = f * f * excess_series<C>(f);
  Exp<C> out;
  out.exp = scale_by_power(C(1) + (f + f2q), k);
  Bits<C> near = k == C(0);  // |t| <= ln 2 / 2: nothing cancels in the series
  out.minus_one = select<C>(near, f + f2q, out.exp - C(1));
  out.excess = select<C>(near, f2q, (out.exp - C(1)) - capped);
  return out;
}

// One activation: y = act(a) and dy/da, both without cancellation at either end.
struct Identity {
  static constexpr bool trivial = true;
  template <class C>
  static VAEKERN_INLINE Vec<C> value(Vec<C> a) {
    return a;
  }
  template <class C>
  static VAEKERN_INLINE Vec<C> value(Vec<C> a, Vec<C>& slope) {
    slope = splat(C(1));
    return a;
  }
};

template <class C>
VAEKERN_INLINE Vec<C> magnitude(Vec<C> a) {
  return from_bits<C>(as_bits<C>(a) & ~(Bits<C>{} | (Bits<C>{} + 1) << (8 * sizeof(C) - 1)));
}

struct Sigmoid {
  static constexpr bool trivial = false;
  template <class C>
  static VAEKERN_INLINE Vec<C> value(Vec<C> a, Vec<C>& slope) {
    Vec<C> e = exp_all<C>(-magnitude<C>(a)).exp;  // in (0, 1]
    Vec<C> inverse = C(1) / (C(1) + e);
    slope = e * inverse * inverse;
    return select<C>(a < C(0), e * inverse, inverse);
  }
  template <class C>
  static VAEKERN_INLINE Vec<C> value(Vec<C> a) {
    Vec<C> slope;
    return value<C>(a, slope);
  }
};

struct Tanh {
  static constexpr bool trivial = false;
  template <class C>
  static VAEKERN_INLINE Vec<C> value(Vec<C> a, Vec<C>& slope) {
    Exp<C> e = exp_all<C>(C(-2) * magnitude<C>(a));
    Vec<C> inverse = C(1) / (C(2) + e.minus_one);  // 1 / (1 + e^-2|a|)
    Vec<C> y = -e.minus_one * inverse;
    slope = C(4) * e.exp * inverse * inverse;
    return select<C>(a < C(0), -y, y);
  }
  template <class C>
  static VAEKERN_INLINE Vec<C> value(Vec<C> a) {
    Vec<C> slope;
    return value<C>(a, slope);
  }
};

template <class C>
VAEKERN_INLINE Vec<C> exp(Vec<C> t) {
  return exp_all<C>(t).exp;
}

// sum of log(q) over many positive q: mantissas are multiplied, exponents added, and one logarithm
// is taken per lane in the end. Exact to the rounding of the products, and free beside the memory.
template <class C>
class LogProduct {
 public:
  VAEKERN_INLINE void add(Vec<C> q) {  // q > 0 and normal, or not finite
    Bits<C> b = as_bits<C>(q);
    exponents_ += (b >> Float<C>::mantissa);
    product_ *= from_bits<C>((b & Float<C>::mantissa_mask) | Float<C>::one);
    const Vec<C> largest = splat(std::numeric_limits<C>::max());
    strays_ += select<C>(q <= largest, splat(C(0)), q);  // infinities and NaN
    if (++count_ == FLUSH) flush();
  }

  // log of the product of everything added; NaN or infinite where some q was
  double value() {
    flush();
    double s = sum_lanes<C>(strays_);
    if (!(s == 0)) return s;
    return log_;
  }

 private:
  static constexpr int FLUSH = 64;  // mantissas are below 2: the product stays below 2^64

  void flush() {
    C lane[LANES<C>];
    decltype(Bits<C>{}[0] + 0) exponent[LANES<C>];
    std::memcpy(lane, &product_, sizeof lane);
    std::memcpy(exponent, &exponents_, sizeof exponent);
    // the lanes' products multiply in double: 2^64 to the 8th is far from overflow
    for (int k = 0; k < LANES<C>; k += 8) {
      double p = 1;
      int64_t e = 0;
      for (int j = k; j < k + 8 && j < LANES<C>; ++j) {
        p *= double(lane[j]);
        e += exponent[j];
      }
      log_ += std::log(p);
      sum_exponent_ += e;
    }
    const int lanes_of_count = count_ * LANES<C>;
    log_ +=
        double(sum_exponent_ - int64_t(lanes_of_count) * Float<C>::bias) * 0.69314718055994530942;
    sum_exponent_ = 0;
    product_ = splat(C(1));
    exponents_ = Bits<C>{};
    count_ = 0;
  }

  Vec<C> product_ = splat(C(1));
  Vec<C> strays_ = splat(C(0));
  Bits<C> exponents_ = Bits<C>{};
  int count_ = 0;
  double log_ = 0;
  int64_t sum_exponent_ = 0;
};

}  // namespace VAEKERN_ISA
}  // namespace vaekern
