// Every CPU kernel against naive loops in double, without Python or torch: meant to run under
// AddressSanitizer and UBSan. Exit code 1 and one line on the first difference.
//
//   check_core [seed [small]]     VAEKERN_ISA=baseline|avx2|avx512 chooses the build under test
//
// small: without the losses that are large enough for several threads.
//
// Buffers have exactly the size that their layout needs, so that one element too far is seen.
// Outputs are filled with NaN first and gaps between their elements must stay as they were; inputs
// must not change; two threads must leave the same bits as one.
//
// Tolerances are derived, not chosen: the naive loops compute with E, a value and the first-order
// bound of what rounding in the kernel's arithmetic (unit roundoff U) can do to it. A kernel may
// differ by twice that bound plus its one rounding to the output's dtype.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core.h"

using namespace vaekern;

namespace {

using Shape = std::vector<int64_t>;
constexpr double LOG_TWO_PI = 1.8378770664093454836;

std::string context;  // the case under test, for the message

[[noreturn]] void fail(const std::string& what) {
  std::printf("check_core [%s]: %s: %s\n", kernels().isa, context.c_str(), what.c_str());
  std::exit(1);
}

[[noreturn]] void fail_value(const char* name, size_t i, double got, double want,
                             double tolerance) {
  char text[200];
  std::snprintf(text, sizeof text, "%s[%zu] is %.17g, not %.17g +- %.2g", name, i, got, want,
                tolerance);
  fail(text);
}

// ------------------------------------------------------------------ random numbers

uint64_t state = 1;
uint64_t draw() {  // xorshift64*
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (state * 0x2545F4914F6CDD1DULL) >> 16;
}
int64_t below(int64_t n) { return int64_t(draw() % uint64_t(n)); }
bool coin(int one_in = 2) { return below(one_in) == 0; }
double uniform(double lo, double hi) {
  return lo + (hi - lo) * double(draw()) / double(1ULL << 48);
}

// ------------------------------------------------------------------ dtypes

struct Format {
  const char* name;
  int bytes, mantissa, smallest;  // mantissa bits, exponent of the smallest normal number
};
const Format& format(DType d) {
  static const Format all[] = {
      {"f32", 4, 23, -126}, {"f64", 8, 52, -1022}, {"bf16", 2, 7, -126}, {"f16", 2, 10, -14}};
  return all[int(d)];
}

uint16_t encode16(double v, DType d) {  // round to nearest, ties to even
  const Format& f = format(d);
  const uint16_t infinity = uint16_t(((1 << (15 - f.mantissa)) - 1) << f.mantissa);
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  if (std::isnan(v)) return sign | infinity | uint16_t(1 << (f.mantissa - 1));
  if (std::isinf(v)) return sign | infinity;
  v = std::fabs(v);
  const int exponent = v == 0 ? f.smallest : std::max(std::ilogb(v), f.smallest);
  const double steps = std::nearbyint(std::ldexp(v, f.mantissa - exponent));
  // steps counts units of the last place; a carry runs into the exponent as it should
  const double bits = steps + std::ldexp(double(exponent - f.smallest), f.mantissa);
  return sign | uint16_t(std::min(bits, double(infinity)));
}

double decode16(uint16_t h, DType d) {
  const Format& f = format(d);
  const int field = (h & 0x7fff) >> f.mantissa, fraction = h & ((1 << f.mantissa) - 1);
  double v;
  if (field == (1 << (15 - f.mantissa)) - 1)
    v = fraction ? std::nan("") : INFINITY;
  else if (field == 0)
    v = std::ldexp(double(fraction), f.smallest - f.mantissa);
  else
    v = std::ldexp(1 + std::ldexp(double(fraction), -f.mantissa), f.smallest + field - 1);
  return h & 0x8000 ? -v : v;
}

void put(char* p, DType d, double v) {
  const float single = float(v);
  const uint16_t half = format(d).bytes == 2 ? encode16(v, d) : uint16_t(0);
  std::memcpy(p,
              d == DType::f64   ? (void*)&v
              : d == DType::f32 ? (void*)&single
                                : (void*)&half,
              size_t(format(d).bytes));
}

double get(const char* p, DType d) {
  double v;
  float single;
  uint16_t half;
  if (d == DType::f64) return std::memcpy(&v, p, 8), v;
  if (d == DType::f32) return std::memcpy(&single, p, 4), single;
  return std::memcpy(&half, p, 2), decode16(half, d);
}

// ------------------------------------------------------------------ strided arrays

enum Layout { CONTIGUOUS, TRANSPOSED, CHANNELS_LAST, SLICED, PITCHED, MISALIGNED, EXPANDED };
const char* const LAYOUTS[] = {"contiguous", "transposed", "channels_last", "sliced",
                               "pitched",    "misaligned", "expanded"};

// A tensor and the memory it lies in, of exactly the size it needs.
class Array {
 public:
  Tensor t;
  std::vector<double> v;  // inputs: the values in logical, row-major order

  Array() = default;
  Array(const Shape& shape, DType dtype, Layout layout) {
    const int n = int(shape.size());
    t.present = true;
    t.dtype = dtype;
    t.ndim = n;
    std::vector<int> order;  // from the slowest axis to the fastest
    for (int k = 0; k < n; ++k) order.push_back(layout == TRANSPOSED ? n - 1 - k : k);
    if (layout == CHANNELS_LAST && n >= 3)
      std::rotate(order.begin() + 1, order.begin() + 2, order.end());
    int64_t step = layout == SLICED ? 2 : 1, last = 0;
    for (int k = n - 1; k >= 0; --k) {
      const int axis = order[size_t(k)];
      t.shape[axis] = shape[size_t(axis)];
      t.stride[axis] = step;
      step *= std::max<int64_t>(shape[size_t(axis)], 1);
      if ((layout == PITCHED || layout == SLICED) && k == n - 1) step += 3;
    }
    if (layout == EXPANDED && n) t.stride[0] = 0;
    for (int k = 0; k < n; ++k) last += (t.shape[k] - 1) * t.stride[k];
    const size_t skip = layout == MISALIGNED ? 1 : 0, item = size_t(format(dtype).bytes);
    bytes_ = t.numel() ? (size_t(last) + 1 + skip) * item : 0;
    void* p = nullptr;
    if (bytes_ && posix_memalign(&p, 64, bytes_)) fail("out of memory");
    memory_.reset(static_cast<char*>(p), std::free);
    t.data = bytes_ ? memory_.get() + skip * item : nullptr;
    poison();
  }

