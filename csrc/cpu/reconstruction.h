// The reconstruction term, value and gradients, for every objective.
//
// An objective differs in the group over which it takes its statistic (terms.h), and that decides
// the order of the work: `Rows` (one factor per sample, or one for all: known scalar or per-sample
// variance, iso-d, iso-i), `Columns` (one per feature: known per dimension, diag-i) and `Elements`
// (known per element, diag-d). Every gradient is d NLL / d x_hat = w_b a r act'(x_hat) / L with the
// factor a.
#pragma once

#include <vector>

#include "../terms.h"
#include "layout.h"
#include "parallel.h"
#include "sweep.h"

namespace vaekern {
namespace VAEKERN_ISA {

// What a reconstruction term leaves behind, besides gradients and diag-i's variance. The column
// objectives spread their totals evenly over the samples unless each sample's own value is asked
// for.
template <class C>
struct Rows {
  std::vector<double> nll, square;  // [B]: NLL and E_L |r|^2
  const C* variance = nullptr;      // diag-i: [F] in the features' own order
  std::vector<C> variance_storage;  // ... where the statistics were not asked for
};

// d objective / d NLL_b before beta: the reduction's scale times the upstream gradient.
struct Weights {
  double uniform = 1;
  std::vector<double> rows;  // empty: uniform
  double operator[](int64_t b) const { return rows.empty() ? uniform : rows[b]; }
  double sum(int64_t B) const {
    if (rows.empty()) return uniform * double(B);
    double s = 0;
    for (double w : rows) s += w;
    return s;
  }
};

enum class Spread { scalar, sample, feature, element };  // how x_logvar lies over x

template <class C, class Act>
class Reconstruction {
 public:
  Reconstruction(const LossArgs& a, const Weights& w)
      : a_(a), w_(w), plan_(a.x.shape + 1, a.x.ndim - 1) {
    B_ = a.x.shape[0];
    samples_axis_ = a.x_hat.ndim > a.x.ndim;
    L_ = samples_axis_ ? a.x_hat.shape[0] : 1;
    const int lead = samples_axis_ ? 2 : 1;
    plan_.add(x_hat_, a.x_hat, lead);
    plan_.add(x_, a.x, 1);
    plan_.add(grad_x_hat_, a.grad_x_hat, lead);
    plan_.add(grad_x_, a.grad_x, 1);
    if (a.objective == Objective::gaussian) {
      spread_ = classify();
      const int logvar_lead = spread_ == Spread::element || spread_ == Spread::sample ? 1
                              : a.x_logvar.ndim == a.x.ndim                           ? 1
                                                                                      : 0;
      if (spread_ != Spread::scalar) {
        plan_.add(logvar_, a.x_logvar, logvar_lead);
        plan_.add(grad_logvar_, a.grad_x_logvar, logvar_lead);
      }
    }
    if (a.objective == Objective::diag_i && a.value) {
      Tensor v = a.x;  // the last F statistics, in the features' own order
      v.dtype = dtype_of<C>;
      if (a.statistics) {
        v.data = static_cast<C*>(a.statistics.data) + 3 * B_;
      } else {
        out_.variance_storage.resize(plan_.F);
        v.data = out_.variance_storage.data();
      }
      out_.variance = static_cast<C*>(v.data);
      v.present = true;
      for (int64_t k = v.ndim - 1, step = 1; k >= 1; step *= v.shape[k--]) v.stride[k] = step;
      v.shape[0] = 1;
      plan_.add(variance_, v, 1);
    }
    plan_.finish();
    F_ = plan_.F;
    chunks_ = std::max<int64_t>(1, ceil_div(F_, CHUNK));
    has_grad_ = bool(a.grad_x_hat) || bool(a.grad_x);
    // A row of gradients that is written past the caches costs no read of the old line.
    stream_ = sizeof(C) == 4 && elements() >= STREAM_ELEMENTS && Act::trivial &&
              aligned_rows(grad_x_hat_);
  }

