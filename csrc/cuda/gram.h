// One warp's share of a Gram matrix J^T J in float64, on the tensor cores' double precision.
// Products of float32 (and half precision) numbers are exact in float64, so the sums carry the
// rounding of float64 additions alone.
//
// The rows come in packets of 16. A fragment of the 8x8x4 product is one number per lane, and which
// columns make up a block of eight, and which rows a step of four, is free as long as A and B
// agree: so each lane takes columns (or rows) that lie next to each other in memory, one wide load
// feeds several steps, no shared memory is passed through, and A's fragments are B's.
#pragma once

#include "device.h"

namespace vaekern {
namespace cuda {

constexpr int PACKET = 16;

// How the numbers lie, from the widest loads that the alignment allows to none.
enum class Layout : int { rows, columns, scattered };

struct Source {
  const char* base;
  DType dtype;
  Layout layout;
  bool rows_adjacent;  // scattered: which of the two strides is the smaller
  int64_t B, m, stride_b, stride_m, stride_d;
  int d;
};

VAEKERN_DEVICE int64_t item(const Source& source) { return source.dtype == DType::f32 ? 4 : 2; }

VAEKERN_DEVICE float load_one(const Source& source, int64_t offset) {
  if (source.dtype == DType::f32) return reinterpret_cast<const float*>(source.base)[offset];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(source.base)[offset];
  return source.dtype == DType::bf16 ? bfloat_to_float(bits) : half_to_float(bits);
}

template <int N>
VAEKERN_DEVICE void widen(const Vector<uint16_t, N>& from, DType dtype, float (&to)[N]) {
#pragma unroll
  for (int k = 0; k < N; ++k)
    to[k] = dtype == DType::bf16 ? bfloat_to_float(from.v[k]) : half_to_float(from.v[k]);
}

// raw[i][s]: this lane's number of column block i in step s. Columns from `first`, rows from k0,
// zero from row `end` and column d on.
template <int NB>
VAEKERN_DEVICE void load_packet(const Source& source, int64_t matrix, int first, int64_t k0,
                                int64_t end, float (&raw)[NB][4]) {
  const int lane = threadIdx.x & 31, group = lane >> 2, member = lane & 3;
  const int column = first + group * NB;
  const bool whole = k0 + PACKET <= end;
  if (whole && source.layout == Layout::rows && source.dtype == DType::f32) {
    const float* p = reinterpret_cast<const float*>(source.base) + matrix;
    if constexpr (NB == 2) {
      // four columns of one row; the neighbouring group has them of another row: each keeps two
      const bool odd = group & 1;
      const int quad = first + (group >> 1) * 4;
#pragma unroll
      for (int s = 0; s < 4; s += 2) {
        const int64_t row = k0 + 4 * (s + odd) + member;
        Vector<float, 4> x{};
        if (quad < source.d) x = load_vector<float, 4>(p + row * source.stride_m + quad);
        const float other0 = __shfl_xor_sync(ALL_LANES, odd ? x.v[0] : x.v[2], 4);
        const float other1 = __shfl_xor_sync(ALL_LANES, odd ? x.v[1] : x.v[3], 4);
        raw[0][s] = odd ? other0 : x.v[0];
        raw[1][s] = odd ? other1 : x.v[1];
        raw[0][s + 1] = odd ? x.v[2] : other0;
        raw[1][s + 1] = odd ? x.v[3] : other1;
      }
    } else {
      constexpr int WIDTH = NB < 4 ? NB : 4;
#pragma unroll
      for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int i = 0; i < NB; i += WIDTH) {
          Vector<float, WIDTH> x{};
          if (column + i < source.d)
            x = load_vector<float, WIDTH>(p + (k0 + 4 * s + member) * source.stride_m + column + i);
#pragma unroll
          for (int k = 0; k < WIDTH; ++k) raw[i + k][s] = x.v[k];
        }
    }
  } else if (whole && source.layout == Layout::columns && source.dtype == DType::f32) {
    const float* p = reinterpret_cast<const float*>(source.base) + matrix + k0 + 4 * member;
#pragma unroll
    for (int i = 0; i < NB; ++i) {
      Vector<float, 4> x{};
      if (column + i < source.d) x = load_vector<float, 4>(p + (column + i) * source.stride_d);
#pragma unroll
      for (int s = 0; s < 4; ++s) raw[i][s] = x.v[s];
    }
  } else if (whole && source.layout == Layout::rows) {
    const uint16_t* p = reinterpret_cast<const uint16_t*>(source.base) + matrix;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      Vector<uint16_t, NB> x{};
      if (column < source.d)
        x = load_vector<uint16_t, NB>(p + (k0 + 4 * s + member) * source.stride_m + column);
      float wide[NB];
      widen(x, source.dtype, wide);
#pragma unroll
      for (int i = 0; i < NB; ++i) raw[i][s] = wide[i];
    }
  } else if (whole && source.layout == Layout::columns) {
    const uint16_t* p = reinterpret_cast<const uint16_t*>(source.base) + matrix + k0 + 4 * member;
#pragma unroll
    for (int i = 0; i < NB; ++i) {
      Vector<uint16_t, 4> x{};
      if (column + i < source.d) x = load_vector<uint16_t, 4>(p + (column + i) * source.stride_d);
      widen(x, source.dtype, raw[i]);
    }
  } else {
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const int64_t row = k0 + (source.rows_adjacent ? 4 * member + s : 4 * s + member);
      const int64_t offset = matrix + row * source.stride_m;
#pragma unroll
      for (int i = 0; i < NB; ++i)
        raw[i][s] = row < end && column + i < source.d
                        ? load_one(source, offset + (column + i) * source.stride_d)
                        : 0.0f;
    }
  }
}

