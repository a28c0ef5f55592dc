// right_svd and assignment without Python or torch: meant to run under AddressSanitizer and UBSan.
// Exit code 1 and one line on the first difference.
//
//   check_linalg [seed]     VAEKERN_ISA=baseline|avx2|avx512 chooses the build under test
//
// Buffers have exactly the size that their layout needs. Outputs are filled with NaN first; two
// threads must leave the same bits as one. A singular value decomposition proves itself: V is
// orthogonal, the columns of J V are too, and their lengths are S.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core.h"

using namespace vaekern;

namespace {

std::string context;
std::mt19937_64 engine;

[[noreturn]] void fail(const std::string& what) {
  std::printf("check_linalg [%s]: %s: %s\n", kernels().isa, context.c_str(), what.c_str());
  std::exit(1);
}

void near(const char* name, double got, double want, double tolerance) {
  if (std::fabs(got - want) <= tolerance) return;
  char text[200];
  std::snprintf(text, sizeof text, "%s is %.17g, not %.17g +- %.2g", name, got, want, tolerance);
  fail(text);
}

double normal() { return std::normal_distribution<double>()(engine); }

size_t bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

enum Layout { ROWS, COLUMNS, BATCH_LAST };

// [B, m, d] as a buffer of its own size; `values` are what the dtype holds.
struct Matrices {
  Tensor t;
  std::unique_ptr<char[]> memory;
  std::vector<double> values;
  std::vector<char> before;

  template <class Value>
  Matrices(int64_t B, int64_t m, int64_t d, DType dtype, Layout layout, Value value) {
    t.present = true;
    t.dtype = dtype;
    t.ndim = 3;
    const int64_t shape[] = {B, m, d};
    std::copy(shape, shape + 3, t.shape);
    if (layout == ROWS)
      t.stride[0] = m * d, t.stride[1] = d, t.stride[2] = 1;
    else if (layout == COLUMNS)  // [d, B, m]
      t.stride[2] = B * m, t.stride[0] = m, t.stride[1] = 1;
    else
      t.stride[1] = d * B, t.stride[2] = B, t.stride[0] = 1;
    const size_t n = size_t(B * m * d), size = bytes_of(dtype);
    memory.reset(new char[n * size]);
    t.data = memory.get();
    values.resize(n);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < d; ++j) {
          char* at =
              memory.get() + size_t(b * t.stride[0] + i * t.stride[1] + j * t.stride[2]) * size;
          double& kept = values[size_t((b * m + i) * d + j)];
          const double v = value(b, i, j);
          if (dtype == DType::f64) {
            kept = v;
            std::memcpy(at, &v, 8);
          } else if (dtype == DType::f32) {
            const float f = float(v);
            kept = f;
            std::memcpy(at, &f, 4);
          } else {  // small integers are exact in both halves: no conversion of our own needed
            const int k = int(std::max(-1.0, std::min(1.0, std::nearbyint(v))));
            const uint16_t one = dtype == DType::bf16 ? 0x3f80 : 0x3c00;
            const uint16_t h = uint16_t(k == 0 ? 0 : k < 0 ? one | 0x8000 : one);
            kept = k;
            std::memcpy(at, &h, 2);
          }
        }
    before.assign(memory.get(), memory.get() + n * size);
  }
  bool changed() const {
    return !before.empty() && std::memcmp(before.data(), memory.get(), before.size()) != 0;
  }
};

template <class Out>
struct Answer {
  std::vector<Out> S, V;
  std::vector<int64_t> status;
};

template <class Out>
Answer<Out> solve(const Matrices& J, int threads) {
  const int64_t B = J.t.shape[0], d = J.t.shape[2];
  const Out nan = std::numeric_limits<Out>::quiet_NaN();
  Answer<Out> out{std::vector<Out>(size_t(B * d), nan), std::vector<Out>(size_t(B * d * d), nan),
                  std::vector<int64_t>(size_t(B), -99)};
  RightSvdArgs a;
  a.J = J.t;
  for (Tensor* t : {&a.S, &a.V}) {
    t->present = true;
    t->dtype = sizeof(Out) == 8 ? DType::f64 : DType::f32;
  }
  a.S.data = out.S.data();
  a.V.data = out.V.data();
  a.status = out.status.data();
  a.threads = threads;
  kernels().right_svd(a);
  if (J.changed()) fail("the input changed");
  return out;
}

template <class Out>
void check_svd(const Matrices& J) {
  const int64_t B = J.t.shape[0], m = J.t.shape[1], d = J.t.shape[2];
  const Answer<Out> one = solve<Out>(J, 1), two = solve<Out>(J, 3);
  if (one.S != two.S || one.V != two.V || one.status != two.status)
    fail("three threads differ from one");
  const double u = sizeof(Out) == 8 ? 2.3e-16 : 6e-8;
  for (int64_t b = 0; b < B; ++b) {
    if (one.status[size_t(b)] <= 0) fail("not converged");
    const Out *S = one.S.data() + b * d, *V = one.V.data() + b * d * d;
    std::vector<double> A(J.values.begin() + b * m * d, J.values.begin() + (b + 1) * m * d);
    double most = 0;
    for (double v : A) most = std::max(most, std::fabs(v));
    const double unit = sizeof(Out) == 8 && most > 0 ? most : 1;  // so that squares stay numbers
    for (double& v : A) v /= unit;
    const double slack = (8 + double(d)) * u;
    std::vector<double> AV(size_t(m * d), 0.0);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < d; ++j)
        for (int64_t k = 0; k < d; ++k)
          AV[size_t(i * d + k)] += A[size_t(i * d + j)] * V[j * d + k];
    long double frobenius = 0, sum = 0;
    for (double v : A) frobenius += static_cast<long double>(v) * v;
    // squaring float32 data costs half of double's digits: 1e-8 of the largest
    const double floor = sizeof(Out) == 8 ? 0 : 3e-8 * double(S[0]);
    for (int64_t k = 0; k < d; ++k) {
      if (k > 0 && S[k] > S[k - 1]) fail("S does not descend");
      if (k >= m && S[k] != 0) fail("S beyond the rows is not 0");
      double length = 0;
      for (int64_t i = 0; i < m; ++i) length += AV[size_t(i * d + k)] * AV[size_t(i * d + k)];
      near("|J v|", std::sqrt(length), S[k] / unit, slack * S[0] / unit + floor);
      for (int64_t j = 0; j < d; ++j) {
        double dot = 0;
        for (int64_t i = 0; i < d; ++i) dot += double(V[i * d + j]) * V[i * d + k];
        near("V^T V", dot, j == k, slack);
      }
      sum += S[k] / unit * (S[k] / unit);
    }
    near("the sum of squares", double(sum), double(frobenius), slack * double(frobenius) + 1e-300);
  }
}