  Rows<C> run() {
    out_.nll.assign(B_, 0);
    out_.square.assign(B_, 0);
    switch (a_.objective) {
      case Objective::gaussian:
        if (spread_ == Spread::feature)
          columns();
        else if (spread_ == Spread::element)
          elements_known();
        else
          rows_known();
        break;
      case Objective::iso_i: rows_iso_i(); break;
      case Objective::iso_d: rows_iso_d(); break;
      case Objective::diag_i: columns(); break;
      case Objective::diag_d: elements_diag_d(); break;
      case Objective::none: break;
    }
    if (stream_) stream_fence();
    return std::move(out_);
  }

 private:
  static constexpr int64_t CHUNK = 8 * BLOCK;          // elements per task of a row
  static constexpr int64_t STREAM_ELEMENTS = 1 << 18;  // 2 MB of float32: the L2 of a core
  static constexpr int64_t TILE_BYTES = 1 << 20;       // a column tile of x and x_hat in L2
  // Rows a tile may have: pieces of rows that lie a multiple of a page apart share few cache sets,
  // so that 2 MB of L2 hold no more than 256 of them, however short
  static constexpr int64_t TILE_ROWS = 192;
  static constexpr int64_t ROWS_PER_CHUNK = 256;  // samples per task where the columns are too long
  static constexpr int ROW_GROUP = 4;

  int64_t elements() const { return L_ * B_ * F_; }

  // Dense C's, every row of which starts on a vector's boundary (rows may be further apart than F)?
  static bool aligned_rows(const View& v) {
    const uintptr_t starts = reinterpret_cast<uintptr_t>(v.base) | uintptr_t(v.stride_b * v.item) |
                             uintptr_t(v.stride_l * v.item);
    return v.dense && v.dtype == dtype_of<C> && starts % VAEKERN_VECTOR_BYTES == 0;
  }

  Spread classify() const {
    const Tensor& t = a_.x_logvar;
    if (t.numel() == 1) return Spread::scalar;
    bool batch = t.ndim == a_.x.ndim && t.shape[0] != 1;
    bool features = false;
    const int first = t.ndim == a_.x.ndim ? 1 : 0;
    for (int k = first; k < t.ndim; ++k) features |= t.shape[k] != 1;
    if (batch) return features || plan_features_one() ? Spread::element : Spread::sample;
    return B_ == 1 && t.ndim == a_.x.ndim ? Spread::element : Spread::feature;
  }
  bool plan_features_one() const { return a_.x.numel() == a_.x.shape[0]; }

  // ---------------------------------------------------------------- blocks

  // sum of r^2 over one block
  static VAEKERN_INLINE void square_block(const C* a, const C* x, int64_t n, Sums<C>& sums) {
    sweep<C>(n, [&](auto at, int64_t i, int k) {
      Vec<C> r = at.keep(Act::template value<C>(at.load(a + i)) - at.load(x + i));
      sums.add(k, r * r);
    });
  }

  // g = c r act', gx = -c r (added where !first); sums of r^2 on the way
  template <bool STREAM, bool GX>
  static VAEKERN_INLINE void scale_block(const C* a, const C* x, C* g, C* gx, bool first, int64_t n,
                                         C factor, Sums<C>& sums) {
    sweep<C>(n, [&](auto at, int64_t i, int k) {
      Vec<C> slope;
      Vec<C> r = at.keep(Act::template value<C>(at.load(a + i), slope) - at.load(x + i));
      sums.add(k, r * r);
      Vec<C> d = r * factor;
      if constexpr (GX) at.store(gx + i, first ? -d : at.load(gx + i) - d);
      Vec<C> out = Act::trivial ? d : d * slope;
      if constexpr (STREAM) {
        stream_or_store(at, g + i, out);
      } else {
        at.store(g + i, out);
      }
    });
  }
  static VAEKERN_INLINE void stream_or_store(Whole<C>, C* p, Vec<C> v) { stream(p, v); }
  static VAEKERN_INLINE void stream_or_store(Part<C> at, C* p, Vec<C> v) { at.store(p, v); }
  template <class Access>
  VAEKERN_INLINE void put(Access at, C* p,
                          Vec<C> v) const {  // a predicted branch costs nothing here
    if (stream_)
      stream_or_store(at, p, v);
    else
      at.store(p, v);
  }

