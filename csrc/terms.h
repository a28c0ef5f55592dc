// The maths of every objective, said once for C++ (and CUDA): scalars or SIMD vectors go in for T.
// Loops, tails, reductions and launches do not know which objective they run.
// r = x_hat - x; q = E_L r^2; nats. Derivations: the gradient of each MLE objective is that of the
// Gaussian NLL at its (detached) variance.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define VAEKERN_HD __host__ __device__ __forceinline__
#else
#define VAEKERN_HD inline __attribute__((always_inline))
#endif

namespace vaekern {

constexpr double LOG_2PI = 1.8378770664093454835606594728112;

// Every gradient is d NLL / d r = a r with a factor a: exp(-logvar) where the variance is known,
// else from a statistic of q over a group: everything (iso-i), a row (iso-d), a column (diag-i), an
// element (diag-d).

// D/2 [log v + 1 + log 2 pi], v = mean of q over everything, kept at or above the smallest normal.
struct IsoI {
  template <class T>
  static VAEKERN_HD T guarded(T v, T tiny) {
    return v < tiny ? tiny : v;
  }
  // per-sample value; its batch mean is the objective. s = sum_i q_bi
  static VAEKERN_HD double row_value(double v, double s, double D) {
    if (!(v - v == 0)) return v;  // infinite or NaN
    return 0.5 * (D * (std::log(v) + 1 + LOG_2PI) + (s - D * v) / v);
  }
};

// D/2 [log(s + eps) - log D + 1 + log 2 pi], s = sum_i q_bi
struct IsoD {
  static VAEKERN_HD double row_value(double s, double D, double eps) {
    return 0.5 * D * (std::log(s + eps) - std::log(D) + 1 + LOG_2PI);
  }
  static VAEKERN_HD double factor(double s, double D, double eps) { return D / (s + eps); }
};

// 1/2 sum_i [log(v_i + eps) + 1 + log 2 pi], v_i = E_B q_bi
struct DiagI {
  template <class T>
  static VAEKERN_HD T factor(T v, T eps) {
    return 1 / (v + eps);
  }
};

// 1/2 sum_i [log(q_bi + eps) + 1 + log 2 pi]
struct DiagD {
  template <class T>
  static VAEKERN_HD T argument(T q, T eps) {
    return q + eps;
  }
};

}  // namespace vaekern
