// One factor per element: known variance per element, diag-d.
#pragma once

#include "reconstruction.h"

namespace vaekern {
namespace VAEKERN_ISA {

template <class C, class Act>
void Reconstruction<C, Act>::elements_known() {
  std::vector<double> value(B_ * chunks_);
  const C bound = bounded<C>(a_.x_logvar_min);
  for_chunks([&](int64_t b, int64_t k) {
    double total = 0, squares = 0;
    const C w = C(w_[b]);
    if (L_ == 1 && has_grad_ && !grad_x_.present) {
      squares = known_fused(b, k, bound, total);
      value[b * chunks_ + k] = total;
      return squares;
    }
    for_blocks(b, k, [&](int64_t f, int64_t m, const C* q, C* factor) {
      C sl[BLOCK], sgl[BLOCK];
      const C* lv = plan_.template read<C>(logvar_, 0, b, f, m, sl);
      C* glv =
          grad_logvar_.present ? plan_.template target<C>(grad_logvar_, 0, b, f, sgl) : nullptr;
      Sums<C> nll, square;
      sweep<C>(m, [&](auto at, int64_t i, int j) {
        Vec<C> raw = at.load(lv + i);
        Bits<C> below = raw < bound;
        Vec<C> l = select<C>(below, splat(bound), raw);
        Vec<C> e = VAEKERN_ISA::exp<C>(-l);
        Vec<C> qi = at.load(q + i), scaled = qi * e;
        nll.add(j, at.keep(scaled + l));
        square.add(j, at.keep(qi));
        at.store(factor + i, e);
        if (glv) at.store(glv + i, select<C>(below, splat(C(0)), (C(1) - scaled) * (C(0.5) * w)));
      });
      total += nll.total();
      squares += square.total();
      if (glv) plan_.template write<C>(grad_logvar_, 0, b, f, m, glv);
    });
    value[b * chunks_ + k] = total;
    return squares * double(L_);  // row_sum divides by L
  });
  for (int64_t b = 0; b < B_; ++b) {
    double s = 0;
    for (int64_t k = 0; k < chunks_; ++k) s += value[b * chunks_ + k];
    out_.nll[b] = 0.5 * (s + double(F_) * LOG_2PI);
    out_.square[b] = row_sum(b);
  }
}

// L = 1: value and both gradients in one sweep
template <class C, class Act>
double Reconstruction<C, Act>::known_fused(int64_t b, int64_t k, C bound, double& total) const {
  C sa[BLOCK], sx[BLOCK], sl[BLOCK], sg[BLOCK], sgl[BLOCK];
  const C w = C(w_[b]);
  const int64_t f0 = k * CHUNK, end = f0 + chunk_length(k);
  // logvar's gradient goes past the caches on the same conditions as x_hat's
  const bool stream_logvar = stream_ && aligned_rows(grad_logvar_);
  double squares = 0;
  for (int64_t f = f0; f < end; f += BLOCK) {
    const int64_t m = std::min(BLOCK, end - f);
    const C* x = plan_.template read<C>(x_, 0, b, f, m, sx);
    const C* a = plan_.template read<C>(x_hat_, 0, b, f, m, sa);
    const C* lv = plan_.template read<C>(logvar_, 0, b, f, m, sl);
    C* g = grad_x_hat_.present ? plan_.template target<C>(grad_x_hat_, 0, b, f, sg) : sg;
    C* gl = grad_logvar_.present ? plan_.template target<C>(grad_logvar_, 0, b, f, sgl) : nullptr;
    Sums<C> nll, square;
    sweep<C>(m, [&](auto at, int64_t i, int j) {
      Vec<C> slope;
      Vec<C> r = at.keep(Act::template value<C>(at.load(a + i), slope) - at.load(x + i));
      Vec<C> raw = at.load(lv + i);
      Bits<C> below = raw < bound;
      Vec<C> l = select<C>(below, splat(bound), raw);
      Vec<C> precise = r * VAEKERN_ISA::exp<C>(-l), scaled = r * precise;
      nll.add(j, at.keep(scaled + l));
      square.add(j, r * r);
      if (gl) {
        Vec<C> gradient = select<C>(below, splat(C(0)), (C(1) - scaled) * (C(0.5) * w));
        if (stream_logvar)
          stream_or_store(at, gl + i, gradient);
        else
          at.store(gl + i, gradient);
      }
      Vec<C> d = precise * w;
      put(at, g + i, Act::trivial ? d : d * slope);
    });
    total += nll.total();
    squares += square.total();
    if (grad_x_hat_.present) plan_.template write<C>(grad_x_hat_, 0, b, f, m, g);
    if (gl) plan_.template write<C>(grad_logvar_, 0, b, f, m, gl);
  }
  return squares;
}

template <class C, class Act>
void Reconstruction<C, Act>::elements_diag_d() {
  std::vector<double> value(B_ * chunks_);
  const C eps = C(a_.eps);
  for_chunks([&](int64_t b, int64_t k) {
    double squares = 0;
    LogProduct<C> logs;
    if (L_ == 1 && has_grad_ && !grad_x_.present) {
      squares = diag_d_fused(b, k, eps, logs);
    } else {
      for_blocks(b, k, [&](int64_t, int64_t m, const C* q, C* factor) {
        Sums<C> square;
        sweep<C>(m, [&](auto at, int64_t i, int j) {
          Vec<C> qi = at.load(q + i);
          Vec<C> argument = DiagD::argument<Vec<C>>(qi, splat(eps));
          logs.add(at.keep(argument, C(1)));
          square.add(j, at.keep(qi));
          at.store(factor + i, C(1) / argument);
        });
        squares += square.total();
      });
    }
    value[b * chunks_ + k] = logs.value();
    return squares * double(L_);
  });
  for (int64_t b = 0; b < B_; ++b) {
    double s = 0;
    for (int64_t k = 0; k < chunks_; ++k) s += value[b * chunks_ + k];
    out_.nll[b] = 0.5 * (s + double(F_) * (1 + LOG_2PI));
    out_.square[b] = row_sum(b);
  }
}

// L = 1: value and gradient in one sweep
template <class C, class Act>
double Reconstruction<C, Act>::diag_d_fused(int64_t b, int64_t k, C eps,
                                            LogProduct<C>& logs) const {
  C sa[BLOCK], sx[BLOCK], sg[BLOCK];
  const C w = C(w_[b]);
  const int64_t f0 = k * CHUNK, end = f0 + chunk_length(k);
  double squares = 0;
  for (int64_t f = f0; f < end; f += BLOCK) {
    const int64_t m = std::min(BLOCK, end - f);
    const C* x = plan_.template read<C>(x_, 0, b, f, m, sx);
    const C* a = plan_.template read<C>(x_hat_, 0, b, f, m, sa);
    C* g = plan_.template target<C>(grad_x_hat_, 0, b, f, sg);
    Sums<C> square;
    sweep<C>(m, [&](auto at, int64_t i, int j) {
      Vec<C> slope;
      Vec<C> r = at.keep(Act::template value<C>(at.load(a + i), slope) - at.load(x + i));
      Vec<C> q = r * r;
      Vec<C> argument = DiagD::argument<Vec<C>>(q, splat(eps));
      logs.add(at.keep(argument, C(1)));
      square.add(j, q);
      Vec<C> d = r * w / argument;
      Vec<C> out = Act::trivial ? d : d * slope;
      put(at, g + i, out);
    });
    squares += square.total();
    plan_.template write<C>(grad_x_hat_, 0, b, f, m, g);
  }
  return squares;
}

// For every block of chunk k of sample b: q = E_L r^2, then per_block(f, m, q, factor) fills the
// factors, then the gradients w factor r act' / L of every posterior sample.
template <class C, class Act>
template <class PerBlock>
void Reconstruction<C, Act>::for_blocks(int64_t b, int64_t k, PerBlock per_block) const {
  C sa[BLOCK], sx[BLOCK], sg[BLOCK], sgx[BLOCK], q[BLOCK], factor[BLOCK];
  const C inverse_l = C(1.0 / double(L_)), w = C(w_[b] / double(L_));
  const int64_t f0 = k * CHUNK, end = f0 + chunk_length(k);
  for (int64_t f = f0; f < end; f += BLOCK) {
    const int64_t m = std::min(BLOCK, end - f);
    const C* x = plan_.template read<C>(x_, 0, b, f, m, sx);
    for (int64_t l = 0; l < L_; ++l) {
      const C* a = plan_.template read<C>(x_hat_, l, b, f, m, sa);
      sweep<C>(m, [&](auto at, int64_t i, int) {
        Vec<C> r = Act::template value<C>(at.load(a + i)) - at.load(x + i);
        Vec<C> r2 = r * r * inverse_l;
        at.store(q + i, l == 0 ? r2 : at.load(q + i) + r2);
      });
    }
    per_block(f, m, q, factor);
    if (!has_grad_) continue;
    C* gx = grad_x_.present ? plan_.template target<C>(grad_x_, 0, b, f, sgx) : nullptr;
    for (int64_t l = 0; l < L_; ++l) {
      const C* a = plan_.template read<C>(x_hat_, l, b, f, m, sa);
      C* g = grad_x_hat_.present ? plan_.template target<C>(grad_x_hat_, l, b, f, sg) : sg;
      sweep<C>(m, [&](auto at, int64_t i, int) {
        Vec<C> slope;
        Vec<C> r = Act::template value<C>(at.load(a + i), slope) - at.load(x + i);
        Vec<C> d = r * (at.load(factor + i) * w);
        if (gx) at.store(gx + i, l == 0 ? -d : at.load(gx + i) - d);
        Vec<C> out = Act::trivial ? d : d * slope;
        put(at, g + i, out);
      });
      if (grad_x_hat_.present) plan_.template write<C>(grad_x_hat_, l, b, f, m, g);
    }
    if (gx) plan_.template write<C>(grad_x_, 0, b, f, m, gx);
  }
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
