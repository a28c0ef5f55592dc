// One pass: the factor of every element is known before it, or follows from the element alone
// (diag-d); or none is wanted, and the squares are summed. A task is a sample, or a chunk of one.
#pragma once

#include "reconstruction.h"

namespace vaekern {
namespace cuda {

// w_b a_b / L where samples share the factor (Factor::row). shared: what uneven weights add.
template <class C>
VAEKERN_DEVICE C row_factor(const Loss& a, int64_t b, double shared) {
  const double w = weight_of(a, b) / double(a.L);
  const C* known = static_cast<const C*>(a.known);
  if (a.objective == Objective::iso_i) {
    const C tiny = SMALLEST_NORMAL<C>, mean = known[3 * a.B];
    if (mean < tiny) return C(0);  // below the guard there is no residual to speak of
    return C((w + shared / double(a.L)) / double(IsoI::guarded(mean, tiny)));
  }
  if (a.objective == Objective::iso_d)
    return C(w * IsoD::factor(double(known[a.B + b]), double(a.axes.F), a.eps));
  const C lv = C(a.x_logvar[b]), bound = C(a.x_logvar_min);
  return C(w) * std::exp(-(lv < bound ? bound : lv));
}

// Uneven weights also move iso-i's shared estimate; even ones cancel exactly.
template <class C>
VAEKERN_DEVICE double shared_of_iso_i(const Loss& a, double* scratch) {
  if (!a.uneven || a.objective != Objective::iso_i || !a.gradient || a.factor != Factor::row)
    return 0;
  const C* known = static_cast<const C*>(a.known);
  double sums[2] = {};
  for (int64_t b = threadIdx.x; b < a.B; b += blockDim.x) {
    const double w = weight_of(a, b);
    sums[0] += w;
    sums[1] += w * double(known[a.B + b]);
  }
  group_sums(sums, int(blockDim.x), scratch);
  const double v = double(IsoI::guarded<C>(known[3 * a.B], SMALLEST_NORMAL<C>));
  return (sums[0] - sums[1] / (double(a.axes.F) * v)) / double(a.B);
}

// What does not change along a row.
template <class C>
struct RowWeights {
  C inverse_l;  // 1 / L
  C weight;     // w_b / L
  C half;       // w_b / 2
  C common;     // w_b a_b / L, for Factor::row
};

// N features from f: sums += (sum of q, sum of the objective's terms), and the gradients.
template <class C, int N>
VAEKERN_DEVICE void element(const Loss& a, const Row& row, int64_t b, int64_t f,
                            const RowWeights<C>& w, double (&sums)[2]) {
  const Place<N> at(a, f);
  const Raw<C, N> raw_x = fetch<C, N>(a.x.dtype, row.x + at.x(a));
  Raw<C, N> raw = fetch<C, N>(a.x_hat.dtype, row.x_hat + at.x_hat(a));
  C x[N], r[N], slope[N], q[N] = {}, factor[N], terms = C(0);
  widen(raw_x, a.x.dtype, x);
#pragma unroll 1
  for (int64_t l = 0;;) {
    residual(a, raw, x, r, slope);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      q[i] += r[i] * r[i];
      r[i] *= slope[i];
    }
    if (++l == a.L) break;
    raw = fetch<C, N>(a.x_hat.dtype, row.x_hat + l * a.x_hat.stride_l * a.x_hat.item + at.x_hat(a));
  }
  if (a.L > 1) {
#pragma unroll
    for (int i = 0; i < N; ++i) q[i] *= w.inverse_l;
  }
  if (a.factor == Factor::logvar) {
    const C bound = C(a.x_logvar_min);
    C lv[N], grad[N];
    widen(fetch<C, N>(a.logvar.dtype,
                      row_of(a.logvar, 0, b) + feature_offset<N>(a.axes, a.logvar, f)),
          a.logvar.dtype, lv);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const bool below = lv[i] < bound;  // its gradient is cut off
      const C bounded = below ? bound : lv[i];
      const C precision = std::exp(-bounded);
      const C scaled = q[i] * precision;
      terms += scaled + bounded;
      grad[i] = below ? C(0) : (C(1) - scaled) * w.half;
      factor[i] = precision * w.weight;
    }
    if (a.grad_logvar.present)
      store<C, N>(a.grad_logvar.dtype,
                  const_cast<char*>(row_of(a.grad_logvar, 0, b)) +
                      feature_offset<N>(a.axes, a.grad_logvar, f),
                  grad);
  } else if (a.factor == Factor::variance) {
    C v[N], shared[N] = {};
    widen(fetch<C, N>(a.variance.dtype, a.variance.base + feature_offset<N>(a.axes, a.variance, f)),
          a.variance.dtype, v);
    if (a.shared.present)
      widen(fetch<C, N>(a.shared.dtype, a.shared.base + feature_offset<N>(a.axes, a.shared, f)),
            a.shared.dtype, shared);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const C precision = DiagI::factor(v[i], C(a.eps));
      if (a.terms) terms += std::log(v[i] + C(a.eps)) + (q[i] - v[i]) * precision;
      factor[i] = precision * w.weight + shared[i] * w.inverse_l;
    }
  } else if (a.factor == Factor::own) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const C argument = DiagD::argument(q[i], C(a.eps));
      if (a.terms) terms += std::log(argument);
      factor[i] = w.weight / argument;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) factor[i] = w.common;
  }
  sums[0] += sum_of(q);
  sums[1] += double(terms);
  if (a.gradient && a.factor != Factor::none) write_gradients(a, row, at, r, factor);
}

template <class C>
VAEKERN_DEVICE void reconstruct_elements(const Loss& a, double* scratch) {
  const double shared = shared_of_iso_i<C>(a, scratch);
  const int rank = int(threadIdx.x) % a.group, tasks = int(blockDim.x) / a.group;
  const int64_t task = int64_t(blockIdx.x) * tasks + int(threadIdx.x) / a.group;
  const bool mine = task < a.B * a.chunks;
  double sums[2] = {};
  if (mine) {
    const int64_t b = task / a.chunks, first = (task - b * a.chunks) * a.chunk;
    const int64_t n = a.axes.F - first < a.chunk ? a.axes.F - first : a.chunk;
    const View* const views[] = {&a.x_hat,  &a.x,          &a.logvar, &a.variance,
                                 &a.shared, &a.grad_x_hat, &a.grad_x, &a.grad_logvar};
    const Span span = span_of<C>(a.wide, views, b, first, n);
    const Row row(a, b);
    const double weight = weight_of(a, b);
    const RowWeights<C> w{
        C(1.0 / double(a.L)), C(weight / double(a.L)), C(0.5 * weight),
        a.gradient && a.factor == Factor::row ? row_factor<C>(a, b, shared) : C(0)};
    sweep<C>(span, rank, a.group, [&](auto number, int64_t f, int64_t) {
      element<C, decltype(number)::value>(a, row, b, f, w, sums);
    });
  }
  if (!a.finish) return;
  group_sums(sums, a.group, scratch);
  if (mine && rank == 0) {
    a.partials[2 * task] = sums[0];
    a.partials[2 * task + 1] = sums[1];
  }
}

}  // namespace cuda
}  // namespace vaekern
