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

// S -= l l^T on whole rows, where l is 0 for finished rows
inline void subtract_outer(double* S, int d, int ld, const double* l) {
  constexpr int W = LANES<double>;
  for (int i = 0; i < d; ++i) {
    if (l[i] == 0) continue;
    const Vec<double> factor = splat(l[i]);
    double* row = S + int64_t(i) * ld;
    for (int j = 0; j < ld; j += W) store(row + j, load(row + j) - factor * load(l + j));
  }
}

// The index of the largest value; the first of equals
inline int largest(const double* values, int n) {
  int best = 0;
  for (int i = 1; i < n; ++i)
    if (values[i] > values[best]) best = i;
  return best;
}

// Cholesky with complete pivoting. S [d, ld] holds the upper triangle of G and is overwritten.
// column(k, l): the k-th column l [ld], rows in G's order. A row of which only rounding is left
// drops out. Returns the rank.
template <class Column>
inline int cholesky(double* S, int d, int ld, double* scratch, Column column) {
  double *l = scratch, *left = scratch + ld, *drop = scratch + 2 * ld;
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < i; ++j) S[int64_t(i) * ld + j] = S[int64_t(j) * ld + i];
    for (int j = d; j < ld; ++j) S[int64_t(i) * ld + j] = 0;
    left[i] = S[int64_t(i) * ld + i];
    drop[i] = EPSILON * left[i];
  }
  for (int k = 0;; ++k) {
    const int p = largest(left, d);
    if (!(left[p] > 0)) return k;
    double* row = S + int64_t(p) * ld;
    const double pivot = std::sqrt(left[p]);
    for (int j = 0; j < ld; ++j) l[j] = row[j] / pivot;
    l[p] = pivot;
    column(k, l);
    subtract_outer(S, d, ld, l);
    left[p] = 0;
    for (int j = 0; j < d; ++j) row[j] = S[int64_t(j) * ld + p] = 0;
    for (int j = 0; j < d; ++j) {
      const double rest = S[int64_t(j) * ld + j];
      if (left[j] > 0) left[j] = rest > drop[j] ? rest : 0;
      if (left[j] == 0 && rest != 0)  // dropped: it takes no further part
        for (int i = 0; i < d; ++i) S[int64_t(j) * ld + i] = S[int64_t(i) * ld + j] = 0;
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
    const int p = largest(left, d);
    if (!(left[p] > 0)) return k;
    const double length = std::sqrt(left[p]);
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
