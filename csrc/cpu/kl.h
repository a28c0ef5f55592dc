// The KL term, value and gradients: diagonal (against N(0, I) or a given diagonal prior) and full.
#pragma once

#include <vector>

#include "../terms.h"
#include "layout.h"
#include "parallel.h"
#include "reconstruction.h"

namespace vaekern {
namespace VAEKERN_ISA {

// [B]: KL per sample; for Reduction::dims `dims` [F] holds the sums over the batch instead.
struct KlResult {
  std::vector<double> rows, dims;
};

// `w`: d objective / d KL_b, beta included; for dims the per-dimension upstream is in
// `dim_weights`.
template <class C>
class DiagonalKl {
 public:
  DiagonalKl(const LossArgs& a, const Weights& w, const std::vector<double>& dim_weights)
      : a_(a), w_(w), plan_(a.mu.shape + 1, a.mu.ndim - 1) {
    for (double v : dim_weights) dim_weights_.push_back(C(v));
    B_ = a.mu.shape[0];
    const Tensor* in[] = {&a.mu,      &a.logvar,      &a.prior_mu,      &a.prior_logvar,
                          &a.grad_mu, &a.grad_logvar, &a.grad_prior_mu, &a.grad_prior_logvar};
    for (int k = 0; k < 8; ++k) plan_.add(view_[k], *in[k], 1);
    plan_.finish();
  }

  KlResult run() {
    KlResult out;
    const bool dims = a_.reduction == Reduction::dims;
    out.rows.assign(B_, 0);
    if (dims) out.dims.assign(plan_.F, 0);
    const int64_t blocks = ceil_div(plan_.F, BLOCK), all = B_ * plan_.F * 4;  // exp: as 4 elements
    if (dims) {
      std::vector<C> sums(plan_.F);
      parallel_for(blocks, all, a_.threads, [&](int64_t k) {
        for (int64_t b = 0; b < B_; ++b) block(b, k * BLOCK, sums.data() + k * BLOCK);
      });
      for (int64_t i = 0; i < plan_.F; ++i) out.dims[i] = double(sums[i]);
    } else {
      parallel_for(B_, all, a_.threads, [&](int64_t b) {
        for (int64_t k = 0; k < blocks; ++k) out.rows[b] += block(b, k * BLOCK, nullptr);
      });
    }
    return out;
  }

  const Plan& plan() const { return plan_; }

 private:
  enum { MU, LOGVAR, PRIOR_MU, PRIOR_LOGVAR, INPUTS };

  // KL = 1/2 [ s + e^t - 1 - t ] with t = logvar - prior_logvar, s = (mu - m)^2 e^-prior_logvar
  double block(int64_t b, int64_t f0, C* dims) const {
    const int64_t n = std::min(BLOCK, plan_.F - f0);
    C scratch[INPUTS][BLOCK], grad_scratch[INPUTS][BLOCK];
    const C* in[INPUTS];
    C* grad[INPUTS];
    for (int k = 0; k < INPUTS; ++k) {
      in[k] =
          view_[k].present ? plan_.template read<C>(view_[k], 0, b, f0, n, scratch[k]) : nullptr;
      grad[k] = view_[INPUTS + k].present
                    ? plan_.template target<C>(view_[INPUTS + k], 0, b, f0, grad_scratch[k])
                    : nullptr;
    }
    const bool prior = in[PRIOR_MU] || in[PRIOR_LOGVAR];
    const C lo = bounded<C>(a_.logvar_min), hi = bounded<C>(a_.logvar_max), w = C(w_[b]);
    const C* dw = dim_weights_.empty() ? nullptr : dim_weights_.data() + f0;
    Sums<C> sums;
    sweep<C>(n, [&](auto at, int64_t i, int k) {
      Vec<C> shift = at.load(in[MU] + i), raw = at.load(in[LOGVAR] + i);
      Vec<C> t = select<C>(raw < lo, splat(lo), raw);
      t = select<C>(t > hi, splat(hi), t);
      Vec<C> precise = shift;  // (mu - m) / s^2
      if (prior) {
        if (in[PRIOR_MU]) shift -= at.load(in[PRIOR_MU] + i);
        precise = shift;
        if (in[PRIOR_LOGVAR]) {
          Vec<C> p = at.load(in[PRIOR_LOGVAR] + i);
          t -= p;
          precise = shift * VAEKERN_ISA::exp<C>(-p);
        }
      }
      Exp<C> e = exp_all<C>(t);
      Vec<C> kl = C(0.5) * (shift * precise + e.excess);
      if (dims)
        at.store(dims + i, at.load(dims + i) + kl);
      else
        sums.add(k, at.keep(kl));
      Vec<C> weight = dw ? at.load(dw + i) : splat(w);
      if (grad[MU]) at.store(grad[MU] + i, weight * precise);
      if (grad[LOGVAR])
        at.store(grad[LOGVAR] + i,
                 select<C>((raw < lo) | (raw > hi), splat(C(0)), weight * C(0.5) * e.minus_one));
      if (grad[PRIOR_MU]) at.store(grad[PRIOR_MU] + i, -weight * precise);
      if (grad[PRIOR_LOGVAR])
        at.store(grad[PRIOR_LOGVAR] + i, -weight * C(0.5) * (shift * precise + e.minus_one));
    });
    for (int k = 0; k < INPUTS; ++k)
      if (grad[k]) plan_.template write<C>(view_[INPUTS + k], 0, b, f0, n, grad[k]);
    return sums.total(n);
  }

