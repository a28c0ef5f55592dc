// Any strided layout, read and written in 16 bytes at a time where the tensors' rows allow it. What
// decides is uniform over a block, so that one kernel serves every dtype and layout.
#pragma once

#include "device.h"

namespace vaekern {
namespace cuda {

// Numbers that a thread takes at a time: 16 bytes in half precision, twice 16 in float32. A warp's
// single numbers of float64 are 256 bytes, which wider loads do not improve.
template <class C>
constexpr int WIDTH = sizeof(C) == 4 ? 8 : 1;

template <int N>
struct Number {
  static constexpr int value = N;
};

template <class C>
VAEKERN_DEVICE C load_one(DType dtype, const char* p) {
  switch (dtype) {
    case DType::f32: return C(*reinterpret_cast<const float*>(p));
    case DType::f64: return C(*reinterpret_cast<const double*>(p));
    case DType::bf16: return C(bfloat_to_float(*reinterpret_cast<const uint16_t*>(p)));
    default: return C(half_to_float(*reinterpret_cast<const uint16_t*>(p)));
  }
}

template <class C>
VAEKERN_DEVICE void store_one(DType dtype, char* p, C x) {
  switch (dtype) {
    case DType::f32: *reinterpret_cast<float*>(p) = float(x); return;
    case DType::f64: *reinterpret_cast<double*>(p) = double(x); return;
    case DType::bf16: *reinterpret_cast<uint16_t*>(p) = float_to_bfloat(float(x)); return;
    default: *reinterpret_cast<uint16_t*>(p) = float_to_half(float(x)); return;
  }
}

// N numbers as they lie in memory, not yet converted: several loads can be under way.
template <class C, int N>
struct Raw {
  static_assert(sizeof(C) == 4 && N == 8, "one 16-byte load of half precision, two of float32");
  Vector<uint32_t, 4> quad[2];
};
template <class C>
struct Raw<C, 1> {
  C number;
};

template <class C, int N>
VAEKERN_DEVICE Raw<C, N> fetch(DType dtype, const char* p) {
  Raw<C, N> raw;
  if constexpr (N == 1) {
    raw.number = load_one<C>(dtype, p);
  } else {
    raw.quad[0] = load_vector<uint32_t, 4>(p);
    if (dtype == DType::f32) raw.quad[1] = load_vector<uint32_t, 4>(p + 16);
  }
  return raw;
}

template <class C, int N>
VAEKERN_DEVICE void widen(const Raw<C, N>& raw, DType dtype, C (&out)[N]) {
  if constexpr (N == 1) {
    out[0] = raw.number;
  } else {
    if (dtype == DType::f32) {
#pragma unroll
      for (int i = 0; i < N; ++i) out[i] = __uint_as_float(raw.quad[i / 4].v[i % 4]);
      return;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const uint32_t word = raw.quad[0].v[i / 2];
      const uint16_t bits = uint16_t(i % 2 ? word >> 16 : word);
      out[i] = dtype == DType::bf16 ? bfloat_to_float(bits) : half_to_float(bits);
    }
  }
}

template <class C, int N>
VAEKERN_DEVICE void store(DType dtype, char* p, const C (&in)[N]) {
  if constexpr (N == 1) {
    store_one<C>(dtype, p, in[0]);
  } else {
    if (dtype == DType::f32) {
      store_vector(p, Vector<float, 4>{in[0], in[1], in[2], in[3]});
      store_vector(p + 16, Vector<float, 4>{in[4], in[5], in[6], in[7]});
      return;
    }
    Vector<uint16_t, 8> half;
#pragma unroll
    for (int i = 0; i < N; ++i)
      half.v[i] = dtype == DType::bf16 ? float_to_bfloat(in[i]) : float_to_half(in[i]);
    store_vector(p, half);
  }
}

VAEKERN_DEVICE const char* row_of(const View& v, int64_t l, int64_t b) {
  return v.base + (l * v.stride_l + b * v.stride_b) * v.item;
}

// Where feature f lies in a row that is not dense: rare, so it is one function for all.
VAEKERN_NOINLINE int64_t scattered_offset(const Axes& axes, const View& v, int64_t f) {
  int64_t offset = 0;
  for (int k = axes.ndim - 1; k > 0; --k) {
    const int64_t outer = f / axes.size[k];
    offset += (f - outer * axes.size[k]) * v.stride[k];
    f = outer;
  }
  return (offset + f * v.stride[0]) * v.item;
}

// N: how many features are taken; more than one only where the rows are dense.
template <int N>
VAEKERN_DEVICE int64_t feature_offset(const Axes& axes, const View& v, int64_t f) {
  return N > 1 || v.dense ? f * v.item : scattered_offset(axes, v, f);
}

// One number or [B], in device memory; data == nullptr: absent.
struct Numbers {
  const char* data = nullptr;
  DType dtype = DType::f32;
  int64_t step = 0;  // bytes from one sample's to the next one's

