// The KL term: values and gradients per sample, by a warp or a block each; and its sums over the
// batch per dimension.
#pragma once

#include "reconstruction.h"

namespace vaekern {
namespace cuda {

template <class C>
struct Exponential {
  C minus_one, excess;  // e^t - 1 and e^t - 1 - t, without cancellation
};

template <class C>
VAEKERN_DEVICE Exponential<C> exponential(C t) {
  Exponential<C> e;
  e.minus_one = std::expm1(t);
  e.excess = e.minus_one - t;
  if (std::abs(t) < C(0.1)) {
    C series = C(0);  // t^2/2! + t^3/3! + ...
#pragma unroll
    for (int n = sizeof(C) == 8 ? 11 : 7; n > 1; --n) {
      double factorial = 1;
      for (int k = 2; k <= n; ++k) factorial *= k;
      series = (series + C(1 / factorial)) * t;
    }
    e.excess = series * t;
  }
  return e;
}

template <class C>
VAEKERN_DEVICE C load_at(const Axes& axes, const View& v, int64_t b, int64_t f) {
  return load_one<C>(v.dtype, row_of(v, 0, b) + feature_offset<1>(axes, v, f));
}

template <class C>
VAEKERN_DEVICE void store_at(const Axes& axes, const View& v, int64_t b, int64_t f, C x) {
  store_one<C>(v.dtype, const_cast<char*>(row_of(v, 0, b)) + feature_offset<1>(axes, v, f), x);
}

// KL = 1/2 [ s + e^t - 1 - t ] with t = logvar - prior_logvar, s = (mu - m)^2 e^-prior_logvar; the
// gradients where they are asked for, for the weight w.
template <class C>
VAEKERN_DEVICE C diagonal_kl(const Loss& a, int64_t b, int64_t f, C w) {
  const C lo = C(a.logvar_min), hi = C(a.logvar_max);
  C shift = load_at<C>(a.latent, a.mu, b, f);
  const C raw = load_at<C>(a.latent, a.logvar_z, b, f);
  C t = raw < lo ? lo : raw;
  t = t > hi ? hi : t;
  if (a.prior_mu.present) shift -= load_at<C>(a.latent, a.prior_mu, b, f);
  C precise = shift;  // (mu - m) / s^2
  if (a.prior_logvar.present) {
    const C p = load_at<C>(a.latent, a.prior_logvar, b, f);
    t -= p;
    precise = shift * std::exp(-p);
  }
  const Exponential<C> e = exponential(t);
  if (a.grad_mu.present) store_at(a.latent, a.grad_mu, b, f, w * precise);
  if (a.grad_logvar_z.present)
    store_at(a.latent, a.grad_logvar_z, b, f,
             raw < lo || raw > hi ? C(0) : w * C(0.5) * e.minus_one);
  if (a.grad_prior_mu.present) store_at(a.latent, a.grad_prior_mu, b, f, -w * precise);
  if (a.grad_prior_logvar.present)
    store_at(a.latent, a.grad_prior_logvar, b, f, -w * C(0.5) * (shift * precise + e.minus_one));
  return C(0.5) * (shift * precise + e.excess);
}

// Entry (j, k) of sample b's share of sum_j [ 1/2 (|L_j|^2 + mu_j^2 - 1) - log L_jj ], mu_j with
// the diagonal.
template <class C>
VAEKERN_DEVICE double full_kl(const Loss& a, int64_t b, int64_t j, int64_t k, double w) {
  const bool below = k <= j, diagonal = k == j;
  const double entry = below ? double(load_one<C>(a.tril.dtype, entry_of(a.tril, b, j, k))) : 0.0;
  double value = 0.5 * entry * entry, grad = w * entry;
  if (diagonal) {
    const double mu = double(load_at<C>(a.latent, a.mu, b, j));
    value += 0.5 * (mu * mu - 1) - std::log(entry);
    grad = w * (entry - 1 / entry);
    if (a.grad_mu.present) store_at(a.latent, a.grad_mu, b, j, C(w * mu));
  }
  if (a.grad_tril.present)
    store_one<C>(a.grad_tril.dtype, entry_of(a.grad_tril, b, j, k), C(below ? grad : 0.0));
  return value;
}

// The weight of dimension f where each has its own.
VAEKERN_DEVICE double dim_weight(const Loss& a, int64_t f, double beta) {
  return a.scale * beta * load_at<double>(a.latent, a.dim_weights, 0, f);
}

// A group takes a sample.
template <class C>
VAEKERN_NOINLINE void kl_of_samples(const Loss& a, double* scratch) {
  const int group = a.kl_group, rank = int(threadIdx.x) % group;
  const int64_t b =
      (int64_t(blockIdx.x) - a.blocks) * (int(blockDim.x) / group) + int(threadIdx.x) / group;
  const bool mine = b < a.kl_samples;
  double sum = 0;
  if (mine) {
    const double beta = beta_of(a);
    const double w = a.dim_weights.present ? 0 : weight_of(a, b) * beta;
    const int64_t d = a.latent.F;
    if (a.tril.present) {
      for (int64_t i = rank; i < d * d; i += group) {
        const int64_t j = i / d;
        sum += full_kl<C>(a, b, j, i - j * d, a.dim_weights.present ? dim_weight(a, j, beta) : w);
      }
    } else {
      for (int64_t f = rank; f < d; f += group)
        sum +=
            double(diagonal_kl<C>(a, b, f, C(a.dim_weights.present ? dim_weight(a, f, beta) : w)));
    }
  }
  if (!a.finish) return;
  sum = group_sum(sum, group, scratch);
  if (mine && rank == 0) a.kl_rows[b] = sum;
}

// value[f] = scale sum_b KL_bf: lanes take dimensions of a diagonal KL and warps samples; of a full
// one a block takes a dimension.
template <class C>
VAEKERN_DEVICE void kl_of_dimensions(const Loss& a, const View& value, double* scratch) {
  const int64_t d = a.latent.F, B = a.kl_samples;
  if (a.tril.present) {
    const int64_t j = blockIdx.x;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < B * (j + 1); i += blockDim.x) {
      const int64_t b = i / (j + 1);
      sum += full_kl<C>(a, b, j, i - b * (j + 1), 0.0);
    }
    sum = group_sum(sum, int(blockDim.x), scratch);
    if (threadIdx.x == 0) store_at(a.latent, value, 0, j, C(sum * a.scale));
    return;
  }
  const int lane = int(threadIdx.x) % WARP, warp = int(threadIdx.x) / WARP;
  const int warps = int(blockDim.x) / WARP;
  const int64_t f = int64_t(blockIdx.x) * WARP + lane;
  double* sums = scratch + SCRATCH / sizeof(double);
  double sum = 0;
  for (int64_t b = warp; f < d && b < B; b += warps) sum += double(diagonal_kl<C>(a, b, f, C(0)));
  sums[warp * WARP + lane] = sum;
  __syncthreads();
  if (warp != 0 || f >= d) return;
  for (int w = 1; w < warps; ++w) sum += sums[w * WARP + lane];
  store_at(a.latent, value, 0, f, C(sum * a.scale));
}

}  // namespace cuda
}  // namespace vaekern
