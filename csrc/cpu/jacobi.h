// One-sided Jacobi: rotations of pairs of columns until every pair is orthogonal. The pairs of a
// round are disjoint and lie in the lanes of vectors: a row holds the columns' entries in two
// halves, pair k is (top[k], bottom[k]), and after each round the columns move one place around the
// circle that both halves form, top[0] standing still. A sweep of as many rounds as there are other
// columns meets every pair once and ends where it began.
#pragma once

#include <cmath>

#include "gram.h"

namespace vaekern {
namespace VAEKERN_ISA {

constexpr int MAX_SWEEPS = 60;

VAEKERN_INLINE Vec<double> square_root(Vec<double> v) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_sqrt_pd((__m512d)v);
#elif defined(__AVX2__)
  return (Vec<double>)_mm256_sqrt_pd((__m256d)v);
#elif defined(__SSE2__)
  return (Vec<double>)_mm_sqrt_pd((__m128d)v);
#else
  for (int k = 0; k < LANES<double>; ++k) v[k] = std::sqrt(v[k]);
  return v;
#endif
}

VAEKERN_INLINE bool any(Bits<double> mask) {
  int64_t lane[LANES<double>], all = 0;
  std::memcpy(lane, &mask, sizeof lane);
  for (int k = 0; k < LANES<double>; ++k) all |= lane[k];
  return all != 0;
}

// The columns of a square matrix on their circle.
class Circle {
 public:
  explicit Circle(int columns)
      : columns_(columns), half_((columns + 1) / 2), bottom_(padded(half_)), stride_(2 * bottom_) {
    const int end = (half_ - 1) % W;  // lane of the last pair, in the last vector
    for (int k = 0; k < W; ++k) {
      first_top_[k] = k == 0 ? 0 : k == 1 ? W : k - 1;  // of (top, bottom): t0 b0 t1 t2 ...
      keep_[k] = k <= end ? -1 : 0;
      last_bottom_[k] = k < end ? k + 1 : W + k;  // of (bottom, top): ... b[h-1] t[h-1], and zeros
    }
    if (half_ == 1) {  // one pair: nothing moves
      first_top_[1] = 1;
      last_bottom_[0] = 0;
    }
  }

  int64_t size() const { return int64_t(columns_) * stride_; }
  int64_t gram_size() const { return int64_t(stride_ + 1) * stride_; }
  void clear(double* rows) const { std::memset(rows, 0, sizeof(double) * size_t(size())); }
  int64_t row(int index) const { return int64_t(index) * stride_; }
  int place(int column) const { return column < half_ ? column : bottom_ + column - half_; }

  // One sweep over each of N matrices: every pair once; pairs of a squared cosine up to
  // tolerance[n] are left alone. far[n]: one was above `plausible` when its turn came. The matrices
  // know nothing of each other: while one waits for its divisions and roots another one computes.
  template <int N>
  void sweep(double* const (&rows)[N], const double (&tolerance)[N], double plausible,
             bool (&far)[N]) const {
    switch (bottom_ / W) {  // as many vectors as registers hold are unrolled
      case 1: return run<N, 1>(rows, tolerance, plausible, far);
      case 2: return run<N, 2>(rows, tolerance, plausible, far);
      case 3: return run<N, 3>(rows, tolerance, plausible, far);
      case 4: return run<N, 4>(rows, tolerance, plausible, far);
      default: return run<N, 0>(rows, tolerance, plausible, far);
    }
  }

  // The largest squared cosine between two columns; G is scratch of gram_size().
  double largest_cosine(const double* rows, double* G) const {
    const int n = stride_;
    double* inverse = G + int64_t(n) * n;
    std::memset(G, 0, sizeof(double) * size_t(n) * size_t(n));
    add_gram(rows, stride_, columns_, n, G, n);
    for (int i = 0; i < n; ++i) {
      double& square = G[int64_t(i) * n + i];
      inverse[i] = square > 0 ? 1 / square : 0;
      square = 0;
    }
    double worst = 0;
    for (int i = 0; i < n; ++i) {
      Vec<double> most = {};
      for (int j = i / W * W; j < n; j += W) {
        const Vec<double> g = load(G + int64_t(i) * n + j);
        const Vec<double> cosine = g * (g * load(inverse + j));
        most = select<double>(cosine > most, cosine, most);
      }
      double lane[W];
      std::memcpy(lane, &most, sizeof lane);
      for (int k = 0; k < W; ++k) worst = std::max(worst, lane[k] * inverse[i]);
    }
    return worst;
  }

 private:
  static constexpr int W = LANES<double>;

  static constexpr int MOST = MAX_COLUMNS / 2 / W;  // vectors in half a row

  template <int NV>
  struct Half {
    Vec<double> top[NV ? NV : MOST], bottom[NV ? NV : MOST];
  };

  // What the rounds of a sweep hand on: squared lengths of the columns where they now are, and the
  // inner products and rotations of the pairs.
  template <int NV>
  struct Pairs {
    Half<NV> length;
    Vec<double> product[NV ? NV : MOST], cosine[NV ? NV : MOST], sine[NV ? NV : MOST];
  };

