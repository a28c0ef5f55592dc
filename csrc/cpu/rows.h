// One factor per sample, or one for all: known scalar or per-sample variance, iso-d, iso-i.
#pragma once

#include "reconstruction.h"

namespace vaekern {
namespace VAEKERN_ISA {

template <class C, class Act>
void Reconstruction<C, Act>::rows_known() {
  std::vector<double> logvar(B_), precision(B_);
  std::vector<double> raw(B_);
  const double bound = bounded<double>(a_.x_logvar_min);
  for (int64_t b = 0; b < B_; ++b) {
    double lv;
    if (spread_ == Spread::scalar) {
      lv = b ? raw[0] : scalar(a_.x_logvar);
    } else {
      load_run<double>(logvar_.base + b * logvar_.stride_b * logvar_.item, logvar_.dtype, 1, 1,
                       &lv);
    }
    raw[b] = lv;
    logvar[b] = lv < bound ? bound : lv;
    precision[b] = b && spread_ == Spread::scalar ? precision[0] : std::exp(-logvar[b]);
  }
  for_chunks([&](int64_t b, int64_t k) {
    if (!has_grad_) return square_piece(b, k * CHUNK, chunk_length(k));
    return scale_piece(b, k * CHUNK, chunk_length(k), w_[b] * precision[b] / double(L_));
  });
  double grad = 0;
  for (int64_t b = 0; b < B_; ++b) {
    const double s = out_.square[b] = row_sum(b);
    out_.nll[b] = 0.5 * (s * precision[b] + double(F_) * (logvar[b] + LOG_2PI));
    if (!a_.grad_x_logvar) continue;
    // the bound's gradient is cut off below it, and passes on it
    double g = raw[b] < bound ? 0 : 0.5 * w_[b] * (double(F_) - s * precision[b]);
    if (spread_ == Spread::scalar)
      grad += g;
    else
      store_run<double>(grad_logvar_.base + b * grad_logvar_.stride_b * grad_logvar_.item,
                        grad_logvar_.dtype, 1, 1, &g);
  }
  if (a_.grad_x_logvar && spread_ == Spread::scalar)
    store_run<double>(a_.grad_x_logvar.data, a_.grad_x_logvar.dtype, 1, 1, &grad);
}

template <class C, class Act>
void Reconstruction<C, Act>::rows_iso_d() {
  auto finish = [&](int64_t b) {
    const double s = out_.square[b] = row_sum(b);
    out_.nll[b] = IsoD::row_value(s, double(F_), a_.eps);
    return w_[b] * IsoD::factor(s, double(F_), a_.eps) / double(L_);
  };
  if (!has_grad_ || (B_ < a_.threads && a_.threads > 1)) {  // few samples: share each one's chunks
    for_chunks([&](int64_t b, int64_t k) { return square_piece(b, k * CHUNK, chunk_length(k)); });
    std::vector<double> factor(B_);
    for (int64_t b = 0; b < B_; ++b) factor[b] = finish(b);
    if (has_grad_) write_rows(factor);
    return;
  }
  partial_.assign(B_ * chunks_, 0);
  parallel_for(B_, elements(), a_.threads,
               [&](int64_t b) {  // the row is in cache the second time
                 for (int64_t k = 0; k < chunks_; ++k)
                   partial_[b * chunks_ + k] = square_piece(b, k * CHUNK, chunk_length(k));
                 const double factor = finish(b);
                 for (int64_t k = 0; k < chunks_; ++k)
                   scale_piece(b, k * CHUNK, chunk_length(k), factor);
               });
}

template <class C, class Act>
void Reconstruction<C, Act>::rows_iso_i() {
  for_chunks([&](int64_t b, int64_t k) { return square_piece(b, k * CHUNK, chunk_length(k)); });
  const double D = double(F_), n = double(B_);
  double total = 0;
  for (int64_t b = 0; b < B_; ++b) total += out_.square[b] = row_sum(b);
  if (B_ == 0) return;
  const double tiny = double(std::numeric_limits<C>::min()), mean = total / (n * D);
  const double v = IsoI::guarded(mean, tiny);
  double weighted = 0;
  for (int64_t b = 0; b < B_; ++b) {
    // below the guard there is no residual to speak of: every sample's term is the mean
    out_.nll[b] = IsoI::row_value(v, mean < tiny ? D * v : out_.square[b], D);
    weighted += w_[b] * out_.square[b];
  }
  if (!has_grad_) return;
  // uneven upstream weights also move the shared estimate; even ones cancel exactly
  const double shared = w_.rows.empty() ? 0 : (w_.sum(B_) - weighted / (D * v)) / n;
  std::vector<double> factor(B_);
  // ... and w / v may overflow
  for (int64_t b = 0; b < B_; ++b) factor[b] = mean < tiny ? 0 : (w_[b] + shared) / v / double(L_);
  write_rows(factor);
}

// Backwards: what the first pass read last is still in cache.
template <class C, class Act>
void Reconstruction<C, Act>::write_rows(const std::vector<double>& factor) {
  const int64_t last = B_ * chunks_ - 1;
  parallel_for(B_ * chunks_, elements(), a_.threads, [&](int64_t back) {
    const int64_t t = last - back;
    const int64_t b = t / chunks_, k = t % chunks_;
    scale_piece(b, k * CHUNK, chunk_length(k), factor[b]);
  });
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
