// Singular values and right singular vectors of a batch: J^T J = L L^T, then rotations of L's
// columns, L Q = V diag(S). The Gram matrix of float32 data is exact but for the additions; float64
// data, whose squares would lose half the digits, are reduced by reflections instead.
#include <algorithm>
#include <vector>

#include "jacobi.h"
#include "parallel.h"
#include "tables.h"
#include "triangle.h"

namespace vaekern {
namespace VAEKERN_ISA {

namespace {

constexpr double SIGN_TIE = 1e-6;  // as in vaekern/reference_linalg.py
constexpr int64_t SLICE = 4096;    // rows summed by one task where matrices are few
constexpr double PLAUSIBLE =
    10;  // (largest cosine in a sweep)^2 / (that asked for): one more may not be needed
constexpr double ANGLE_OF_SINGLE = 1e-11;  // largest cosine left between columns of float32 data
constexpr int HEADROOM = 240;              // float64 data are scaled to at most 2^HEADROOM
constexpr int LOCKSTEP = 2;                // small matrices rotated at the same time
constexpr int LOCKSTEP_COLUMNS = 32;       // ... while all of them fit the L1 cache

int panel_rows(int ld) { return std::max(32, 1024 / ld); }

bool finite(double v) { return v - v == 0; }

// Doubles that start at a cache line
class Buffer {
 public:
  explicit Buffer(int64_t size) : memory_(size_t(size) + 8) {
    const auto at = reinterpret_cast<uintptr_t>(memory_.data());
    data_ = memory_.data() + (64 - at % 64) % 64 / sizeof(double);
  }
  Buffer(const Buffer&) = delete;
  double* data() const { return data_; }
  double& operator[](int64_t i) const { return data_[i]; }

 private:
  std::vector<double> memory_;
  double* data_;
};

// A few matrices at a time, in scratch memory of its own.
class Solver {
 public:
  Solver(const RightSvdArgs& args)
      : args_(args),
        m_(args.J.shape[1]),
        d_(int(args.J.shape[2])),
        ld_(padded(d_)),
        circle_(d_),
        panel_(int64_t(panel_rows(ld_)) * ld_),
        sum_(int64_t(ld_) * ld_),
        part_(int64_t(ld_) * ld_),
        rows_(LOCKSTEP * circle_.size()),
        gram_(circle_.gram_size()),
        scratch_(4 * ld_) {}

  int64_t gram_size() const { return int64_t(ld_) * ld_; }

  // sum [ld, ld] = the upper triangle of J^T J over one slice of rows
  void gram(int64_t b, int64_t slice, double* sum) {
    const MatrixView J(args_.J, b);
    std::fill(sum, sum + gram_size(), 0.0);
    const int64_t last = std::min((slice + 1) * SLICE, m_);
    for (int64_t row = slice * SLICE; row < last; row += panel_rows(ld_)) {
      const int count = int(std::min<int64_t>(panel_rows(ld_), last - row));
      pack(J, row, count, panel_.data(), ld_);
      const int64_t next = row + count;
      add_gram(panel_.data(), ld_, count, ld_, sum, ld_,
               Ahead(J, next, std::min(next + panel_rows(ld_), last)));
    }
  }

  // Matrices [first, last)
  void solve(int64_t first, int64_t last) {
    const int together = d_ <= LOCKSTEP_COLUMNS ? LOCKSTEP : 1;
    for (int64_t b = first; b < last; b += together) {
      const int count = int(std::min<int64_t>(together, last - b));
      State state[LOCKSTEP];
      for (int n = 0; n < count; ++n) state[n] = factor(b + n, rows(n));
      finish(b, count, state);
    }
  }

  // One matrix whose slices' Gram matrices are there: they are added in the order that factor()
  // adds them in.
  void solve_parts(int64_t b, const double* parts, int64_t slices) {
    std::copy(parts, parts + gram_size(), sum_.data());
    for (int64_t t = 1; t < slices; ++t) add(parts + t * gram_size());
    State state[LOCKSTEP];
    state[0] = factor_sum(rows(0));
    finish(b, 1, state);
  }

 private:
  // What became of a matrix. One that is not finite stays zero and converged.
  struct State {
    bool finite = false, converged = true;
    int exponent = 0;  // of the scale that was taken out
    int64_t sweeps = 0;
  };

  auto columns_of(double* L) const {
    return [this, L](int k, const double* l) {
      double* column = L + circle_.place(k);
      for (int j = 0; j < d_; ++j) column[circle_.row(j)] = l[j];
    };
  }

  double* rows(int n) const { return rows_.data() + n * circle_.size(); }
  void clear_sum() { std::fill(sum_.data(), sum_.data() + gram_size(), 0.0); }
  void add(const double* part) {
    for (int64_t i = 0; i < gram_size(); ++i) sum_[i] += part[i];
  }