  template <int N, int NV>
  void run(double* const (&rows)[N], const double (&tolerance)[N], double plausible,
           bool (&far)[N]) const {
    Pairs<NV> pairs[N];
    Bits<double> seen[N] = {};
    for (int n = 0; n < N; ++n) measure(rows[n], pairs[n]);
    for (int round = 0; round < 2 * half_ - 1; ++round) {
      for (int n = 0; n < N; ++n) seen[n] |= turn(pairs[n], tolerance[n], plausible);
      for (int n = 0; n < N; ++n) rotate(rows[n], pairs[n]);
    }
    for (int n = 0; n < N; ++n) far[n] = any(seen[n]);
  }

  template <int NV>
  void measure(const double* rows, Pairs<NV>& pairs) const {
    const int vectors = NV ? NV : bottom_ / W;
    for (int k = 0; k < vectors; ++k) {
      Vec<double> alpha = {}, beta = {}, gamma = {};
      const double* row = rows + k * W;
      for (int i = 0; i < columns_; ++i, row += stride_) {
        const Vec<double> a = load(row), b = load(row + bottom_);
        alpha += a * a;
        beta += b * b;
        gamma += a * b;
      }
      pairs.length.top[k] = alpha;
      pairs.length.bottom[k] = beta;
      pairs.product[k] = gamma;
    }
  }

  // The rotations of this round, and the lengths after it. Lengths are carried through a sweep:
  // cancellation may spoil one, which costs a better angle and is mended by the next sweep.
  template <int NV>
  Bits<double> turn(Pairs<NV>& pairs, double tolerance, double plausible) const {
    const int vectors = NV ? NV : bottom_ / W;
    Bits<double> far = {};
    for (int k = 0; k < vectors; ++k) {
      const Vec<double> t = tangent(pairs.length.top[k], pairs.length.bottom[k], pairs.product[k],
                                    tolerance, plausible, far);
      pairs.cosine[k] = 1.0 / square_root(1.0 + t * t);
      pairs.sine[k] = t * pairs.cosine[k];
      pairs.length.top[k] -= t * pairs.product[k];
      pairs.length.bottom[k] += t * pairs.product[k];
    }
    move(pairs.length);
    return far;
  }

  // Of the rotation by at most 45 degrees that makes columns of squared lengths alpha and beta and
  // inner product gamma orthogonal
  static VAEKERN_INLINE Vec<double> tangent(Vec<double> alpha, Vec<double> beta, Vec<double> gamma,
                                            double tolerance, double plausible, Bits<double>& far) {
    const Vec<double> product = alpha * beta, square = gamma * gamma, difference = beta - alpha;
    const Vec<double> root = square_root(difference * difference + 4.0 * square);
    const Vec<double> t = 2.0 * gamma / (magnitude<double>(difference) + root);
    far |= square > plausible * product;
    return select<double>(square > tolerance * product, select<double>(difference < 0.0, -t, t),
                          Vec<double>{});
  }

  // Every column one place on around the circle
  template <int NV>
  VAEKERN_INLINE void move(Half<NV>& h) const {
    const int last = (NV ? NV : bottom_ / W) - 1;
    Bits<double> ahead, behind;  // lanes of two neighbouring vectors
    for (int k = 0; k < W; ++k) {
      ahead[k] = W - 1 + k;
      behind[k] = 1 + k;
    }
    const Vec<double> first = __builtin_shuffle(h.top[0], h.bottom[0], first_top_);
    const Vec<double> end = __builtin_shuffle(h.bottom[last], h.top[last], last_bottom_);
    for (int k = last; k > 0; --k) h.top[k] = __builtin_shuffle(h.top[k - 1], h.top[k], ahead);
    for (int k = 0; k < last; ++k)
      h.bottom[k] = __builtin_shuffle(h.bottom[k], h.bottom[k + 1], behind);
    h.top[0] = first;
    h.top[last] = from_bits<double>(as_bits<double>(h.top[last]) & keep_);
    h.bottom[last] = end;
  }

  // Rotates every pair, moves the columns on and takes the new pairs' inner products.
  template <int NV>
  void rotate(double* rows, Pairs<NV>& pairs) const {
    const int vectors = NV ? NV : bottom_ / W;
    Vec<double> product[NV ? NV : MOST];
    for (int k = 0; k < vectors; ++k) product[k] = Vec<double>{};
    for (int i = 0; i < columns_; ++i, rows += stride_) {
      Half<NV> h;
      for (int k = 0; k < vectors; ++k) {
        const Vec<double> a = load(rows + k * W), b = load(rows + bottom_ + k * W);
        h.top[k] = pairs.cosine[k] * a - pairs.sine[k] * b;
        h.bottom[k] = pairs.sine[k] * a + pairs.cosine[k] * b;
      }
      move(h);
      for (int k = 0; k < vectors; ++k) {
        store(rows + k * W, h.top[k]);
        store(rows + bottom_ + k * W, h.bottom[k]);
        product[k] += h.top[k] * h.bottom[k];
      }
    }
    for (int k = 0; k < vectors; ++k) pairs.product[k] = product[k];
  }

  int columns_, half_, bottom_, stride_;
  Bits<double> first_top_, last_bottom_, keep_;
};

}  // namespace VAEKERN_ISA
}  // namespace vaekern
