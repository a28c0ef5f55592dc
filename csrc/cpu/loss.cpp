// reconstruction + beta KL with its reduction: the CPU kernel of vaekern::loss and its backward.
#include "columns.h"
#include "elements.h"
#include "kl.h"
#include "rows.h"
#include "tables.h"

namespace vaekern {
namespace VAEKERN_ISA {

namespace {

template <class C>
Rows<C> reconstruct(const LossArgs& a, const Weights& w) {
  switch (a.activation) {
    case Activation::sigmoid: return Reconstruction<C, Sigmoid>(a, w).run();
    case Activation::tanh: return Reconstruction<C, Tanh>(a, w).run();
    default: return Reconstruction<C, Identity>(a, w).run();
  }
}

template <class S, class C>
void track(const LossArgs& a, const C* variance, int64_t n) {
  S* last = static_cast<S*>(a.last.data);
  S* running = static_cast<S*>(a.running.data);
  for (int64_t i = 0; i < n; ++i) {
    const S v = S(variance[i]);
    if (!(v - v == 0)) continue;  // a bad batch leaves the estimates as they were
    running[i] = running[i] > 0 ? running[i] + S(a.momentum) * (v - running[i]) : v;
    last[i] = v;
  }
}

template <class C>
void run(const LossArgs& a) {
  const Tensor& like = a.x ? a.x : a.mu;
  const int64_t B = like.shape[0];
  int64_t D = 1;
  for (int k = 1; k < like.ndim; ++k) D *= like.shape[k];
  const double scale = reduction_scale(a.reduction, B, D);
  const double beta = a.beta ? scalar(a.beta) : a.beta_number;

  Weights w;
  std::vector<double> dim_weights;
  w.uniform = scale;
  if (a.upstream) {
    if (a.reduction == Reduction::none) {
      w.rows.resize(B);
      for (int64_t b = 0; b < B; ++b) {
        load_run<double>(static_cast<char*>(a.upstream.data) +
                             b * a.upstream.stride[0] * int64_t(size_of(a.upstream.dtype)),
                         a.upstream.dtype, 1, 1, &w.rows[b]);
      }
    } else if (a.reduction == Reduction::dims) {
      dim_weights.resize(D);  // in the order of the KL's plan, below
    } else {
      w.uniform *= scalar(a.upstream);
    }
  }

  Rows<C> rows;
  if (a.x) rows = reconstruct<C>(a, w);
  KlResult kl;
  if (a.mu) {
    Weights kw = w;
    kw.uniform *= beta;
    for (double& v : kw.rows) v *= beta;
    if (!dim_weights.empty()) {
      // upstream is contiguous in the features' own order; the plan may permute the features
      Plan plan(a.mu.shape + 1, a.mu.ndim - 1);
      View mu, up;
      plan.add(mu, a.mu, 1);
      plan.add(up, a.upstream, 0);
      plan.finish();
      for (int64_t f = 0; f < D; f += BLOCK) {
        double scratch[BLOCK];
        const int64_t n = std::min(BLOCK, D - f);
        const double* p = plan.read<double>(up, 0, 0, f, n, scratch);
        for (int64_t i = 0; i < n; ++i) dim_weights[f + i] = p[i] * scale * beta;
      }
    }
    kl = a.scale_tril ? full_kl<C>(a, kw, dim_weights) : DiagonalKl<C>(a, kw, dim_weights).run();
  }
  if (!a.value) return;  // backward

  C* value = static_cast<C*>(a.value.data);
  if (a.reduction == Reduction::dims) {
    Plan plan(a.mu.shape + 1, a.mu.ndim - 1);
    View mu, out;
    plan.add(mu, a.mu, 1);
    plan.add(out, a.value, 0);
    plan.finish();
    for (int64_t f = 0; f < D; f += BLOCK) {
      C scratch[BLOCK];
      const int64_t n = std::min(BLOCK, D - f);
      C* p = plan.target<C>(out, 0, 0, f, scratch);
      for (int64_t i = 0; i < n; ++i) p[i] = C(kl.dims[f + i] * scale);
      plan.write<C>(out, 0, 0, f, n, p);
    }
    return;
  }
  double total = 0, square = 0;
  std::vector<C> unwanted;
  C* statistics = static_cast<C*>(a.statistics.data);
  if (!a.statistics) {
    unwanted.resize(3 * B + 1);
    statistics = unwanted.data();
  }
  for (int64_t b = 0; b < B; ++b) {
    const double nll = a.x ? rows.nll[b] : 0, divergence = a.mu ? kl.rows[b] : 0;
    const double term = nll + (a.mu ? beta * divergence : 0);
    total += term;
    if (a.reduction == Reduction::none) value[b] = C(term);
    statistics[b] = C(nll);
    statistics[B + b] = C(a.x ? rows.square[b] : 0);
    statistics[2 * B + b] = C(divergence);
    if (a.x) square += rows.square[b];
  }
  if (a.reduction != Reduction::none) value[0] = C(total * scale);
  if (a.x && a.objective != Objective::diag_i)
    statistics[3 * B] = C(B ? square / (double(B) * double(D)) : 0);
  if (a.last && a.x && B) {
    const bool columns = a.objective == Objective::diag_i;
    const C* variance = columns ? rows.variance : statistics + 3 * B;
    if (a.last.dtype == DType::f64)
      track<double>(a, variance, columns ? D : 1);
    else
      track<float>(a, variance, columns ? D : 1);
  }
}

}  // namespace

void loss(const LossArgs& a) {
  const Tensor* all[] = {&a.x_hat,  &a.x,          &a.x_logvar, &a.mu,
                         &a.logvar, &a.scale_tril, &a.prior_mu, &a.prior_logvar};
  for (const Tensor* t : all)
    if (*t && t->dtype == DType::f64) return run<double>(a);
  run<float>(a);
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