  State factor(int64_t b, double* L) {
    if (args_.J.dtype == DType::f64) return factor_double(b, L);
    gram(b, 0, sum_.data());
    for (int64_t t = 1; t < ceil_div(m_, SLICE); ++t) {
      gram(b, t, part_.data());
      add(part_.data());
    }
    return factor_sum(L);
  }

  State factor_sum(double* L) {
    circle_.clear(L);
    double trace = 0;
    for (int i = 0; i < d_; ++i) trace += sum_[int64_t(i) * ld_ + i];
    if (!finite(trace)) return State{};
    cholesky(sum_.data(), d_, ld_, scratch_.data(), columns_of(L));
    return State{true, false};
  }

  State factor_double(int64_t b, double* L) {
    circle_.clear(L);
    const MatrixView J(args_.J, b);
    double most = 0, nan = 0;
    panels(J, [&](int count) {
      for (int64_t i = 0; i < int64_t(count) * ld_; ++i) {
        most = std::max(most, std::fabs(panel_[i]));
        nan += panel_[i] - panel_[i];
      }
    });
    if (nan != 0 || !finite(most)) return State{};
    State state{true, false};
    if (most > 0) {
      std::frexp(most, &state.exponent);
      state.exponent -= HEADROOM;
    }
    // in two steps: 2^1300 is no number
    const double scale = std::ldexp(1.0, -state.exponent / 2);
    const double rest = std::ldexp(1.0, -state.exponent - -state.exponent / 2);
    clear_sum();
    panels(J, [&](int count) {
      for (int64_t i = 0; i < int64_t(count) * ld_; ++i) panel_[i] = panel_[i] * scale * rest;
      add_rows(sum_.data(), d_, ld_, panel_.data(), count, scratch_.data());
    });
    pivoted_orthogonalisation(sum_.data(), d_, ld_, scratch_.data(), columns_of(L));
    return state;
  }

  template <class Body>
  void panels(const MatrixView& J, Body body) {
    const int64_t step = panel_rows(ld_);
    for (int64_t row = 0; row < m_; row += step) {
      const int count = int(std::min(step, m_ - row));
      pack(J, row, count, panel_.data(), ld_);
      body(count);
    }
  }

  void finish(int64_t b, int count, State (&state)[LOCKSTEP]) {
    if (d_ <= LOCKSTEP_COLUMNS) {
      for (int n = count; n < LOCKSTEP; ++n) circle_.clear(rows(n));
      rotate<LOCKSTEP>(state);
    } else {
      rotate<1>(state);
    }
    for (int n = 0; n < count; ++n) {
      const int64_t turns = state[n].sweeps + 1;
      args_.status[b + n] = !state[n].finite ? 0 : state[n].converged ? turns : -turns;
      if (args_.V.dtype == DType::f64)
        write<double>(b + n, rows(n), state[n].exponent);
      else
        write<float>(b + n, rows(n), state[n].exponent);
    }
  }

  // Sweeps over the first N matrices until the columns of each are orthogonal.
  template <int N>
  void rotate(State (&state)[LOCKSTEP]) {
    const double angle = args_.J.dtype == DType::f64 ? d_ * EPSILON : ANGLE_OF_SINGLE;
    double* L[N];
    double tolerance[N];
    bool far[N];
    for (int n = 0; n < N; ++n) {
      L[n] = rows(n);
      tolerance[n] = angle * angle;
      far[n] = true;  // a first sweep before the first look
    }
    for (int64_t sweeps = 0;; ++sweeps) {
      bool done = true;
      for (int n = 0; n < N; ++n) {
        if (!state[n].converged && !far[n])
          state[n].converged = circle_.largest_cosine(L[n], gram_.data()) <= tolerance[n];
        if (!state[n].converged)
          state[n].sweeps = sweeps + 1;
        else
          tolerance[n] = std::numeric_limits<double>::infinity();  // rests while others turn
        done &= state[n].converged;
      }
      if (done) return;
      if (sweeps == MAX_SWEEPS) {
        for (int n = 0; n < N; ++n)
          state[n].sweeps = std::min<int64_t>(state[n].sweeps, MAX_SWEEPS);
        return;
      }
      circle_.sweep(L, tolerance, PLAUSIBLE * angle, far);
    }
  }