  // `next(i)`: the i-th element in logical order
  template <class Next>
  static Array input(const Shape& shape, DType dtype, Layout layout, Next next) {
    Array a(shape, dtype, layout);
    a.each([&](int64_t i, char* p) { put(p, dtype, next(i)); });
    a.v = a.values();
    a.before_.assign(a.memory_.get(), a.memory_.get() + a.bytes_);
    return a;
  }

  void poison() {
    if (bytes_) std::memset(memory_.get(), 0xff, bytes_);  // NaN in every dtype
  }
  std::vector<double> values() const {
    std::vector<double> out(size_t(t.numel()));
    each([&](int64_t i, char* p) { out[size_t(i)] = get(p, t.dtype); });
    return out;
  }
  std::vector<char> bits() const { return {memory_.get(), memory_.get() + bytes_}; }
  bool changed() const { return !before_.empty() && bits() != before_; }
  bool gaps_untouched() const {
    std::vector<char> all = bits();
    each([&](int64_t, char* p) {
      std::memset(all.data() + (p - memory_.get()), 0xff, size_t(format(t.dtype).bytes));
    });
    return std::all_of(all.begin(), all.end(), [](char c) { return c == char(0xff); });
  }

 private:
  template <class Body>
  void each(Body body) const {
    int64_t index[MAX_DIMS] = {}, offset = 0;
    const int64_t n = t.numel();
    for (int64_t i = 0; i < n; ++i) {
      body(i, static_cast<char*>(t.data) + offset * format(t.dtype).bytes);
      for (int k = t.ndim - 1; k >= 0; --k) {
        offset += t.stride[k];
        if (++index[k] < t.shape[k]) break;
        offset -= index[k] * t.stride[k];
        index[k] = 0;
      }
    }
  }

  std::shared_ptr<char> memory_;
  size_t bytes_ = 0;
  std::vector<char> before_;
};

// ------------------------------------------------------------------ values with error bounds

double U = 0;      // unit roundoff of the kernel's arithmetic
double CHAIN = 0;  // additions in a row in that arithmetic: a block of 2048 over 4 narrow vectors

void set_arithmetic(bool wide) {
  U = std::ldexp(1.0, wide ? -53 : -24);
  CHAIN = 2048 / (wide ? 8 : 16) + 16;
}

struct E {
  double v = 0, e = 0;
  E() = default;
  E(double value, double error = 0) : v(value), e(error) {}
};
E rounded(double v, double e) { return {v, e + U * std::fabs(v)}; }
E operator+(E a, E b) { return rounded(a.v + b.v, a.e + b.e); }
E operator-(E a, E b) { return rounded(a.v - b.v, a.e + b.e); }
E operator*(E a, E b) {
  return rounded(a.v * b.v, std::fabs(a.v) * b.e + std::fabs(b.v) * a.e + a.e * b.e);
}
E operator/(E a, E b) {
  return rounded(a.v / b.v, (a.e + std::fabs(a.v / b.v) * b.e) / std::fabs(b.v));
}
E log(E a) { return {std::log(a.v), a.e / a.v + 2 * U}; }
E exp(E t) { return {std::exp(t.v), std::exp(t.v) * (t.e + 4 * U)}; }
// where nothing cancels, relative to the result; else to what is subtracted
bool near(E t) { return std::fabs(t.v) < 0.34; }
E minus_one(E t) {
  const double m = std::expm1(t.v), e = std::exp(t.v);
  return {m, e * t.e + 6 * U * (near(t) ? std::fabs(m) : e + 1)};
}
E excess(E t) {  // e^t - 1 - t
  double v = std::expm1(t.v) - t.v;
  if (near(t)) {
    v = 0;
    for (int n = 20; n >= 2; --n) v = (v + 1) * t.v / n;
    v *= t.v;  // t^2/2 (1 + t/3 (1 + ...))
  }
  return {v, std::fabs(std::expm1(t.v)) * t.e +
                 6 * U * (near(t) ? v : std::exp(t.v) + 1 + std::fabs(t.v))};
}

class Sum {
 public:
  void add(E x) {  // Neumaier: the naive sum itself is exact to a rounding
    const double t = v_ + x.v;
    low_ += std::fabs(v_) >= std::fabs(x.v) ? (v_ - t) + x.v : (x.v - t) + v_;
    v_ = t;
    e_ += x.e;
    size_ += std::fabs(x.v);
  }
  E total(double chain = CHAIN) const { return {v_ + low_, e_ + chain * U * size_}; }

