// Sums of outer products of rows, G += A^T A, in double: products of two floats are exact there, so
// all the error of G is that of the additions.
#pragma once

#include "convert.h"

namespace vaekern {
namespace VAEKERN_ISA {

// A matrix [rows, columns] of any layout
struct MatrixView {
  const char* data;
  DType dtype;
  int64_t rows, columns, row_stride, column_stride;

  MatrixView(const Tensor& t, int64_t index)
      : data(static_cast<const char*>(t.data) + index * t.stride[0] * int64_t(size_of(t.dtype))),
        dtype(t.dtype),
        rows(t.shape[1]),
        columns(t.shape[2]),
        row_stride(t.stride[1]),
        column_stride(t.stride[2]) {}

  const char* at(int64_t row, int64_t column) const {
    return data + (row * row_stride + column * column_stride) * int64_t(size_of(dtype));
  }
};

constexpr int PANEL_COLUMNS = LANES<double>;  // panels are padded to whole vectors

inline int padded(int columns) {
  return (columns + PANEL_COLUMNS - 1) / PANEL_COLUMNS * PANEL_COLUMNS;
}

// A square of LANES x LANES doubles, rows to columns
VAEKERN_INLINE void transpose(Vec<double> (&v)[LANES<double>]) {
  constexpr int W = LANES<double>;
  double a[W][W], b[W][W];
  std::memcpy(a, v, sizeof a);
#pragma GCC unroll 8
  for (int i = 0; i < W; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < W; ++j) b[i][j] = a[j][i];
  std::memcpy(v, b, sizeof b);
}

// `count` rows from `first` as doubles, row after row, `stride` apart; padding columns become 0.
inline void pack(const MatrixView& A, int64_t first, int count, double* panel, int stride) {
  const int d = int(A.columns);
  if (A.row_stride == 1 && A.column_stride != 1 && count > 1) {
    constexpr int W = LANES<double>, RUN = 64;
    double run[W][RUN];
    for (int j = 0; j < d; j += W) {
      const int columns = std::min(W, d - j);
      for (int k0 = 0; k0 < count; k0 += RUN) {
        const int n = std::min(RUN, count - k0);
        for (int c = 0; c < columns; ++c)
          load_run<double>(A.at(first + k0, j + c), A.dtype, 1, n, run[c]);
        for (int c = columns; c < W; ++c) std::memset(run[c], 0, sizeof run[c]);
        int k = 0;
        for (; k + W <= n; k += W) {
          Vec<double> v[W];
          for (int c = 0; c < W; ++c) v[c] = load(run[c] + k);
          transpose(v);
          for (int c = 0; c < W; ++c) store(panel + int64_t(k0 + k + c) * stride + j, v[c]);
        }
        for (; k < n; ++k)
          for (int c = 0; c < W; ++c) panel[int64_t(k0 + k) * stride + j + c] = run[c][k];
      }
    }
    return;
  }
  if (A.column_stride == 1 && A.row_stride == d && stride == d) {  // one run
    load_run<double>(A.at(first, 0), A.dtype, 1, int64_t(count) * d, panel);
    return;
  }
  for (int k = 0; k < count; ++k) {
    double* row = panel + int64_t(k) * stride;
    load_run<double>(A.at(first + k, 0), A.dtype, A.column_stride, d, row);
    for (int j = d; j < padded(d); ++j) row[j] = 0;
  }
}

// Memory that is wanted soon, fetched line by line while there is something to compute.
struct Ahead {
  const char *at = nullptr, *end = nullptr;

  Ahead() = default;
  // Rows [first, last) of A, where they lie in one piece
  Ahead(const MatrixView& A, int64_t first, int64_t last) {
    if (A.column_stride != 1 || A.row_stride != A.columns || first >= last) return;
    at = A.at(first, 0);
    end = A.at(last, 0);
  }

  VAEKERN_INLINE void fetch() {
    if (at >= end) return;
    __builtin_prefetch(at, 0, 2);
    at += 64;
  }
};

// G[i0 + r][j0 + ...] += sum over the panel's rows, for R rows and N vectors of G
template <int R, int N>
inline void gram_tile(const double* panel, int64_t stride, int rows, int i0, int j0, double* G,
                      int ld, Ahead& ahead) {
  constexpr int W = LANES<double>;
  Vec<double> sum[R][N] = {};
  const double *left = panel + i0, *right = panel + j0;
  for (int k = 0; k < rows; ++k, left += stride, right += stride) {
    Vec<double> row[N];
    ahead.fetch();
    for (int n = 0; n < N; ++n) row[n] = load(right + n * W);
    for (int r = 0; r < R; ++r) {
      const Vec<double> factor = splat(left[r]);
      for (int n = 0; n < N; ++n) sum[r][n] += factor * row[n];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) {
      double* g = G + int64_t(i0 + r) * ld + j0 + n * W;
      store(g, load(g) + sum[r][n]);
    }
}

// The upper triangle of G [columns, ld] += that of panel^T panel; `columns` is a multiple of LANES.
inline void add_gram(const double* panel, int64_t stride, int rows, int columns, double* G, int ld,
                     Ahead ahead = {}) {
  constexpr int W = LANES<double>;
  constexpr int R = W < 4 ? 4 / W * W : W;              // rows of a tile: a multiple of W
  constexpr int N = sizeof(Vec<double>) == 64 ? 3 : 2;  // as many sums as there are registers
  for (int i = 0; i < columns; i += R) {
    int j = i / W * W;
    const bool whole = i + R <= columns;
    for (; whole && j + N * W <= columns; j += N * W)
      gram_tile<R, N>(panel, stride, rows, i, j, G, ld, ahead);
    for (; whole && j + W <= columns; j += W)
      gram_tile<R, 1>(panel, stride, rows, i, j, G, ld, ahead);
    for (int r = i; !whole && r < columns; ++r)
      for (int jj = i / W * W; jj < columns; jj += W)
        gram_tile<1, 1>(panel, stride, rows, r, jj, G, ld, ahead);
  }
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