// The upper blocks (i <= j) of the Gram matrix of columns 0 .. 8 NB - 1.
template <int NB>
struct Square {
  static constexpr int WIDTH = 8 * NB;
  double sum[NB * (NB + 1) / 2][2] = {};

  VAEKERN_DEVICE void add_rows(const Source& source, int64_t matrix, int64_t start, int64_t end) {
    const int64_t step = PACKET * (blockDim.x >> 5);
    int64_t k0 = start + PACKET * (threadIdx.x >> 5);
    float raw[NB][4], next[NB][4];
    if (k0 < end) load_packet<NB>(source, matrix, 0, k0, end, next);
    for (; k0 < end; k0 += step) {
#pragma unroll
      for (int i = 0; i < NB; ++i)
#pragma unroll
        for (int s = 0; s < 4; ++s) raw[i][s] = next[i][s];
      if (k0 + step < end) load_packet<NB>(source, matrix, 0, k0 + step, end, next);
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        double f[NB];
#pragma unroll
        for (int i = 0; i < NB; ++i) f[i] = raw[i][s];
        int n = 0;
#pragma unroll
        for (int i = 0; i < NB; ++i)
#pragma unroll
          for (int j = i; j < NB; ++j) multiply_add_8x8x4(sum[n++], f[i], f[j]);
      }
    }
  }

  // visit(a, b, value) for every entry this lane holds, lower triangle included
  template <class Visit>
  VAEKERN_DEVICE void entries(Visit visit) const {
    const int lane = threadIdx.x & 31, group = lane >> 2, member = lane & 3;
    int n = 0;
#pragma unroll
    for (int i = 0; i < NB; ++i)
#pragma unroll
      for (int j = i; j < NB; ++j, ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int a = group * NB + i, b = (2 * member + e) * NB + j;
          visit(a, b, sum[n][e]);
          if (i != j) visit(b, a, sum[n][e]);
        }
  }
};

// The 32 x 32 tile of the Gram matrix of columns from `left` and columns from `right`.
struct Tile {
  static constexpr int NB = 4, WIDTH = 8 * NB;
  double sum[NB][NB][2] = {};

  VAEKERN_DEVICE void add_rows(const Source& source, int64_t matrix, int left, int right,
                               int64_t start, int64_t end) {
    const int warps = blockDim.x >> 5;
    float raw_left[NB][4], raw_right[NB][4];
    for (int64_t k0 = start + PACKET * (threadIdx.x >> 5); k0 < end; k0 += PACKET * warps) {
      load_packet<NB>(source, matrix, left, k0, end, raw_left);
      load_packet<NB>(source, matrix, right, k0, end, raw_right);
#pragma unroll
      for (int s = 0; s < 4; ++s) {
#pragma unroll
        for (int i = 0; i < NB; ++i)
#pragma unroll
          for (int j = 0; j < NB; ++j)
            multiply_add_8x8x4(sum[i][j], raw_left[i][s], raw_right[j][s]);
      }
    }
  }

  template <class Visit>
  VAEKERN_DEVICE void entries(Visit visit) const {
    const int lane = threadIdx.x & 31, group = lane >> 2, member = lane & 3;
#pragma unroll
    for (int i = 0; i < NB; ++i)
#pragma unroll
      for (int j = 0; j < NB; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) visit(group * NB + i, (2 * member + e) * NB + j, sum[i][j][e]);
  }
};

// The block's warps add their shares to `tile` one after the other: the order, and so every bit, is
// fixed. Entries from `size` on are padding and stay out.
template <class Share>
VAEKERN_DEVICE void combine(const Share& share, double* tile, int stride, int size) {
  const int warps = blockDim.x >> 5, warp = threadIdx.x >> 5;
  for (int turn = 0; turn < warps; ++turn) {
    if (turn == warp)
      share.entries([&](int a, int b, double value) {
        if (a < size && b < size) {
          double& entry = tile[a * stride + b];
          entry = turn == 0 ? value : entry + value;
        }
      });
    __syncthreads();
  }
}

}  // namespace cuda
}  // namespace vaekern