  // Features [f0, f0 + n) of sample b, all L: sum of r^2
  double square_piece(int64_t b, int64_t f0, int64_t n) const {
    C sa[BLOCK], sx[BLOCK];
    double total = 0;
    for (int64_t f = f0; f < f0 + n; f += BLOCK) {
      const int64_t m = std::min(BLOCK, f0 + n - f);
      const C* x = plan_.template read<C>(x_, 0, b, f, m, sx);
      for (int64_t l = 0; l < L_; ++l) {
        Sums<C> sums;
        square_block(plan_.template read<C>(x_hat_, l, b, f, m, sa), x, m, sums);
        total += sums.total();
      }
    }
    return total;
  }

  // ... and the gradients with one factor
  double scale_piece(int64_t b, int64_t f0, int64_t n, double factor) const {
    C sa[BLOCK], sx[BLOCK], sg[BLOCK], sgx[BLOCK];
    const bool gx_wanted = grad_x_.present;
    double total = 0;
    for (int64_t f = f0; f < f0 + n; f += BLOCK) {
      const int64_t m = std::min(BLOCK, f0 + n - f);
      const C* x = plan_.template read<C>(x_, 0, b, f, m, sx);
      C* gx = gx_wanted ? plan_.template target<C>(grad_x_, 0, b, f, sgx) : nullptr;
      for (int64_t l = 0; l < L_; ++l) {
        const C* a = plan_.template read<C>(x_hat_, l, b, f, m, sa);
        C* g = grad_x_hat_.present ? plan_.template target<C>(grad_x_hat_, l, b, f, sg) : sg;
        Sums<C> sums;
        if (gx_wanted)
          scale_block<false, true>(a, x, g, gx, l == 0, m, C(factor), sums);
        else if (stream_)
          scale_block<true, false>(a, x, g, gx, true, m, C(factor), sums);
        else
          scale_block<false, false>(a, x, g, gx, true, m, C(factor), sums);
        total += sums.total();
        if (grad_x_hat_.present) plan_.template write<C>(grad_x_hat_, l, b, f, m, g);
      }
      if (gx_wanted) plan_.template write<C>(grad_x_, 0, b, f, m, gx);
    }
    return total;
  }

  // ---------------------------------------------------------------- one factor per sample

  int64_t chunk_length(int64_t k) const { return std::min(CHUNK, F_ - k * CHUNK); }

  template <class PerChunk>
  void for_chunks(PerChunk per_chunk) {  // partial_[b, k] = per_chunk(b, k)
    partial_.assign(B_ * chunks_, 0);
    parallel_for(B_ * chunks_, elements(), a_.threads,
                 [&](int64_t t) { partial_[t] = per_chunk(t / chunks_, t % chunks_); });
  }

  double row_sum(int64_t b) const {  // E_L |r_b|^2, in the chunks' order
    double s = 0;
    for (int64_t k = 0; k < chunks_; ++k) s += partial_[b * chunks_ + k];
    return s / double(L_);
  }

  void rows_known() {
    std::vector<double> logvar(B_), precision(B_);
    std::vector<double> raw(B_);
    for (int64_t b = 0; b < B_; ++b) {
      double lv;
      if (spread_ == Spread::scalar) {
        lv = b ? raw[0] : scalar(a_.x_logvar);
      } else {
        load_run<double>(logvar_.base + b * logvar_.stride_b * logvar_.item, logvar_.dtype, 1, 1,
                         &lv);
      }
      raw[b] = lv;
      logvar[b] = lv < a_.x_logvar_min ? a_.x_logvar_min : lv;
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
      double g = raw[b] < a_.x_logvar_min ? 0 : 0.5 * w_[b] * (double(F_) - s * precision[b]);
      if (spread_ == Spread::scalar)
        grad += g;
      else
        store_run<double>(grad_logvar_.base + b * grad_logvar_.stride_b * grad_logvar_.item,
                          grad_logvar_.dtype, 1, 1, &g);
    }
    if (a_.grad_x_logvar && spread_ == Spread::scalar)
      store_run<double>(a_.grad_x_logvar.data, a_.grad_x_logvar.dtype, 1, 1, &grad);
  }

