// What the kernels of a loss are told, and the residual that all of them start from. The group over
// which an objective takes its statistic (terms.h) decides the order of the work: elements.h (none,
// or a known one), rows.h (a sample), columns.h (a feature). Every gradient is
// d NLL / d x_hat = w_b a r act'(x_hat) / L.
#pragma once

#include <cmath>
#include <limits>

#include "../terms.h"
#include "layout.h"
#include "reduce.h"

namespace vaekern {
namespace cuda {

template <class C>
constexpr C SMALLEST_NORMAL = std::numeric_limits<C>::min();

// Where the factor a comes from.
enum class Factor : int {
  none,      // it is not known yet: the squares are summed
  row,       // one per sample, or for all: x_logvar, iso-i's or iso-d's statistic
  logvar,    // exp(-x_logvar) per feature or per element
  variance,  // 1 / (v + eps) per feature: diag-i's statistic
  own        // 1 / (q + eps): diag-d
};

struct Loss {
  // the reconstruction term
  Axes axes;
  View x_hat, x, logvar, variance, shared, grad_x_hat, grad_x, grad_logvar;
  int64_t B = 0, L = 1;
  int64_t blocks = 0;             // of the grid; the KL's come after them
  int64_t chunk = 0, chunks = 0;  // of a row (elements.h) or of a column (columns.h) per task
  int64_t tiles = 0;              // columns.h: of features; 0: they are combined
  int64_t totals = 0;             // partial sums over the whole batch; 0: they are a sample's
  int group = WARP;               // threads that share a task: a warp, or the block
  Wide wide = Wide::none;
  Objective objective = Objective::none;
  Activation activation = Activation::identity;
  Factor factor = Factor::none;
  Spread spread = Spread::scalar;
  bool gradient = false;  // of x_hat or x
  bool terms = false;     // the value is wanted, not only gradients
  bool hold = false;      // what the gradients need stays in shared memory meanwhile
  bool uneven = false;    // each sample has a weight of its own
  double eps = 0, x_logvar_min = 0;
  const void* known = nullptr;    // the statistics of an earlier launch, C
  double* column_sums = nullptr;  // [chunks, 2, F]: of q and w_b q, where columns are in chunks
  void* shared_out = nullptr;     // C [F], for another launch's `shared`

  // the KL
  Axes latent;
  View mu, logvar_z, prior_mu, prior_logvar, dim_weights;
  View grad_mu, grad_logvar_z, grad_prior_mu, grad_prior_logvar;
  View tril, grad_tril;  // [B, d, d]: stride[0], stride[1] of rows and columns
  int64_t kl_samples = 0;
  int kl_group = WARP;
  double logvar_min = 0, logvar_max = 0;
  Numbers beta;
  double beta_number = 1;

  // the reduction
  Numbers upstream;
  double scale = 1;
  Reduction reduction = Reduction::batchmean;
  bool finish = false;
  void *value = nullptr, *statistics = nullptr;  // C; either may be absent
  Numbers x_logvar;                              // one number, or one per sample
  Numbers grad_x_logvar;
  void *last = nullptr, *running = nullptr;
  bool track_double = false;
  double momentum = 0;
  double* partials = nullptr;  // per task or tile: sum of q, and of the objective's terms
  double* kl_rows = nullptr;   // [B]
  unsigned* ticket = nullptr;
};

// d objective / d NLL_b
VAEKERN_DEVICE double weight_of(const Loss& a, int64_t b) {
  return a.upstream.data ? a.scale * a.upstream[b] : a.scale;
}

VAEKERN_DEVICE double beta_of(const Loss& a) { return a.beta.data ? a.beta[0] : a.beta_number; }

// The sum of the weights, by all threads of the block.
VAEKERN_DEVICE double sum_of_weights(const Loss& a, double* scratch) {
  if (!a.uneven) return weight_of(a, 0) * double(a.B);
  double sum = 0;
  for (int64_t b = threadIdx.x; b < a.B; b += blockDim.x) sum += weight_of(a, b);
  return group_sum(sum, int(blockDim.x), scratch);
}

// y = act(a) and its derivative
template <class C, int N>
VAEKERN_DEVICE void activate(Activation activation, C (&y)[N], C (&slope)[N]) {
  if (activation == Activation::identity) {
#pragma unroll
    for (int i = 0; i < N; ++i) slope[i] = C(1);
  } else if (activation == Activation::sigmoid) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const C e = std::exp(-std::abs(y[i])), inverse = C(1) / (C(1) + e);
      slope[i] = e * inverse * inverse;
      y[i] = y[i] < C(0) ? e * inverse : inverse;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const C t = C(-2) * std::abs(y[i]), m = std::expm1(t);  // e^t - 1 for y, e^t for y'
      const C inverse = C(1) / (C(2) + m);
      slope[i] = C(4) * std::exp(t) * inverse * inverse;
      y[i] = y[i] < C(0) ? m * inverse : -m * inverse;
    }
  }
}