 private:
  double v_ = 0, low_ = 0, e_ = 0, size_ = 0;
};

void compare(const char* name, const Array& got, const std::vector<E>& want) {
  const std::vector<double> values = got.values();
  if (values.size() != want.size()) fail(std::string(name) + " has the wrong size");
  const Format& f = format(got.t.dtype);
  const double u = std::ldexp(1.01, -f.mantissa - 1),
               floor = std::ldexp(1.0, f.smallest - f.mantissa);
  for (size_t i = 0; i < want.size(); ++i) {
    const double tolerance = 2 * want[i].e + u * std::fabs(want[i].v) + floor;
    if (std::fabs(values[i] - want[i].v) <= tolerance) continue;
    // a half precision gradient past the largest half is infinite, as PyTorch's is
    if (got.t.dtype == DType::f16 && std::fabs(want[i].v) + tolerance >= 65520 &&
        values[i] == std::copysign(INFINITY, want[i].v))
      continue;
    fail_value(name, i, values[i], want[i].v, tolerance);
  }
  if (!got.gaps_untouched()) fail(std::string(name) + ": memory between its elements was written");
}

// ------------------------------------------------------------------ the loss

enum Spread { NUMBER, SAMPLE, FEATURE, ELEMENT };
enum { X_HAT, X, X_LOGVAR, MU, LOGVAR, TRIL, PRIOR_MU, PRIOR_LOGVAR, INPUTS };
const char* const INPUT_NAMES[] = {"x_hat",  "x",          "x_logvar", "mu",
                                   "logvar", "scale_tril", "prior_mu", "prior_logvar"};

struct Loss {
  LossArgs a;
  Spread spread = NUMBER;
  int64_t B = 0, L = 1, F = 1, d = 1;
  Array in[INPUTS], grad[INPUTS], upstream, beta, value, statistics, last, running;
  std::vector<double> running_before;
};

bool in_columns(const Loss& c) {
  return c.a.objective == Objective::diag_i ||
         (c.a.objective == Objective::gaussian && c.a.x_logvar.numel() != 1 &&
          c.spread == FEATURE && !(c.B == 1 && c.a.x_logvar.ndim == c.a.x.ndim));
}

struct Expected {
  std::vector<E> nll, square, kl, dims, variance, grad[INPUTS];
};

E activated(double t, Activation act, E& slope) {
  slope = 1.0;
  if (act == Activation::identity) return t;
  const double e = std::exp(-std::fabs(t)), e2 = e * e;
  const bool sigmoid = act == Activation::sigmoid;
  const double s = sigmoid ? e / ((1 + e) * (1 + e)) : 4 * e2 / ((1 + e2) * (1 + e2));
  const double y = sigmoid ? (t < 0 ? e : 1) / (1 + e) : std::tanh(t);
  slope = {s, 16 * U * s};
  return {y, 10 * U * std::fabs(y)};
}

void naive_reconstruction(const Loss& c, const std::vector<E>& w, Expected& out) {
  const int64_t B = c.B, L = c.L, F = c.F;
  const size_t n = size_t(B * F), samples = size_t(B), width = size_t(F);
  const bool even = c.a.reduction != Reduction::none || !c.a.upstream;
  auto at = [&](int64_t b, int64_t i) { return size_t(b * F + i); };
  std::vector<E> r(n * size_t(L)), slope(r.size()), q(n), factor(n);
  for (size_t k = 0; k < r.size(); ++k)
    r[k] = activated(c.in[X_HAT].v[k], c.a.activation, slope[k]) - E(c.in[X].v[k % n]);
  for (size_t k = 0; k < n; ++k) {
    Sum s;
    for (size_t l = 0; l < size_t(L); ++l) s.add(r[l * n + k] * r[l * n + k]);
    q[k] = s.total(double(L) + 4) / E(double(L));
  }
  std::vector<E> row(samples), column(width);
  Sum everything;
  for (int64_t b = 0; b < B; ++b) {
    Sum s;
    for (int64_t i = 0; i < F; ++i) s.add(q[at(b, i)]);
    everything.add(row[size_t(b)] = s.total());
  }
  for (int64_t i = 0; i < F; ++i) {
    Sum s;
    for (int64_t b = 0; b < B; ++b) s.add(q[at(b, i)]);
    column[size_t(i)] = s.total(double(L * B) + 4) / E(double(std::max<int64_t>(B, 1)));
  }
  const E mean = everything.total() / E(double(std::max<int64_t>(B * F, 1)));
  const double D = double(F);
  out.square = row;
  out.nll.assign(size_t(B), E());
  out.variance = c.a.objective == Objective::diag_i ? column : std::vector<E>{mean};
  if (!B) out.variance.assign(out.variance.size(), E());

  switch (c.a.objective) {
    case Objective::gaussian: {
      out.grad[X_LOGVAR].assign(c.in[X_LOGVAR].v.size(), E());
      std::vector<Sum> gradient(c.in[X_LOGVAR].v.size());
      double size = 0;
      for (int64_t b = 0; b < B; ++b) {
        Sum s;
        for (int64_t i = 0; i < F; ++i) {
          const size_t k = c.spread == NUMBER    ? 0
                           : c.spread == SAMPLE  ? size_t(b)
                           : c.spread == FEATURE ? size_t(i)
                                                 : at(b, i);
          const double raw = c.in[X_LOGVAR].v[k];
          const E lv = std::max(raw, c.a.x_logvar_min), precision = exp(E(-lv.v));
          const E scaled = q[at(b, i)] * precision;
          s.add(scaled + lv);
          size += scaled.v;
          if (raw >= c.a.x_logvar_min) {
            gradient[k].add(E(0.5) * w[size_t(b)]);
            gradient[k].add(E(-0.5) * w[size_t(b)] * scaled);
          } else {
            gradient[k].add(0.0);
          }
          factor[at(b, i)] = w[size_t(b)] * precision;
        }
        out.nll[size_t(b)] = E(0.5) * (s.total() + E(D * LOG_TWO_PI));
      }
      for (size_t k = 0; k < gradient.size(); ++k)
        out.grad[X_LOGVAR][k] = gradient[k].total(double(L * B) + CHAIN);
      // down the columns, a row's own value is its departure from the batch's mean
      if (in_columns(c))
        for (E& e : out.nll) e.e += 2 * (double(L * B) + CHAIN) * U * size / double(B);
      break;
    }
    case Objective::iso_i: {
      Sum shared;
      for (size_t b = 0; b < size_t(B); ++b) {
        out.nll[b] =
            E(0.5) * (E(D) * (log(mean) + E(1 + LOG_TWO_PI)) + (row[b] - E(D) * mean) / mean);
        shared.add(w[b] * (E(D) / mean));
        shared.add(E(-1) * w[b] * (row[b] / (mean * mean)));
      }
      for (int64_t k = 0; k < B * F; ++k) {
        factor[size_t(k)] = w[size_t(k / F)] / mean;
        if (!even) factor[size_t(k)] = factor[size_t(k)] + shared.total() / E(double(B) * D);
      }
      break;
    }
    case Objective::iso_d:
      for (int64_t k = 0; k < B * F; ++k) {
        const size_t b = size_t(k / F);
        const E s = row[b] + E(c.a.eps);
        out.nll[b] = E(0.5 * D) * (log(s) + E(-std::log(D) + 1 + LOG_TWO_PI));
        factor[size_t(k)] = w[b] * (E(D) / s);
      }
      break;
    case Objective::diag_i: {
      std::vector<Sum> logs(samples), quotients(samples);
      double size = 0;
      for (int64_t i = 0; i < F; ++i) {
        const E v = column[size_t(i)], a = E(1) / (v + E(c.a.eps));
        Sum shared;
        for (int64_t b = 0; b < B; ++b) {
          shared.add(w[size_t(b)] * q[at(b, i)]);
          shared.add(E(-1) * w[size_t(b)] * v);
        }
        const E common = E(-1.0 / double(B)) * a * a * shared.total(double(L * B) + 8);
        for (int64_t b = 0; b < B; ++b) {
          logs[size_t(b)].add(log(v + E(c.a.eps)));
          quotients[size_t(b)].add(q[at(b, i)] * a);
          quotients[size_t(b)].add(E(-1) * v * a);
          factor[at(b, i)] = w[size_t(b)] * a;
          if (!even) factor[at(b, i)] = factor[at(b, i)] + common;
          size += (q[at(b, i)] * a).v;
        }
      }
      for (size_t b = 0; b < size_t(B); ++b) {
        const E own = logs[b].total(1) + E(D * (1 + LOG_TWO_PI)) + quotients[b].total();
        out.nll[b] = E(0.5) * own;
        out.nll[b].e += (double(L * B) + CHAIN) * U * size / double(B);
      }
      break;
    }
    case Objective::diag_d:
      for (int64_t b = 0; b < B; ++b) {
        Sum s;
        for (int64_t i = 0; i < F; ++i) {
          const E argument = q[at(b, i)] + E(c.a.eps);
          s.add(log(argument) + E(1 + LOG_TWO_PI));
          factor[at(b, i)] = w[size_t(b)] / argument;
        }
        out.nll[size_t(b)] = E(0.5) * s.total(1);
      }
      break;
    case Objective::none: break;
  }
  std::vector<Sum> gx(n);
  out.grad[X_HAT].resize(r.size());
  for (size_t k = 0; k < r.size(); ++k) {
    const E g = r[k] * (factor[k % n] / E(double(L)));
    out.grad[X_HAT][k] = g * slope[k];
    gx[k % n].add(E(-1) * g);
  }
  for (const Sum& s : gx) out.grad[X].push_back(s.total(double(L)));
  // totals of the column objectives are spread evenly where no row is asked for
  if (in_columns(c) && c.a.reduction != Reduction::none && B) {
    Sum nll, square;
    for (const E& e : out.nll) nll.add(e);
    for (const E& e : out.square) square.add(e);
    const double chain = double(L * B) + CHAIN;
    out.nll.assign(size_t(B), nll.total(chain) / E(double(B)));
    out.square.assign(size_t(B), square.total(chain) / E(double(B)));
  }
}

// `w`: what a KL of sample b (or of dimension i) is worth, beta included
void naive_kl(const Loss& c, const std::vector<E>& w, bool by_dimension, Expected& out) {
  const int64_t B = c.B, d = c.d;
  const size_t samples = size_t(B), width = size_t(d);
  auto weight = [&](int64_t b, int64_t i) { return w[size_t(by_dimension ? i : b)]; };
  std::vector<Sum> rows(samples), dims(width);
  for (int k : {MU, LOGVAR, TRIL, PRIOR_MU, PRIOR_LOGVAR}) out.grad[k].clear();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < d; ++i) {
      const size_t k = size_t(b * d + i);
      const E mu = c.in[MU].v[k], u = weight(b, i);
      E kl;
      if (c.a.scale_tril) {
        Sum s;
        s.add(mu * mu);
        s.add(-1.0);
        for (int64_t j = 0; j < d; ++j) {
          const E l = j <= i ? c.in[TRIL].v[k * size_t(d) + size_t(j)] : 0;
          s.add(l * l);
          const E g = i == j ? l - E(1) / l : l;
          out.grad[TRIL].push_back(j <= i ? u * g : E());
          if (i == j) s.add(E(-2) * log(l));
        }
        kl = E(0.5) * s.total(double(d) + 4);
        out.grad[MU].push_back(u * mu);
      } else {
        const double raw = c.in[LOGVAR].v[k];
        E t = std::min(std::max(raw, c.a.logvar_min), c.a.logvar_max), shift = mu, precision = 1;
        if (c.a.prior_mu) shift = shift - E(c.in[PRIOR_MU].v[k]);
        if (c.a.prior_logvar) {
          t = t - E(c.in[PRIOR_LOGVAR].v[k]);
          precision = exp(E(-c.in[PRIOR_LOGVAR].v[k]));
        }
        const E precise = shift * precision, square = shift * precise;
        kl = E(0.5) * (square + excess(t));
        out.grad[MU].push_back(u * precise);
        out.grad[PRIOR_MU].push_back(E(-1) * u * precise);
        const bool outside = raw < c.a.logvar_min || raw > c.a.logvar_max;
        out.grad[LOGVAR].push_back(outside ? E() : E(0.5) * u * minus_one(t));
        out.grad[PRIOR_LOGVAR].push_back(E(-0.5) * u * (square + minus_one(t)));
      }
      rows[size_t(b)].add(kl);
      dims[size_t(i)].add(kl);
    }
  for (const Sum& s : rows) out.kl.push_back(s.total());
  const double mean = 1.0 / double(std::max<int64_t>(B, 1));
  for (const Sum& s : dims) out.dims.push_back(E(mean) * s.total(double(B)));
}