  template <class Out>
  void write(int64_t b, const double* L, int exponent) {
    Out* s = static_cast<Out*>(args_.S.data) + b * d_;
    Out* v = static_cast<Out*>(args_.V.data) + b * d_ * d_;
    double length[MAX_COLUMNS], most[MAX_COLUMNS], sign[MAX_COLUMNS], inverse[MAX_COLUMNS];
    int order[MAX_COLUMNS], place[MAX_COLUMNS], from[MAX_COLUMNS];
    for (int k = 0; k < d_; ++k) {
      place[k] = circle_.place(k);
      order[k] = k;
      length[k] = most[k] = sign[k] = 0;
    }
    for (int i = 0; i < d_; ++i) {
      const double* row = L + circle_.row(i);
      for (int k = 0; k < d_; ++k) length[k] += row[place[k]] * row[place[k]];
    }
    std::stable_sort(order, order + d_, [&](int i, int j) { return length[i] > length[j]; });

    double* basis = sum_.data();  // [d, ld], finished with
    int rank = 0;
    for (int k = 0; k < d_; ++k) {
      const double l = std::sqrt(length[order[k]]);
      s[k] = k < m_ ? Out(std::ldexp(l, exponent)) : Out(0);
      rank += l > 0;
      inverse[k] = l > 0 ? 1 / l : 0;
      from[k] = place[order[k]];
    }
    for (int i = 0; i < d_; ++i) {
      const double* row = L + circle_.row(i);
      for (int k = 0; k < d_; ++k) basis[int64_t(i) * ld_ + k] = row[from[k]] * inverse[k];
    }
    complete(basis, rank);
    for (int i = 0; i < d_; ++i)
      for (int k = 0; k < d_; ++k)
        most[k] = std::max(most[k], std::fabs(basis[int64_t(i) * ld_ + k]));
    for (int k = 0; k < d_; ++k) most[k] *= 1 - SIGN_TIE;
    for (int i = d_; i-- > 0;)  // backwards: the first of the largest has the last word
      for (int k = 0; k < d_; ++k) {
        const double value = basis[int64_t(i) * ld_ + k];
        sign[k] = std::fabs(value) >= most[k] ? (value < 0 ? -1.0 : 1.0) : sign[k];
      }
    for (int i = 0; i < d_; ++i)
      for (int k = 0; k < d_; ++k)
        v[int64_t(i) * d_ + k] = Out(basis[int64_t(i) * ld_ + k] * sign[k] + 0.0);
  }

  // Columns from `rank` on: each from the unit vector that the columns before it span least.
  void complete(double* basis, int rank) {
    double* fresh = scratch_.data();
    for (int k = rank; k < d_; ++k) {
      int best = 0;
      double least = 2;
      for (int i = 0; i < d_; ++i) {
        double spanned = 0;
        for (int j = 0; j < k; ++j)
          spanned += basis[int64_t(i) * ld_ + j] * basis[int64_t(i) * ld_ + j];
        if (spanned < least - 1e-9) {
          least = spanned;
          best = i;
        }
      }
      for (int i = 0; i < d_; ++i) fresh[i] = i == best;
      for (int twice = 0; twice < 2; ++twice)
        for (int j = 0; j < k; ++j) {
          double dot = 0;
          for (int i = 0; i < d_; ++i) dot += basis[int64_t(i) * ld_ + j] * fresh[i];
          for (int i = 0; i < d_; ++i) fresh[i] -= dot * basis[int64_t(i) * ld_ + j];
        }
      double norm = 0;
      for (int i = 0; i < d_; ++i) norm += fresh[i] * fresh[i];
      norm = std::sqrt(norm);
      for (int i = 0; i < d_; ++i) basis[int64_t(i) * ld_ + k] = fresh[i] / norm;
    }
  }

  const RightSvdArgs& args_;
  int64_t m_;
  int d_, ld_;
  Circle circle_;
  Buffer panel_, sum_, part_, rows_, gram_, scratch_;
};

}  // namespace

void right_svd(const RightSvdArgs& a) {
  const int64_t batch = a.J.shape[0], m = a.J.shape[1], d = a.J.shape[2];
  const int64_t slices = ceil_div(m, SLICE);
  if (batch < a.threads && slices > 1 && a.J.dtype != DType::f64) {  // few and tall
    Solver solver(a);
    Buffer parts(slices * solver.gram_size());
    for (int64_t b = 0; b < batch; ++b) {
      parallel_for(slices, m * d, a.threads,
                   [&](int64_t t) { Solver(a).gram(b, t, parts.data() + t * solver.gram_size()); });
      solver.solve_parts(b, parts.data(), slices);
    }
    return;
  }
  const int64_t length = std::max<int64_t>(LOCKSTEP, ceil_div(batch, 8 * int64_t(a.threads)));
  parallel_for(ceil_div(batch, length), batch * (m + 20 * d) * d, a.threads,
               [&](int64_t t) { Solver(a).solve(t * length, std::min((t + 1) * length, batch)); });
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