template <class C, int N>
VAEKERN_DEVICE void residual(const Loss& a, const Raw<C, N>& x_hat, const C (&x)[N], C (&r)[N],
                             C (&slope)[N]) {
  widen(x_hat, a.x_hat.dtype, r);
  activate(a.activation, r, slope);
#pragma unroll
  for (int i = 0; i < N; ++i) r[i] -= x[i];
}

template <class C, int N>
VAEKERN_DEVICE double sum_of(const C (&x)[N]) {
  if constexpr (N == 1) {
    return double(x[0]);
  } else {
    return double(((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])));
  }
}

// Where the tensors' rows of one sample begin; of the gradients only when they are written.
struct Row {
  int64_t b;
  const char *x_hat, *x;

  VAEKERN_DEVICE Row(const Loss& a, int64_t b)
      : b(b), x_hat(row_of(a.x_hat, 0, b)), x(row_of(a.x, 0, b)) {}
  VAEKERN_DEVICE char* grad_x_hat(const Loss& a, int64_t l) const {
    return const_cast<char*>(row_of(a.grad_x_hat, l, b));
  }
  VAEKERN_DEVICE char* grad_x(const Loss& a) const {
    return const_cast<char*>(row_of(a.grad_x, 0, b));
  }
};

// ... and where a feature lies in them, in bytes: of several features made when it is asked for,
// which takes less than registers that hold it meanwhile.
template <int N>
struct Place {
  int64_t f;

  VAEKERN_DEVICE Place(const Loss&, int64_t f) : f(f) {}
  VAEKERN_DEVICE int64_t x_hat(const Loss& a) const { return f * a.x_hat.item; }
  VAEKERN_DEVICE int64_t x(const Loss& a) const { return f * a.x.item; }
  VAEKERN_DEVICE int64_t grad_x_hat(const Loss& a) const { return f * a.grad_x_hat.item; }
  VAEKERN_DEVICE int64_t grad_x(const Loss& a) const { return f * a.grad_x.item; }
};

template <>
struct Place<1> {
  int64_t of_x_hat, of_x, of_grad_x_hat, of_grad_x;

  VAEKERN_DEVICE Place(const Loss& a, int64_t f)
      : of_x_hat(feature_offset<1>(a.axes, a.x_hat, f)),
        of_x(feature_offset<1>(a.axes, a.x, f)),
        of_grad_x_hat(a.grad_x_hat.present ? feature_offset<1>(a.axes, a.grad_x_hat, f) : 0),
        of_grad_x(a.grad_x.present ? feature_offset<1>(a.axes, a.grad_x, f) : 0) {}
  VAEKERN_DEVICE int64_t x_hat(const Loss&) const { return of_x_hat; }
  VAEKERN_DEVICE int64_t x(const Loss&) const { return of_x; }
  VAEKERN_DEVICE int64_t grad_x_hat(const Loss&) const { return of_grad_x_hat; }
  VAEKERN_DEVICE int64_t grad_x(const Loss&) const { return of_grad_x; }
};

// The gradients of N features with their factors, w_b / L included. d is r act' of the only
// posterior sample; it is made again where there are more, or where x wants a gradient without
// act'.
template <class C, int N>
VAEKERN_DEVICE void write_gradients(const Loss& a, const Row& row, const Place<N>& at, C (&d)[N],
                                    const C (&factor)[N]) {
  const bool again = a.L > 1 || a.grad_x.present;
  if (!again) {
#pragma unroll
    for (int i = 0; i < N; ++i) d[i] *= factor[i];
    return store<C, N>(a.grad_x_hat.dtype, row.grad_x_hat(a, 0) + at.grad_x_hat(a), d);
  }
  C gx[N] = {};
#pragma unroll 1
  for (int64_t l = 0; l < a.L; ++l) {
    C x[N], r[N], slope[N];
    const Raw<C, N> raw =
        fetch<C, N>(a.x_hat.dtype, row.x_hat + l * a.x_hat.stride_l * a.x_hat.item + at.x_hat(a));
    widen(fetch<C, N>(a.x.dtype, row.x + at.x(a)), a.x.dtype, x);
    residual(a, raw, x, r, slope);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      r[i] *= factor[i];
      gx[i] -= r[i];
      r[i] *= slope[i];
    }
    if (a.grad_x_hat.present)
      store<C, N>(a.grad_x_hat.dtype, row.grad_x_hat(a, l) + at.grad_x_hat(a), r);
  }
  if (a.grad_x.present) store<C, N>(a.grad_x.dtype, row.grad_x(a) + at.grad_x(a), gx);
}

}  // namespace cuda
}  // namespace vaekern