// Poisons the outputs and calls with one thread, then with two, which must leave the same bits.
using Named = std::pair<const char*, Array*>;
template <class Call>
void run_twice(const std::vector<Named>& outputs, const std::vector<Named>& inputs, Call call) {
  std::vector<std::vector<char>> first;
  for (int threads = 1; threads <= 2; ++threads) {
    for (const Named& o : outputs) o.second->poison();
    call(threads);
    for (size_t k = 0; k < outputs.size(); ++k)
      if (threads == 1)
        first.push_back(outputs[k].second->bits());
      else if (outputs[k].second->bits() != first[k])
        fail(std::string(outputs[k].first) + " differs between one thread and two");
  }
  for (const Named& i : inputs)
    if (i.second->changed()) fail(std::string(i.first) + " was written");
}

Layout any_layout() { return Layout(below(7)); }
// An output has its input's dtype; its own layout, never overlapping.
Array output_like(const Array& in) {
  const Shape shape(in.t.shape, in.t.shape + in.t.ndim);
  return Array(shape, in.t.dtype, Layout(below(6)));
}

// F features on one, two or three axes (one of size 1), or on none
Shape features(int64_t F) {
  int64_t p = 2;
  while (p < F && F % p) ++p;
  if (F == 1 && coin(3)) return {};
  if (p >= F || coin(3)) return {F};
  return coin() ? Shape{p, F / p} : Shape{p, 1, F / p};
}
Shape operator+(Shape a, const Shape& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// The arguments of one loss: which parts, layouts, dtypes and gradients is left to chance.
Loss make_loss(Objective objective, Spread spread, Activation act, Reduction reduction, DType dtype,
               int64_t B, int64_t L, int64_t F, bool pure) {
  Loss c;
  c.B = B, c.L = L, c.F = F, c.spread = spread;
  c.a.objective = objective, c.a.activation = act, c.a.reduction = reduction;
  auto type = [&] { return pure || !coin(12) ? dtype : DType(below(4)); };
  auto layout = [&] { return pure ? (coin(4) ? PITCHED : CONTIGUOUS) : any_layout(); };
  auto in = [&](int k, const Shape& shape, auto next) {
    c.in[k] = Array::input(shape, type(), layout(), next);
  };
  if (objective != Objective::none) {
    const Shape f = features(F);
    const double reach = act == Activation::identity ? 2 : act == Activation::sigmoid ? 8 : 5;
    in(X, Shape{B} + f, [&](int64_t) { return uniform(act == Activation::sigmoid ? 0 : -1, 1); });
    const std::vector<double>& x = c.in[X].v;
    const bool equal_some = act == Activation::identity;  // r = 0
    in(X_HAT, (L > 1 || coin(3) ? Shape{L, B} : Shape{B}) + f, [&](int64_t i) {
      if (coin(20)) return equal_some ? x[size_t(i) % x.size()] : uniform(-40, 40);
      return uniform(-reach, reach);
    });
    if (objective == Objective::gaussian) {
      const Shape ones(f.size(), 1);
      const Shape shape = spread == NUMBER    ? (coin() ? Shape{} : Shape{1} + ones)
                          : spread == SAMPLE  ? Shape{B} + ones
                          : spread == FEATURE ? (coin() ? f : Shape{1} + f)
                                              : Shape{B} + f;
      in(X_LOGVAR, shape, [&](int64_t) { return uniform(-3, 2); });
      if (coin()) c.a.x_logvar_min = -2.5;
    }
    c.a.eps = coin() ? 1e-6 : 1e-3;
  }
  if (objective == Objective::none || !coin(3)) {
    const bool full = coin(3);
    const Shape f = full || objective != Objective::none ? Shape{1 + below(20)} : features(F);
    const Shape shape = Shape{B} + f;
    c.d = 1;
    for (int64_t n : f) c.d *= n;
    in(MU, shape, [&](int64_t) { return uniform(-2, 2); });
    if (full) {
      in(TRIL, shape + f, [&](int64_t i) {  // what lies above the diagonal is never read
        const int64_t row = i / c.d % c.d, column = i % c.d;
        return column > row ? NAN : column == row ? uniform(0.3, 2) : uniform(-1, 1);
      });
    } else {
      in(LOGVAR, shape, [&](int64_t) { return coin(3) ? uniform(-0.5, 0.5) : uniform(-6, 4); });
      if (coin()) c.a.logvar_min = -4, c.a.logvar_max = 3;
      if (coin(3)) in(PRIOR_MU, shape, [&](int64_t) { return uniform(-1, 1); });
      if (coin(3)) in(PRIOR_LOGVAR, shape, [&](int64_t) { return uniform(-1, 1); });
    }
    c.a.beta_number = coin() ? 1 : 0.25;
    if (coin(3)) c.beta = Array::input({}, type(), CONTIGUOUS, [](int64_t) { return 4.0; });
  }
  Tensor* const fields[] = {&c.a.x_hat,  &c.a.x,          &c.a.x_logvar, &c.a.mu,
                            &c.a.logvar, &c.a.scale_tril, &c.a.prior_mu, &c.a.prior_logvar};
  for (int k = 0; k < INPUTS; ++k) *fields[k] = c.in[k].t;
  c.a.beta = c.beta.t;
  return c;
}

void check_loss(Loss c, bool backward) {
  LossArgs& a = c.a;
  bool wide = false;
  for (const Array& t : c.in) wide |= t.t.present && t.t.dtype == DType::f64;
  set_arithmetic(wide);
  const DType dtype = wide ? DType::f64 : DType::f32;
  const bool dims = a.reduction == Reduction::dims, rows = a.reduction == Reduction::none;
  const int64_t D = a.x ? c.F : c.d;
  Shape mu_features(a.mu.shape + 1, a.mu.shape + std::max(a.mu.ndim, 1));

  std::vector<Named> outputs, inputs;
  Tensor* const grads[] = {&a.grad_x_hat,    &a.grad_x,           &a.grad_x_logvar,
                           &a.grad_mu,       &a.grad_logvar,      &a.grad_scale_tril,
                           &a.grad_prior_mu, &a.grad_prior_logvar};
  for (int k = 0; k < INPUTS; ++k) {
    if (!c.in[k].t.present) continue;
    inputs.push_back({INPUT_NAMES[k], &c.in[k]});
    if (coin(3)) continue;
    c.grad[k] = output_like(c.in[k]);
    *grads[k] = c.grad[k].t;
    outputs.push_back({INPUT_NAMES[k], &c.grad[k]});
  }
  bool first_step = false;
  if (backward) {
    const Shape shape = rows ? Shape{c.B} : dims ? mu_features : Shape{};
    // autograd expands a sum's upstream: stride 0
    c.upstream = Array::input(shape, dtype, dims ? CONTIGUOUS : any_layout(),
                              [](int64_t) { return uniform(-2, 2); });
    a.upstream = c.upstream.t;
    inputs.push_back({"upstream", &c.upstream});
  } else {
    c.value = Array(rows ? Shape{c.B} : dims ? mu_features : Shape{}, dtype, CONTIGUOUS);
    a.value = c.value.t;
    outputs.push_back({"value", &c.value});
    const int64_t variances = !a.x ? 0 : a.objective == Objective::diag_i ? c.F : 1;
    if (!dims && coin()) {
      c.statistics = Array({3 * c.B + variances}, dtype, CONTIGUOUS);
      a.statistics = c.statistics.t;
      outputs.push_back({"statistics", &c.statistics});
    }
    if (a.x && c.B && coin()) {
      first_step = coin();
      const DType kept = coin() ? DType::f32 : DType::f64;
      c.last = Array::input({variances}, kept, CONTIGUOUS, [](int64_t) { return 3.0; });
      c.running =
          Array::input({variances}, kept, CONTIGUOUS, [&](int64_t) { return first_step ? 0 : 2; });
      a.momentum = 0.25;
      a.last = c.last.t, a.running = c.running.t;
    }
  }
  const std::vector<char> last_before = c.last.bits(), running_before = c.running.bits();
  std::vector<char> last_after, running_after;
  run_twice(outputs, inputs, [&](int threads) {
    if (a.last) {
      std::memcpy(a.last.data, last_before.data(), last_before.size());
      std::memcpy(a.running.data, running_before.data(), running_before.size());
    }
    a.threads = threads;
    kernels().loss(a);
  });

  // what one unit of the result is worth to each sample's term
  double scale = 1;
  if (c.B && (a.reduction == Reduction::batchmean || dims)) scale = 1.0 / double(c.B);
  if (c.B && a.reduction == Reduction::mean) scale = 1.0 / (double(c.B) * double(D));
  const E beta = a.beta ? c.beta.v[0] : a.beta_number;
  std::vector<E> w, beta_w;
  for (int64_t k = 0; k < (dims ? D : c.B); ++k) {
    const double u = !backward ? 1 : c.upstream.v[rows || dims ? size_t(k) : 0];
    w.push_back({scale * u, 2 * U * std::fabs(scale * u)});
    beta_w.push_back(beta * w.back());
  }
  Expected want;
  if (a.x) naive_reconstruction(c, w, want);
  if (a.mu) naive_kl(c, beta_w, dims, want);
  for (int k = 0; k < INPUTS; ++k)
    if (c.grad[k].t.present)
      compare((std::string("grad_") + INPUT_NAMES[k]).c_str(), c.grad[k], want.grad[k]);
  if (backward) return;
  std::vector<E> value, statistics;
  if (!a.x) want.nll.assign(size_t(c.B), E()), want.square = want.nll;
  if (!a.mu) want.kl.assign(size_t(c.B), E());
  Sum total;
  for (size_t b = 0; b < size_t(c.B) && !dims; ++b) {
    const E term = want.nll[b] + (a.mu ? beta * want.kl[b] : E());
    total.add(term);
    if (rows) value.push_back(term);
  }
  if (!rows && !dims) value.push_back(E(scale) * total.total(double(c.B)));
  compare("value", c.value, dims ? want.dims : value);
  for (auto* part : {&want.nll, &want.square, &want.kl, &want.variance})
    statistics.insert(statistics.end(), part->begin(), part->end());
  if (a.statistics) compare("statistics", c.statistics, statistics);
  if (!a.last) return;
  std::vector<E> running;
  for (const E& v : want.variance) running.push_back(first_step ? v : E(2) + E(0.25) * (v - E(2)));
  // float32 buffers round once more on the way
  if (a.last.dtype == DType::f32)
    for (E& v : running) v.e += std::ldexp(std::fabs(v.v) + 4, -23);
  compare("last", c.last, want.variance);
  compare("running", c.running, running);
}

std::string describe(const Loss& c, bool backward) {
  static const char* const objectives[] = {"kl", "gaussian", "iso-i", "iso-d", "diag-i", "diag-d"};
  static const char* const spreads[] = {"number", "sample", "feature", "element"};
  static const char* const acts[] = {"identity", "sigmoid", "tanh"};
  static const char* const reductions[] = {"batchmean", "sum", "mean", "none", "dims"};
  std::string s = objectives[int(c.a.objective)];
  if (c.a.objective == Objective::gaussian) s += std::string("/") + spreads[c.spread];
  s += std::string(" ") + acts[int(c.a.activation)] + " " + reductions[int(c.a.reduction)];
  s += backward ? " backward" : " forward";
  s += " L=" + std::to_string(c.L) + " B=" + std::to_string(c.B) + " F=" + std::to_string(c.F) +
       " d=" + std::to_string(c.d);
  for (int k = 0; k < INPUTS; ++k) {
    if (!c.in[k].t.present) continue;
    s += std::string(" ") + INPUT_NAMES[k] + ":" + format(c.in[k].t.dtype).name + "(";
    for (int j = 0; j < c.in[k].t.ndim; ++j)
      s += (j ? "," : "") + std::to_string(c.in[k].t.shape[j]) + "@" +
           std::to_string(c.in[k].t.stride[j]);
    s += ")";
  }
  return s;
}

struct Variant {
  Objective objective;
  Spread spread;
};
const Variant VARIANTS[] = {
    {Objective::none, NUMBER},      {Objective::gaussian, NUMBER},  {Objective::gaussian, SAMPLE},
    {Objective::gaussian, FEATURE}, {Objective::gaussian, ELEMENT}, {Objective::iso_i, NUMBER},
    {Objective::iso_d, NUMBER},     {Objective::diag_i, NUMBER},    {Objective::diag_d, NUMBER}};

void run_loss(const Variant& v, Activation act, Reduction reduction, DType dtype, int64_t B,
              int64_t L, int64_t F, bool pure) {
  const bool backward = coin();
  Loss c = make_loss(v.objective, v.spread, act, reduction, dtype, B, L, F, pure);
  context = describe(c, backward);
  check_loss(c, backward);
}

// Every variant, activation, reduction and dtype; sizes and rows go round beside them.
void every_loss() {
  const int64_t sizes[] = {1, 3, 15, 16, 17, 63, 784, 2047, 2049, 16385};
  const int64_t rows[] = {300, 200, 5, 2, 1, 0};
  int64_t turn = 0;
  for (const Variant& v : VARIANTS)
    for (int act = 0; act < (v.objective == Objective::none ? 1 : 3); ++act)
      for (int reduction = 0; reduction < (v.objective == Objective::none ? 5 : 4); ++reduction)
        for (int dtype = 0; dtype < 4; ++dtype)
          for (int repeat = 0; repeat < 2; ++repeat, ++turn) {
            const int64_t F = sizes[turn % 10], L = coin(3) ? 3 : 1;
            int64_t r = below(6);
            while (r < 4 && L * rows[r] * F > 20000) ++r;
            run_loss(v, Activation(act), Reduction(reduction), DType(dtype), rows[r], L, F, false);
          }
}

// Enough elements for several threads, for stores past the caches and for every way through the
// rows.
void large_losses() {
  struct {
    int64_t B, L, F;
  } const sizes[] = {{1, 1, 100003}, {17, 1, 16384}, {300, 1, 400}, {60, 4, 512}};
  int64_t turn = int64_t(draw() % 2);
  for (const Variant& v : VARIANTS) {
    ++turn;
    for (const auto& s : sizes)
      run_loss(v, coin(4) ? Activation::tanh : Activation::identity,
               turn++ % 2 ? Reduction::batchmean : Reduction::none,
               coin(4) ? DType::f64 : DType::f32, s.B, s.L, s.F, true);
  }
}

// ------------------------------------------------------------------ draws

void check_sample(DType dtype, int64_t B, int64_t L, int64_t F, bool full) {
  auto type = [&] { return coin(12) ? DType(below(4)) : dtype; };
  const Shape f = full ? Shape{std::min<int64_t>(F, 20)} : features(F), shape = Shape{B} + f;
  const Shape drawn = (L > 1 || coin() ? Shape{L} : Shape{}) + shape;
  int64_t d = 1;
  for (int64_t n : f) d *= n;
  auto symmetric = [](int64_t) { return uniform(-2, 2); };
  Array mu = Array::input(shape, type(), any_layout(), symmetric), spread;
  if (full)
    spread = Array::input(shape + f, type(), any_layout(), [&](int64_t i) {
      const int64_t row = i / d % d, column = i % d;
      return column > row ? NAN : column == row ? uniform(0.3, 2) : uniform(-1, 1);
    });
  else
    spread = Array::input(shape, type(), any_layout(), [](int64_t) { return uniform(-6, 4); });
  Array noise = Array::input(drawn, type(), any_layout(), symmetric);
  const bool wide = mu.t.dtype == DType::f64 || spread.t.dtype == DType::f64;
  set_arithmetic(wide);
  const DType value_dtype = wide ? DType::f64 : DType::f32;
  Array z(drawn, mu.t.dtype, Layout(below(6))), kl({B}, value_dtype, CONTIGUOUS);
  Array grad_z = Array::input(drawn, mu.t.dtype, any_layout(), symmetric);
  Array grad_kl = Array::input({B}, value_dtype, any_layout(), symmetric);
  Array grad_mu = output_like(mu), grad_spread = output_like(spread);

  SampleArgs forward, backward;
  forward.mu = backward.mu = mu.t;
  (full ? forward.scale_tril : forward.logvar) = spread.t;
  (full ? backward.scale_tril : backward.logvar) = spread.t;
  forward.noise = backward.noise = noise.t;
  forward.z = z.t;
  const bool want_kl = coin(), from_z = coin(), from_kl = !from_z || coin();
  if (want_kl) forward.kl = kl.t;
  if (from_z) backward.grad_z = grad_z.t;
  if (from_kl) backward.grad_kl = grad_kl.t;
  const bool to_mu = coin(), to_spread = !to_mu || coin();
  if (to_mu) backward.grad_mu = grad_mu.t;
  if (to_spread) (full ? backward.grad_scale_tril : backward.grad_logvar) = grad_spread.t;
  context = std::string(full ? "full" : "diagonal") + " sample " + format(dtype).name +
            " L=" + std::to_string(L) + " B=" + std::to_string(B) + " d=" + std::to_string(d);
  const std::vector<Named> inputs = {{"mu", &mu},
                                     {full ? "scale_tril" : "logvar", &spread},
                                     {"noise", &noise},
                                     {"grad_z", &grad_z},
                                     {"grad_kl", &grad_kl}};
  run_twice({{"z", &z}, {"kl", &kl}}, inputs, [&](int threads) {
    forward.threads = threads;
    kernels().sample(forward);
  });
  run_twice({{"grad_mu", &grad_mu}, {"grad_spread", &grad_spread}}, inputs, [&](int threads) {
    backward.threads = threads;
    kernels().sample_backward(backward);
  });

  std::vector<E> want_z(z.values().size()), want_row, want_mu, want_spread;
  for (int64_t b = 0; b < B; ++b) {
    const E w = from_kl ? grad_kl.v[size_t(b)] : 0;
    Sum row;
    for (int64_t i = 0; i < d; ++i) {
      const size_t k = size_t(b * d + i);
      auto element = [&](int64_t l, int64_t j) { return size_t((l * B + b) * d + j); };
      auto up = [&](int64_t l) { return E(from_z ? grad_z.v[element(l, i)] : 0); };
      const E m = mu.v[k];
      Sum to_m;
      to_m.add(w * m);
      for (int64_t l = 0; l < L; ++l) to_m.add(up(l));
      want_mu.push_back(to_m.total(double(L) + 1));
      row.add(m * m);
      if (full) {
        row.add(-1.0);
        const double* l_row = spread.v.data() + k * size_t(d);
        for (int64_t l = 0; l < L; ++l) {
          Sum s;
          s.add(m);
          for (int64_t j = 0; j <= i; ++j) s.add(E(l_row[j]) * E(noise.v[element(l, j)]));
          want_z[element(l, i)] = s.total();
        }
        for (int64_t j = 0; j < d; ++j) {
          Sum s;
          if (j <= i) {
            row.add(E(l_row[j]) * E(l_row[j]));
            s.add(w * E(l_row[j]));
            if (i == j) s.add(E(-1) * w / E(l_row[j]));
            for (int64_t l = 0; l < L; ++l) s.add(up(l) * E(noise.v[element(l, j)]));
          }
          want_spread.push_back(s.total(double(L) + 2));
        }
        row.add(E(-2) * log(E(l_row[i])));
      } else {
        const E lv = spread.v[k], sigma = exp(E(0.5 * lv.v));
        row.add(excess(lv));
        Sum s;
        for (int64_t l = 0; l < L; ++l) {
          want_z[element(l, i)] = m + sigma * E(noise.v[element(l, i)]);
          s.add(E(0.5) * sigma * up(l) * E(noise.v[element(l, i)]));
        }
        s.add(E(0.5) * w * minus_one(lv));
        want_spread.push_back(s.total(double(L) + 2));
      }
    }
    want_row.push_back(E(0.5) * row.total());
  }
  compare("z", z, want_z);
  if (want_kl) compare("kl", kl, want_row);
  if (to_mu) compare("grad_mu", grad_mu, want_mu);
  if (to_spread) compare(full ? "grad_scale_tril" : "grad_logvar", grad_spread, want_spread);
}

void every_sample() {
  for (int dtype = 0; dtype < 4; ++dtype)
    for (int64_t F : {1, 3, 15, 16, 17, 63, 784, 2049})
      for (int64_t B : {0, 1, 5})
        for (int64_t L : {1, 3})
          for (bool full : {false, true}) check_sample(DType(dtype), B, L, F, full);
  for (bool full : {false, true}) check_sample(DType::f32, 300, 3, full ? 17 : 100, full);
}

// ------------------------------------------------------------------ the rest

void every_scale() {
  for (int64_t n : {0, 1, 7, 17, 2049, 120003})
    for (double factor : {1.0, -0.375})
      for (int dtype = 0; dtype < 4; ++dtype) {
        context = "scale of " + std::to_string(n) + " by " + std::to_string(factor);
        std::vector<std::vector<char>> found;
        for (int threads = 1; threads <= 2; ++threads) {
          const uint64_t seed = state;
          auto next = [](int64_t) { return uniform(-1, 1); };
          Array single = Array::input({n}, DType::f32, MISALIGNED, next);
          Array wide = Array::input({n}, DType::f64, MISALIGNED, next);
          Array f = Array::input({}, DType(dtype), CONTIGUOUS, [&](int64_t) { return factor; });
          if (threads == 1) state = seed;  // the same numbers for both
          const Tensor grads[] = {single.t, wide.t};
          kernels().scale(grads, 2, f.t, threads);
          if (factor == 1 && (single.changed() || wide.changed()))
            fail("a factor of 1 moved something");
          for (Array* a : {&single, &wide}) {
            std::vector<E> want;
            for (double v : a->v) want.push_back(v * factor);
            compare("gradient", *a, want);
            found.push_back(a->bits());
          }
        }
        if (found[0] != found[2] || found[1] != found[3]) fail("two threads differ from one");
      }
}

// z = mu + 1 * 0 passes every 16-bit number through, and rounds float32 to it.
void every_half() {
  for (DType half : {DType::bf16, DType::f16}) {
    context = std::string("conversion of ") + format(half).name;
    std::vector<double>
        tests;  // all 16-bit numbers, the middles between neighbours and beside them
    for (int h = 0; h < 0x10000; ++h) {
      const double v = decode16(uint16_t(h), half);
      tests.push_back(v);
      if ((h & 0x7fff) == 0x7fff) continue;
      const double next = decode16(uint16_t(h + 1), half);
      if (!std::isfinite(v) || !std::isfinite(next)) continue;
      const float middle = float((v + next) / 2);
      for (float t : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, 2 * middle)})
        tests.push_back(t);
    }
    for (double big : {65519.0, 65520.0, 65536.0, 3.3895e38, 3.4e38}) tests.push_back(big);
    const int64_t n = int64_t(tests.size());
    auto zero = [](int64_t) { return 0.0; };
    for (DType from : {half, DType::f32})
      for (Layout layout : {CONTIGUOUS, SLICED}) {
        Array mu = Array::input({1, n}, from, layout, [&](int64_t i) { return tests[size_t(i)]; });
        Array logvar = Array::input({1, n}, DType::f32, CONTIGUOUS, zero);
        Array noise = Array::input({1, n}, DType::f32, CONTIGUOUS, zero);
        Array z({1, n}, half, layout);
        SampleArgs a;
        a.mu = mu.t, a.logvar = logvar.t, a.noise = noise.t, a.z = z.t;
        kernels().sample(a);
        const std::vector<double> got = z.values();
        for (size_t i = 0; i < got.size(); ++i) {
          const double want = decode16(encode16(mu.v[i], half), half);
          if (got[i] != want && !(std::isnan(got[i]) && std::isnan(want)))
            fail_value("z", i, got[i], want, 0);
        }
      }
  }
}