void every_svd() {
  for (int64_t d : {1, 2, 3, 7, 8, 15, 16, 17, 33, 48, 65, 80})
    for (int64_t m : {1, 2, 5, 64, 261})
      for (int kind = 0; kind < 4; ++kind) {
        const DType dtypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16};
        const DType dtype = dtypes[(size_t(d + m) + size_t(kind)) % 4];
        const Layout layout = Layout((d + 2 * m + kind) % 3);
        const int64_t B = d > 40 ? 1 : 1 + (d + m) % 4;
        context = "d " + std::to_string(d) + " m " + std::to_string(m) + " dtype " +
                  std::to_string(int(dtype)) + " layout " + std::to_string(layout) + " kind " +
                  std::to_string(kind);
        const Matrices J(B, m, d, dtype, layout, [&](int64_t, int64_t i, int64_t j) {
          if (kind == 1) return 0.0;  // no rank at all
          if (kind == 2)
            return i % d == j ? std::pow(10., -double(j % 9)) : 0.0;  // orthogonal, graded
          if (kind == 3) return j % 2 ? 1.0 : normal();               // equal columns
          return normal();
        });
        if (dtype == DType::f64)
          check_svd<double>(J);
        else
          check_svd<float>(J);
      }
  for (double scale : {1e-300, 1e300}) {  // neither squares nor powers of two may overflow
    context = "scale " + std::to_string(scale);
    check_svd<double>(Matrices(2, 9, 5, DType::f64, ROWS, [&](int64_t, int64_t i, int64_t j) {
      return i == j ? scale : 0.0;
    }));
  }
  context = "few and tall";
  check_svd<float>(Matrices(1, 9001, 5, DType::f32, COLUMNS,
                            [](int64_t, int64_t, int64_t) { return normal(); }));
  context = "an empty batch";
  check_svd<float>(
      Matrices(0, 3, 4, DType::f32, ROWS, [](int64_t, int64_t, int64_t) { return 0.0; }));
  for (DType dtype : {DType::f32, DType::f64})
    for (double stray : {double(NAN), double(INFINITY)}) {
      context = "a stray";
      const Matrices J(4, 50, 6, dtype, ROWS, [&](int64_t b, int64_t i, int64_t j) {
        return b == 2 && i == 40 && j == 5 ? stray : normal();
      });
      const std::vector<int64_t> status =
          dtype == DType::f64 ? solve<double>(J, 1).status : solve<float>(J, 1).status;
      for (int64_t b = 0; b < 4; ++b)
        if ((status[size_t(b)] == 0) != (b == 2)) fail("the status does not name the sample");
    }
}

void every_assignment() {
  for (int64_t d : {1, 2, 3, 5, 6})
    for (int kind = 0; kind < 3; ++kind)
      for (int round = 0; round < 10; ++round) {
        context = "assignment of " + std::to_string(d);
        const Matrices C(3, d, d, DType::f64, Layout(round % 3), [&](int64_t, int64_t, int64_t) {
          return kind == 0 ? normal() : kind == 1 ? 0.0 : double(engine() % 3);
        });
        std::vector<int64_t> columns(size_t(3 * d), -7);
        AssignmentArgs a;
        a.cost = C.t;
        a.columns = columns.data();
        a.threads = 2;
        kernels().assignment(a);
        for (int64_t b = 0; b < 3; ++b) {
          const double* cost = C.values.data() + b * d * d;
          auto total = [&](const std::vector<int64_t>& p) {
            double s = 0;
            for (int64_t i = 0; i < d; ++i) s += cost[i * d + p[size_t(i)]];
            return s;
          };
          std::vector<int64_t> found(columns.begin() + b * d, columns.begin() + (b + 1) * d),
              p(static_cast<size_t>(d));
          std::iota(p.begin(), p.end(), 0);
          if (!std::is_permutation(p.begin(), p.end(), found.begin())) fail("no permutation");
          double least = total(p);
          while (std::next_permutation(p.begin(), p.end())) least = std::min(least, total(p));
          near("the cost", total(found), least, 1e-12);
        }
      }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) engine.seed(std::strtoull(argv[1], nullptr, 10));
  const char* wanted = std::getenv("VAEKERN_ISA");
  if (wanted && std::strcmp(wanted, kernels().isa)) {
    std::printf("check_linalg: this processor or build has no %s\n", wanted);
    return 2;
  }
  every_svd();
  every_assignment();
  std::printf("check_linalg: %s is right\n", kernels().isa);
  return 0;
}
