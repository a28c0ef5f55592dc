// One factor per feature: known variance per dimension, diag-i.
#pragma once

#include "reconstruction.h"

namespace vaekern {
namespace VAEKERN_ISA {

// A tile of `width` features and all samples (or a chunk of them) stays in cache between the pass
// that sums r^2 down the columns and the pass that writes the gradients.
template <class C, class Act>
void Reconstruction<C, Act>::columns() {
  const bool known = a_.objective == Objective::gaussian;
  const int64_t rows = L_ * B_;
  const bool fits = rows <= TILE_ROWS;
  int64_t width = BLOCK;
  if (fits && !known)
    width = std::clamp<int64_t>(TILE_BYTES / (2 * sizeof(C) * std::max<int64_t>(rows, 1)) / 64 * 64,
                                64, BLOCK);
  if (elements() >= PARALLEL_ELEMENTS)  // enough tiles to share
    width = std::min(width, std::max<int64_t>(256, ceil_div(F_, 8 * 64) * 64));
  const int64_t tiles = ceil_div(F_, width);
  const int64_t step = fits ? std::max<int64_t>(B_, 1) : ROWS_PER_CHUNK;
  const int64_t row_chunks = std::max<int64_t>(1, ceil_div(B_, step));
  const bool weighted = !w_.rows.empty();
  // [row chunk, F]: sums of q over the chunk's samples, and of w_b q
  std::vector<C> sums(row_chunks * F_), weighted_sums(weighted ? row_chunks * F_ : 0);
  std::vector<C> factor(F_), shared(weighted && !known ? F_ : 0);
  std::vector<double> value(tiles);
  const bool want_rows = a_.reduction == Reduction::none && a_.value;
  std::vector<double> row_nll(want_rows ? tiles * B_ : 0), row_square(want_rows ? tiles * B_ : 0);
  const bool second = has_grad_ || want_rows;
  std::vector<double> mean_departure(want_rows && !known ? tiles : 0);

  auto accumulate = [&](int64_t c, int64_t t) {
    const int64_t f0 = t * width, n = std::min(width, F_ - f0);
    C* q = sums.data() + c * F_ + f0;
    C* wq = weighted ? weighted_sums.data() + c * F_ + f0 : nullptr;
    const int64_t end = std::min(B_, (c + 1) * step);
    for (int64_t l = 0; l < L_; ++l) {
      int64_t b = c * step;
      for (; b + ROW_GROUP <= end; b += ROW_GROUP) square_columns<ROW_GROUP>(l, b, f0, n, q, wq);
      for (; b < end; ++b) square_columns<1>(l, b, f0, n, q, wq);
    }
  };
  auto known_factor = [&](int64_t t) {
    const int64_t f0 = t * width, n = std::min(width, F_ - f0);
    C scratch[BLOCK];
    const C* lv = plan_.template read<C>(logvar_, 0, 0, f0, n, scratch);
    const C bound = bounded<C>(a_.x_logvar_min);
    sweep<C>(n, [&](auto at, int64_t i, int) {
      Vec<C> l = at.load(lv + i);
      at.store(factor.data() + f0 + i, VAEKERN_ISA::exp<C>(-select<C>(l < bound, splat(bound), l)));
    });
  };
  auto finish = [&](int64_t t) {  // statistics of a tile -> value, factors, gradient of logvar
    const int64_t f0 = t * width, n = std::min(width, F_ - f0);
    for (int64_t c = 1; c < row_chunks; ++c)
      for (int64_t i = f0; i < f0 + n; ++i) {
        sums[i] += sums[c * F_ + i];
        if (weighted) weighted_sums[i] += weighted_sums[c * F_ + i];
      }
    if (known)
      finish_known(f0, n, factor.data(), sums.data(), weighted ? weighted_sums.data() : nullptr,
                   value[t]);
    else
      finish_diag_i(f0, n, factor.data(), shared.data(), sums.data(),
                    weighted ? weighted_sums.data() : nullptr, value[t]);
    if (want_rows && !known)
      for (int64_t i = f0; i < f0 + n; ++i)
        mean_departure[t] += 0.5 * double(sums[i]) * double(factor[i]) / double(B_);
  };
  auto write = [&](int64_t c, int64_t t, bool accumulating) {
    const int64_t f0 = t * width, n = std::min(width, F_ - f0);
    C* q = accumulating ? sums.data() + c * F_ + f0 : nullptr;
    C* wq = accumulating && weighted ? weighted_sums.data() + c * F_ + f0 : nullptr;
    for (int64_t b = c * step; b < std::min(B_, (c + 1) * step); ++b) {
      double *nll = nullptr, *square = nullptr;
      if (want_rows) {
        nll = &row_nll[t * B_ + b];
        square = &row_square[t * B_ + b];
      }
      write_columns(b, f0, n, factor.data() + f0, shared.empty() ? nullptr : shared.data() + f0, q,
                    wq, nll, square);
    }
  };

  const int64_t all = elements();
  if (known) {
    for (int64_t t = 0; t < tiles; ++t) known_factor(t);
    parallel_for(tiles * row_chunks, all, a_.threads, [&](int64_t i) {
      if (second)
        write(i / tiles, i % tiles, true);
      else
        accumulate(i / tiles, i % tiles);
    });
    parallel_for(tiles, all, a_.threads, finish);
  } else if (fits) {
    parallel_for(tiles, all, a_.threads, [&](int64_t t) {
      accumulate(0, t);
      finish(t);
      if (second) write(0, t, false);
    });
  } else {
    parallel_for(tiles * row_chunks, all, a_.threads,
                 [&](int64_t i) { accumulate(i / tiles, i % tiles); });
    parallel_for(tiles, all, a_.threads, finish);
    const int64_t last = tiles * row_chunks - 1;  // backwards, as write_rows
    if (second)
      parallel_for(tiles * row_chunks, all, a_.threads,
                   [&](int64_t i) { write((last - i) / tiles, (last - i) % tiles, false); });
  }

  // total over the batch; where rows are asked for, each one's own
  double total = 0, square = 0;
  for (double v : value) total += v;
  for (int64_t i = 0; i < F_; i += BLOCK) {
    Sums<C> part;
    sweep<C>(std::min(BLOCK, F_ - i),
             [&](auto at, int64_t j, int k) { part.add(k, at.load(sums.data() + i + j)); });
    square += part.total();
  }
  for (int64_t b = 0; b < B_; ++b) {
    if (!want_rows) {
      out_.nll[b] = total / double(B_);
      out_.square[b] = square / double(B_);
      continue;
    }
    double extra = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      extra += row_nll[t * B_ + b] - (known ? 0 : mean_departure[t]);
      out_.square[b] += row_square[t * B_ + b];
    }
    out_.nll[b] = total / double(B_) + extra;  // extra: this row's departure from the mean
  }
  if (want_rows && known) {  // row_nll holds 1/2 sum a q: the total's share of it is taken out
    double share = 0;
    for (double v : row_nll) share += v;
    for (int64_t b = 0; b < B_; ++b) out_.nll[b] -= share / double(B_);
  }
}

// total over the batch of 1/2 [a q + logvar + log 2 pi], and the gradient of logvar
template <class C, class Act>
void Reconstruction<C, Act>::finish_known(int64_t f0, int64_t n, const C* factor, const C* sums,
                                          const C* weighted_sums, double& value) const {
  C scratch[BLOCK], grad_scratch[BLOCK];
  const C* lv = plan_.template read<C>(logvar_, 0, 0, f0, n, scratch);
  const C bound = bounded<C>(a_.x_logvar_min);
  C* grad = grad_logvar_.present ? plan_.template target<C>(grad_logvar_, 0, 0, f0, grad_scratch)
                                 : nullptr;
  const C weight = C(w_.sum(B_)), uniform = C(w_.uniform), samples = C(double(B_));
  Sums<C> total;
  sweep<C>(n, [&](auto at, int64_t i, int k) {
    Vec<C> raw = at.load(lv + i);
    Bits<C> below = raw < bound;
    Vec<C> scaled = at.load(factor + f0 + i) * at.load(sums + f0 + i);
    total.add(k, at.keep(scaled + samples * select<C>(below, splat(bound), raw)));
    if (!grad) return;
    Vec<C> weighted = weighted_sums ? at.load(factor + f0 + i) * at.load(weighted_sums + f0 + i)
                                    : uniform * scaled;
    at.store(grad + i, select<C>(below, splat(C(0)), C(0.5) * (weight - weighted)));
  });
  value = 0.5 * (total.total() + double(B_) * double(n) * LOG_2PI);
  if (grad) plan_.template write<C>(grad_logvar_, 0, 0, f0, n, grad);
}

template <class C, class Act>
void Reconstruction<C, Act>::finish_diag_i(int64_t f0, int64_t n, C* factor, C* shared,
                                           const C* sums, const C* weighted_sums, double& value) {
  LogProduct<C> logs;
  const C inverse_n = C(1.0 / std::max<int64_t>(B_, 1)), eps = C(a_.eps);
  const C weight = C(w_.sum(B_));
  C scratch[BLOCK];
  C* variance =
      variance_.present ? plan_.template target<C>(variance_, 0, 0, f0, scratch) : nullptr;
  sweep<C>(n, [&](auto at, int64_t i, int) {
    Vec<C> v = at.load(sums + f0 + i) * inverse_n;
    if (variance) at.store(variance + i, v);
    logs.add(at.keep(v + eps, C(1)));
    Vec<C> a = DiagI::factor<Vec<C>>(v, splat(eps));
    at.store(factor + f0 + i, a);
    if (weighted_sums)
      at.store(shared + f0 + i,
               -inverse_n * a * (a * (at.load(weighted_sums + f0 + i) - weight * v)));
  });
  value = 0.5 * double(B_) * (logs.value() + double(n) * (1 + LOG_2PI));
  if (variance) plan_.template write<C>(variance_, 0, 0, f0, n, variance);
}

// q[i] += r_i^2 / L and wq[i] += w_b r_i^2 / L over R samples from b: several rows at a time save
// loads and stores of q, and roundings
template <class C, class Act>
template <int R>
void Reconstruction<C, Act>::square_columns(int64_t l, int64_t b, int64_t f0, int64_t n, C* q,
                                            C* wq) const {
  C sa[R][BLOCK], sx[R][BLOCK];
  const C *a[R], *x[R];
  const C inverse_l = C(1.0 / double(L_));
  Vec<C> w[R];
  for (int j = 0; j < R; ++j) {
    a[j] = plan_.template read<C>(x_hat_, l, b + j, f0, n, sa[j]);
    x[j] = plan_.template read<C>(x_, 0, b + j, f0, n, sx[j]);
    w[j] = splat(C(w_[b + j]));
  }
  sweep<C>(n, [&](auto at, int64_t i, int) {
    Vec<C> s = splat(C(0)), ws = splat(C(0));
#pragma GCC unroll 8
    for (int j = 0; j < R; ++j) {
      Vec<C> r = Act::template value<C>(at.load(a[j] + i)) - at.load(x[j] + i);
      Vec<C> r2 = r * r;
      s += r2;
      if (wq) ws += w[j] * r2;
    }
    at.store(q + i, at.load(q + i) + s * inverse_l);
    if (wq) at.store(wq + i, at.load(wq + i) + ws * inverse_l);
  });
}

// gradients of sample b with the factors (w_b a_i + k_i) / L; sums on the way where asked for
template <class C, class Act>
void Reconstruction<C, Act>::write_columns(int64_t b, int64_t f0, int64_t n, const C* factor,
                                           const C* shared, C* q, C* wq, double* nll,
                                           double* square) const {
  C sa[BLOCK], sx[BLOCK], sg[BLOCK], sgx[BLOCK];
  const C* x = plan_.template read<C>(x_, 0, b, f0, n, sx);
  C* gx = grad_x_.present ? plan_.template target<C>(grad_x_, 0, b, f0, sgx) : nullptr;
  const C inverse_l = C(1.0 / double(L_)), w = C(w_[b]);
  Sums<C> squares, departures;
  for (int64_t l = 0; l < L_; ++l) {
    const C* a = plan_.template read<C>(x_hat_, l, b, f0, n, sa);
    C* g = grad_x_hat_.present ? plan_.template target<C>(grad_x_hat_, l, b, f0, sg) : sg;
    if (!q && !shared && !nll && !gx) {  // the common case, as lean as it gets
      sweep<C>(n, [&](auto at, int64_t i, int) {
        Vec<C> slope;
        Vec<C> r = Act::template value<C>(at.load(a + i), slope) - at.load(x + i);
        Vec<C> d = r * (at.load(factor + i) * (w * inverse_l));
        Vec<C> out = Act::trivial ? d : d * slope;
        put(at, g + i, out);
      });
    } else {
      sweep<C>(n, [&](auto at, int64_t i, int k) {
        Vec<C> slope;
        Vec<C> r = at.keep(Act::template value<C>(at.load(a + i), slope) - at.load(x + i));
        Vec<C> r2 = r * r * inverse_l;
        Vec<C> f = at.load(factor + i);
        if (q) at.store(q + i, at.load(q + i) + r2);
        if (wq) at.store(wq + i, at.load(wq + i) + w * r2);
        if (nll) {
          squares.add(k, r2);
          departures.add(k, r2 * f);
        }
        Vec<C> c = f * w;
        if (shared) c += at.load(shared + i);
        Vec<C> d = r * (c * inverse_l);
        if (gx) at.store(gx + i, l == 0 ? -d : at.load(gx + i) - d);
        put(at, g + i, Act::trivial ? d : d * slope);
      });
    }
    if (grad_x_hat_.present) plan_.template write<C>(grad_x_hat_, l, b, f0, n, g);
  }
  if (gx) plan_.template write<C>(grad_x_, 0, b, f0, n, gx);
  if (!nll) return;
  *square = squares.total();
  *nll = 0.5 * departures.total();
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