// Zero residuals give finite values and zero gradients; one NaN or infinity anywhere is not lost.
void every_corner() {
  for (const Variant& v : VARIANTS)
    for (int64_t F : {1, 17, 2049, 16385})
      for (double stray : {0.0, double(NAN), double(INFINITY)}) {
        if (v.objective == Objective::none) continue;
        const DType dtype = coin() ? DType::f32 : DType::f64;
        Loss c = make_loss(v.objective, v.spread, Activation::identity, Reduction::batchmean, dtype,
                           2, 1, F, true);
        context = describe(c, false) + " stray " + std::to_string(stray);
        const Shape shape(c.a.x.shape, c.a.x.shape + c.a.x.ndim);
        const int64_t where = below(2 * F);
        Array x_hat = Array::input(shape, c.a.x.dtype, CONTIGUOUS, [&](int64_t i) {
          return c.in[X].v[size_t(i)] + (i == where ? stray : 0);
        });
        Array grad(shape, c.a.x.dtype, CONTIGUOUS), value({}, dtype, CONTIGUOUS);
        c.a.x_hat = x_hat.t, c.a.grad_x_hat = grad.t, c.a.value = value.t;
        c.a.mu = c.a.logvar = c.a.scale_tril = c.a.prior_mu = c.a.prior_logvar = Tensor();
        kernels().loss(c.a);
        if (std::isfinite(value.values()[0]) != (stray == 0)) fail("the value does not show it");
        if (stray == 0)
          for (double g : grad.values())
            if (g != 0) fail("a gradient at a zero residual is not 0");
      }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) state += std::strtoull(argv[1], nullptr, 10) * 0x9E3779B97F4A7C15ULL;
  const char* wanted = std::getenv("VAEKERN_ISA");
  if (wanted && std::strcmp(wanted, kernels().isa)) {
    std::printf("check_core: this processor or build has no %s\n", wanted);
    return 2;
  }
  every_half();
  every_scale();
  every_sample();
  every_corner();
  every_loss();
  if (argc < 3 || std::strcmp(argv[2], "small")) large_losses();
  std::printf("check_core: %s is right\n", kernels().isa);
  return 0;
}