  const LossArgs& a_;
  const Weights& w_;
  std::vector<C> dim_weights_;
  Plan plan_;
  View view_[2 * INPUTS];
  int64_t B_ = 0;
};

// Reads and writes single elements of a strided [B, d] or [B, d, d] tensor as C.
template <class C>
struct Element {
  const Tensor& t;
  char* at(int64_t offset) const {
    return static_cast<char*>(t.data) + offset * int64_t(size_of(t.dtype));
  }
  void read(int64_t offset, int64_t stride, int64_t n, C* out) const {
    load_run<C>(at(offset), t.dtype, stride, n, out);
  }
  void write(int64_t offset, int64_t stride, int64_t n, const C* in) const {
    store_run<C>(at(offset), t.dtype, stride, n, in);
  }
};

// sum_j [ 1/2 (|L_j|^2 + mu_j^2 - 1) - log L_jj ] over the rows j of L
template <class C>
inline KlResult full_kl(const LossArgs& a, const Weights& w,
                        const std::vector<double>& dim_weights) {
  const int64_t B = a.mu.shape[0], d = a.mu.shape[1];
  const bool dims = a.reduction == Reduction::dims;
  KlResult out;
  out.rows.assign(B, 0);
  out.dims.assign(dims ? d : 0, 0);
  std::vector<double> partial(dims ? B * d : 0);
  parallel_for(B, B * d * d, a.threads, [&](int64_t b) {
    std::vector<C> mu(d), row(d), grad(d);
    Element<C>{a.mu}.read(b * a.mu.stride[0], a.mu.stride[1], d, mu.data());
    double total = 0;
    for (int64_t j = 0; j < d; ++j) {
      const Tensor& L = a.scale_tril;
      Element<C>{L}.read(b * L.stride[0] + j * L.stride[1], L.stride[2], j + 1, row.data());
      double s = double(mu[j]) * double(mu[j]) - 1;
      for (int64_t k = 0; k <= j; ++k) s += double(row[k]) * double(row[k]);
      const double kl = 0.5 * s - std::log(double(row[j]));
      total += kl;
      if (dims) partial[b * d + j] = kl;
      if (!a.grad_scale_tril) continue;
      const double weight = dim_weights.empty() ? w[b] : dim_weights[j];
      for (int64_t k = 0; k < d; ++k) grad[k] = k <= j ? C(weight * double(row[k])) : C(0);
      grad[j] = C(weight * (double(row[j]) - 1.0 / double(row[j])));
      const Tensor& g = a.grad_scale_tril;
      Element<C>{g}.write(b * g.stride[0] + j * g.stride[1], g.stride[2], d, grad.data());
    }
    out.rows[b] = total;
    if (!a.grad_mu) return;
    for (int64_t j = 0; j < d; ++j)
      grad[j] = C((dim_weights.empty() ? w[b] : dim_weights[j]) * double(mu[j]));
    Element<C>{a.grad_mu}.write(b * a.grad_mu.stride[0], a.grad_mu.stride[1], d, grad.data());
  });
  for (int64_t b = 0; dims && b < B; ++b)
    for (int64_t j = 0; j < d; ++j) out.dims[j] += partial[b * d + j];
  return out;
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