  VAEKERN_DEVICE double operator[](int64_t b) const {
    return load_one<double>(dtype, data + b * step);
  }
};

inline Numbers numbers(const Tensor& t, bool per_sample) {
  Numbers n;
  n.data = static_cast<const char*>(t.data);
  n.dtype = t.dtype;
  if (per_sample && t.ndim > 0 && t.shape[0] != 1) n.step = t.stride[0] * int64_t(size_of(t.dtype));
  return n;
}

// [B, d, d]: stride[0] from row to row, stride[1] from column to column
inline View matrices(const Tensor& t) {
  View v;
  if (!t) return v;
  v.base = static_cast<char*>(t.data);
  v.dtype = t.dtype;
  v.item = int64_t(size_of(t.dtype));
  v.present = true;
  v.stride_b = t.stride[0];
  v.stride[0] = t.stride[1];
  v.stride[1] = t.stride[2];
  return v;
}

VAEKERN_DEVICE char* entry_of(const View& v, int64_t b, int64_t j, int64_t k) {
  return v.base + (b * v.stride_b + j * v.stride[0] + k * v.stride[1]) * v.item;
}

// May rows be taken 16 bytes at a time? peeled: each from its own first aligned feature on.
enum class Wide : int { none, peeled, aligned };

template <class C>
inline Wide wide_of(const View* const* views, int count, int64_t L) {
  bool aligned = true;
  for (int k = 0; k < count; ++k) {
    const View& v = *views[k];
    if (!v.present) continue;
    // float64 beside float32 arithmetic is for single numbers
    if (!v.dense || (v.dtype == DType::f64 && sizeof(C) == 4)) return Wide::none;
    if (L > 1 && v.stride_l * v.item % 16) return Wide::none;  // one head for all of them
    const auto address = reinterpret_cast<uintptr_t>(v.base);
    aligned = aligned && address % 16 == 0 && v.stride_b * v.item % 16 == 0;
  }
  return aligned ? Wide::aligned : Wide::peeled;
}

// Features [first, first + n) of one sample: `vectors` times WIDTH from first + head on, and the
// rest one by one.
struct Span {
  int64_t first, n, vectors;
  int head;
};

// The same in every lane of a warp, which all have to call.
template <class C, int COUNT>
VAEKERN_DEVICE Span span_of(Wide wide, const View* const (&views)[COUNT], int64_t b, int64_t first,
                            int64_t n) {
  constexpr int N = WIDTH<C>;
  Span s{first, n, 0, 0};
  if (N == 1 || wide == Wide::none) return s;
  if (wide == Wide::peeled) {
    const int mine = int(threadIdx.x) & 31;  // each lane tries one head
    bool fits = mine < N;
#pragma unroll
    for (int k = 0; k < COUNT; ++k)
      if (views[k]->present) {
        const auto address = reinterpret_cast<uintptr_t>(row_of(*views[k], 0, b));
        fits = fits && (address + uintptr_t((first + mine) * views[k]->item)) % 16 == 0;
      }
    const unsigned heads = __ballot_sync(ALL_LANES, fits);
    if (heads == 0) return s;
    s.head = __ffs(int(heads)) - 1;
  }
  s.vectors = n > s.head ? (n - s.head) / N : 0;
  if (s.vectors == 0) s.head = 0;
  return s;
}

// body(Number<N>, feature, slot) over a span by the threads rank, rank + size, ...; slots number
// the features from 0 on so that vectors lie on multiples of their width.
template <class C, class Body>
VAEKERN_DEVICE void sweep(const Span& s, int rank, int size, Body body) {
  constexpr int N = WIDTH<C>;
  if constexpr (N > 1) {
#pragma unroll 1
    for (int64_t i = rank; i < s.vectors; i += size)
      body(Number<N>(), s.first + s.head + i * N, i * N);
  }
  const int64_t covered = s.vectors * N, rest = s.n - covered;
#pragma unroll 1
  for (int64_t i = rank; i < rest; i += size)
    body(Number<1>(), s.first + (i < s.head ? i : covered + i), covered + i);
}

}  // namespace cuda
}  // namespace vaekern