  void rows_iso_d() {
    auto finish = [&](int64_t b) {
      const double s = out_.square[b] = row_sum(b);
      out_.nll[b] = IsoD::row_value(s, double(F_), a_.eps);
      return w_[b] * IsoD::factor(s, double(F_), a_.eps) / double(L_);
    };
    if (!has_grad_ ||
        (B_ < a_.threads && a_.threads > 1)) {  // few samples: share each one's chunks
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

  void rows_iso_i() {
    for_chunks([&](int64_t b, int64_t k) { return square_piece(b, k * CHUNK, chunk_length(k)); });
    const double D = double(F_), n = double(B_);
    double total = 0;
    for (int64_t b = 0; b < B_; ++b) total += out_.square[b] = row_sum(b);
    if (B_ == 0) return;
    const double tiny = double(std::numeric_limits<C>::min()), mean = total / (n * D);
    const double v = IsoI::guarded(mean, tiny);
    double weighted = 0;
    for (int64_t b = 0; b < B_; ++b) {
      out_.nll[b] = IsoI::row_value(v, out_.square[b], D);
      weighted += w_[b] * out_.square[b];
    }
    if (!has_grad_) return;
    // uneven upstream weights also move the shared estimate; even ones cancel exactly
    const double shared = w_.rows.empty() ? 0 : (w_.sum(B_) - weighted / (D * v)) / n;
    std::vector<double> factor(B_);
    // below the guard there is no residual to speak of, and w / v may overflow
    for (int64_t b = 0; b < B_; ++b)
      factor[b] = mean < tiny ? 0 : (w_[b] + shared) / v / double(L_);
    write_rows(factor);
  }

  // Backwards: what the first pass read last is still in cache.
  void write_rows(const std::vector<double>& factor) {
    const int64_t last = B_ * chunks_ - 1;
    parallel_for(B_ * chunks_, elements(), a_.threads, [&](int64_t back) {
      const int64_t t = last - back;
      const int64_t b = t / chunks_, k = t % chunks_;
      scale_piece(b, k * CHUNK, chunk_length(k), factor[b]);
    });
  }

  // ---------------------------------------------------------------- one factor per feature

  // A tile of `width` features and all samples (or a chunk of them) stays in cache between the pass
  // that sums r^2 down the columns and the pass that writes the gradients.
  void columns() {
    const bool known = a_.objective == Objective::gaussian;
    const int64_t rows = L_ * B_;
    const bool fits = rows <= TILE_ROWS;
    int64_t width = BLOCK;
    if (fits && !known)
      width = std::clamp<int64_t>(
          TILE_BYTES / (2 * sizeof(C) * std::max<int64_t>(rows, 1)) / 64 * 64, 64, BLOCK);
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
        at.store(factor.data() + f0 + i,
                 VAEKERN_ISA::exp<C>(-select<C>(l < bound, splat(bound), l)));
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
        write_columns(b, f0, n, factor.data() + f0, shared.empty() ? nullptr : shared.data() + f0,
                      q, wq, nll, square);
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
  void finish_known(int64_t f0, int64_t n, const C* factor, const C* sums, const C* weighted_sums,
                    double& value) const {
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

  void finish_diag_i(int64_t f0, int64_t n, C* factor, C* shared, const C* sums,
                     const C* weighted_sums, double& value) {
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
  template <int R>
  void square_columns(int64_t l, int64_t b, int64_t f0, int64_t n, C* q, C* wq) const {
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
  void write_columns(int64_t b, int64_t f0, int64_t n, const C* factor, const C* shared, C* q,
                     C* wq, double* nll, double* square) const {
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

  // ---------------------------------------------------------------- one factor per element

  void elements_known() {
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
  double known_fused(int64_t b, int64_t k, C bound, double& total) const {
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

  void elements_diag_d() {
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
  double diag_d_fused(int64_t b, int64_t k, C eps, LogProduct<C>& logs) const {
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
  template <class PerBlock>
  void for_blocks(int64_t b, int64_t k, PerBlock per_block) const {
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

  const LossArgs& a_;
  const Weights& w_;
  Plan plan_;
  View x_hat_, x_, logvar_, grad_x_hat_, grad_x_, grad_logvar_, variance_;
  Spread spread_ = Spread::scalar;
  int64_t B_ = 0, L_ = 1, F_ = 1, chunks_ = 1;
  bool samples_axis_ = false, has_grad_ = false, stream_ = false;
  std::vector<double> partial_;
  Rows<C> out_;
};

}  // namespace VAEKERN_ISA
}  // namespace vaekern
