// The scalar maths of one-sided (Hestenes) Jacobi for the CUDA kernels and their emulation on the
// CPU; csrc/cpu/jacobi.h has it in vector lanes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "terms.h"

namespace vaekern {

// The plane rotation p' = c p - s q, q' = s p + c q.
struct Rotation {
  double c, s;
};

VAEKERN_HD double reciprocal_sqrt(double x) {
#ifdef __CUDA_ARCH__
  return rsqrt(x);
#else
  return 1 / std::sqrt(x);
#endif
}

// Do two columns of squared norms alpha and beta with inner product gamma still need a rotation?
// Relative to their own norms, so that tiny columns are held to the same angle as large ones.
// Squares spare two roots; where they would leave the range of double, the roots are taken.
VAEKERN_HD bool oblique(double alpha, double beta, double gamma, double tolerance) {
  const double product = alpha * beta;
  if (product > 1e-250 && product < 1e250) return gamma * gamma > tolerance * tolerance * product;
  return std::fabs(gamma) > tolerance * (std::sqrt(alpha) * std::sqrt(beta));
}

// 2^-e for x in [2^e, 2^(e+1)), from the bits of x.
VAEKERN_HD double inverse_power_of_two(double x) {
  int64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  int64_t exponent = 2046 - (bits >> 52 & 2047);
  exponent = exponent < 1 ? 1 : exponent > 2045 ? 2045 : exponent;
  bits = exponent << 52;
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

// The rotation by at most 45 degrees that makes the columns orthogonal. With h = (beta - alpha) / 2
// and r = sqrt(h^2 + gamma^2) its double angle has cosine |h| / r, so c^2 = (1 + |h| / r) / 2 and
// s = sign(h) gamma / (2 r c): sums of positive numbers only, hence no cancellation, and two
// reciprocal roots are all it costs. A power of two that brings the larger norm near 1 goes first:
// squares of squared norms leave the range of double, their ratio does not matter.
VAEKERN_HD Rotation rotation(double alpha, double beta, double gamma) {
  const double power = inverse_power_of_two(alpha > beta ? alpha : beta);
  const double h = 0.5 * (beta * power - alpha * power);
  const double g = gamma * power;
  const double square = h * h + g * g;
  if (!(square > 0)) return {1, 0};
  const double inverse = reciprocal_sqrt(square);
  const double half = 0.5 + 0.5 * std::fabs(h) * inverse;  // c^2, in [1/2, 1]
  const double over_c = reciprocal_sqrt(half);
  const double s = 0.5 * g * inverse * over_c;
  return {half * over_c, h < 0 ? -s : s};
}

// A column of V is known up to its sign: the first entry whose magnitude is within this fraction of
// the largest is made positive, so that rounding does not choose between equal entries.
constexpr double SIGN_TIE = 1e-6;

VAEKERN_HD bool decides_sign(double entry, double largest) {
  return std::fabs(entry) >= largest * (1 - SIGN_TIE);
}

}  // namespace vaekern
