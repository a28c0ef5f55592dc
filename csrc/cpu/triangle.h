// G = A^T A as L L^T with columns of L from long to short: from G itself (Cholesky) or, without
// squaring A, from A by Householder reflections (QR). Errors stay in proportion to each column's
// own length, so that short columns keep their accuracy.
#pragma once

#include <cmath>

#include "gram.h"

namespace vaekern {
namespace VAEKERN_ISA {

constexpr double EPSILON = 2.220446049250313e-16;
// Sums of squares below it have lost digits to underflow: taken for 0. Data of float64 are scaled
// so that only columns 200 orders of magnitude below the largest come here.
constexpr double VANISHING = 1e-275;

// The largest of n values in whole vectors, and the index of the first that is
inline int largest(const double* values, int n, double& most) {
  constexpr int W = LANES<double>;
  Vec<double> top = load(values);
  for (int i = W; i < n; i += W) {
    const Vec<double> v = load(values + i);
    top = select<double>(v > top, v, top);
  }
  most = top[0];
  for (int k = 1; k < W; ++k) most = top[k] > most ? top[k] : most;
  int at = 0;
  while (at < n - 1 && values[at] != most) ++at;
  return at;
}

// Cholesky with complete pivoting. S [d, ld] holds the upper triangle of G and is overwritten.
// column(k, l): the k-th column l [ld], rows in G's order. A row of which only rounding is left
// drops out, as a finished one does: its entries in later columns are 0. Returns the rank.
template <class Column>
inline int cholesky(double* S, int d, int ld, double* scratch, Column column) {
  constexpr int W = LANES<double>;
  double *l = scratch, *left = scratch + ld, *drop = scratch + 2 * ld;
  for (int i = 0; i < d; ++i)
    for (int j = 0; j < i; ++j) S[int64_t(i) * ld + j] = S[int64_t(j) * ld + i];
  for (int i = 0; i < ld; ++i) {
    left[i] = i < d ? S[int64_t(i) * ld + i] : 0;
    drop[i] = EPSILON * left[i];
  }
  for (int k = 0;; ++k) {
    double pivot;
    const int p = largest(left, ld, pivot);
    if (!(pivot > 0)) return k;
    const double* row = S + int64_t(p) * ld;
    const double inverse = 1 / std::sqrt(pivot);
    for (int j = 0; j < ld; j += W) {
      const Vec<double> rest = load(left + j);
      const Vec<double> v = select<double>(rest > 0.0, load(row + j) * inverse, Vec<double>{});
      store(l + j, v);
      store(left + j, rest - v * v);
    }
    l[p] = std::sqrt(pivot);
    left[p] = 0;
    column(k, l);
    for (int j = 0; j < ld; j += W) {
      const Vec<double> rest = load(left + j);
      store(left + j, select<double>(rest > load(drop + j), rest, Vec<double>{}));
    }
    for (int i = 0; i < d; ++i) {
      double* other = S + int64_t(i) * ld;
      const Vec<double> factor = splat(l[i]);
      for (int j = 0; j < ld; j += W) store(other + j, load(other + j) - factor * load(l + j));
    }
  }
}

// R [d, ld], upper triangular, becomes that of the QR factorisation of R above the panel, which is
// overwritten.
inline void add_rows(double* R, int d, int ld, double* panel, int rows, double* scratch) {
  constexpr int W = LANES<double>;
  for (int k = 0; k < d; ++k) {
    double part[8] = {};  // summed apart: H is as orthogonal as this sum is exact
    for (int i = 0; i < rows; ++i) {
      const double v = panel[int64_t(i) * ld + k];
      part[i % 8] += v * v;
    }
    const double below =
        ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    if (below < VANISHING) {
      for (int i = 0; i < rows; ++i) panel[int64_t(i) * ld + k] = 0;
      continue;
    }
    double* top = R + int64_t(k) * ld;
    const double alpha = top[k];
    const double beta = alpha > 0 ? -std::sqrt(alpha * alpha + below)  // away from cancellation
                                  : std::sqrt(alpha * alpha + below);
    const double tau = (beta - alpha) / beta, scale = 1 / (alpha - beta);
    const int first = k / W * W;
    for (int j = first; j < ld; j += W) store(scratch + j, load(top + j));
    for (int i = 0; i < rows; ++i) {
      double* row = panel + int64_t(i) * ld;
      const double v = row[k] *= scale;
      for (int j = first; j < ld; j += W) store(scratch + j, load(scratch + j) + v * load(row + j));
    }
    for (int j = 0; j <= k; ++j) scratch[j] = 0;  // finished columns stay as they are
    for (int j = first; j < ld; j += W) store(top + j, load(top + j) - tau * load(scratch + j));
    for (int i = 0; i < rows; ++i) {
      double* row = panel + int64_t(i) * ld;
      const double v = tau * row[k];
      for (int j = first; j < ld; j += W) store(row + j, load(row + j) - v * load(scratch + j));
    }
    top[k] = beta;
  }
}

// L = R'^T of R P = Q R', by modified Gram-Schmidt, the longest remaining column first. R [d, ld]
// is overwritten; column and result as for cholesky.
template <class Column>
inline int pivoted_orthogonalisation(double* R, int d, int ld, double* scratch, Column column) {
  constexpr int W = LANES<double>;
  double *l = scratch, *left = scratch + ld, *drop = scratch + 2 * ld;
  for (int k = 0; k <= d; ++k) {
    for (int j = 0; j < ld; ++j) left[j] = 0;
    for (int i = 0; i < d; ++i) {
      const double* row = R + int64_t(i) * ld;
      for (int j = 0; j < ld; j += W)
        store(left + j, load(left + j) + load(row + j) * load(row + j));
    }
    if (k == 0)
      for (int j = 0; j < d; ++j)
        drop[j] = std::max(left[j] * (d * EPSILON) * (d * EPSILON), VANISHING);
    for (int j = 0; j < d; ++j)
      if (!(left[j] > drop[j])) left[j] = 0;
    double most;
    const int p = largest(left, ld, most);
    if (!(most > 0)) return k;
    const double length = std::sqrt(most);
    for (int j = 0; j < ld; ++j) l[j] = 0;
    for (int i = 0; i < d; ++i) {
      const double* row = R + int64_t(i) * ld;
      const double q = row[p] / length;
      for (int j = 0; j < ld; j += W) store(l + j, load(l + j) + q * load(row + j));
    }
    for (int i = 0; i < d; ++i) {
      double* row = R + int64_t(i) * ld;
      const double q = row[p] / length;
      for (int j = 0; j < ld; j += W) store(row + j, load(row + j) - q * load(l + j));
      row[p] = 0;
    }
    column(k, l);
  }
  return d;
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
