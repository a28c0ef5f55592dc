// The reconstruction term, value and gradients, for every objective.
//
// An objective differs in the group over which it takes its statistic (terms.h), and that decides
// the order of the work: rows.h (one factor per sample, or one for all), columns.h (one per
// feature) and elements.h (one per element). Every gradient is d NLL / d x_hat = w_b a r
// act'(x_hat) / L.
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
      spread_ = spread_of(a.x_logvar, a.x);
      const int logvar_lead = lead_of(a.x_logvar, spread_, a.x);
      if (spread_ != Spread::scalar) {
        plan_.add(logvar_, a.x_logvar, logvar_lead);
        plan_.add(grad_logvar_, a.grad_x_logvar, logvar_lead);
      }
    }
    if (a.objective == Objective::diag_i && a.value) {
      void* data = nullptr;
      if (a.statistics) {
        data = static_cast<C*>(a.statistics.data) + 3 * B_;
      } else {
        out_.variance_storage.resize(plan_.F);
        data = out_.variance_storage.data();
      }
      out_.variance = static_cast<C*>(data);
      const Tensor v = variance_of(a.x, data, dtype_of<C>);
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
        total += sums.total(m);
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
        total += sums.total(m);
        if (grad_x_hat_.present) plan_.template write<C>(grad_x_hat_, l, b, f, m, g);
      }
      if (gx_wanted) plan_.template write<C>(grad_x_, 0, b, f, m, gx);
    }
    return total;
  }

  // ---------------------------------------------------------------- rows.h

  int64_t chunk_length(int64_t k) const { return std::min(CHUNK, F_ - k * CHUNK); }

  // partial_[b, k] = per_chunk(b, k)
  template <class PerChunk>
  void for_chunks(PerChunk per_chunk) {
    partial_.assign(B_ * chunks_, 0);
    parallel_for(B_ * chunks_, elements(), a_.threads,
                 [&](int64_t t) { partial_[t] = per_chunk(t / chunks_, t % chunks_); });
  }

  // E_L |r_b|^2, in the chunks' order
  double row_sum(int64_t b) const {
    double s = 0;
    for (int64_t k = 0; k < chunks_; ++k) s += partial_[b * chunks_ + k];
    return s / double(L_);
  }

  void rows_known();
  void rows_iso_d();
  void rows_iso_i();
  void write_rows(const std::vector<double>& factor);

  // ---------------------------------------------------------------- columns.h

  void columns();
  void finish_known(int64_t f0, int64_t n, const C* factor, const C* sums, const C* weighted_sums,
                    double& value) const;
  void finish_diag_i(int64_t f0, int64_t n, C* factor, C* shared, const C* sums,
                     const C* weighted_sums, double& value);
  template <int R>
  void square_columns(int64_t l, int64_t b, int64_t f0, int64_t n, C* q, C* wq) const;
  void write_columns(int64_t b, int64_t f0, int64_t n, const C* factor, const C* shared, C* q,
                     C* wq, double* nll, double* square) const;

  // ---------------------------------------------------------------- elements.h

  void elements_known();
  double known_fused(int64_t b, int64_t k, C bound, double& total) const;
  void elements_diag_d();
  double diag_d_fused(int64_t b, int64_t k, C eps, LogProduct<C>& logs) const;
  template <class PerBlock>
  void for_blocks(int64_t b, int64_t k, PerBlock per_block) const;

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
