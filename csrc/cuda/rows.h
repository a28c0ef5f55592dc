// iso-d with its gradient: a sample's factor follows from its sum of squares, and what the gradient
// needs stays in shared memory until then (or, where a sample is too long, is read again: 3 tensors
// moved become 5). A task is a sample.
#pragma once

#include "reconstruction.h"

namespace vaekern {
namespace cuda {

// Numbers of a row in shared memory, per posterior sample.
template <class C>
VAEKERN_HD int64_t held_row(int64_t F) {
  return (F + WIDTH<C> - 1) / WIDTH<C> * WIDTH<C>;
}

template <class C>
VAEKERN_DEVICE void reconstruct_rows(const Loss& a, double* scratch, C* memory) {
  constexpr DType HELD = dtype_of<C>;
  const int rank = int(threadIdx.x) % a.group, tasks = int(blockDim.x) / a.group;
  const int place = int(threadIdx.x) / a.group;
  const int64_t b = int64_t(blockIdx.x) * tasks + place;
  const bool mine = b < a.B;
  const int64_t step = held_row<C>(a.axes.F);
  C* held = memory + place * a.L * step;
  Span span{};
  double sums[1] = {};
  if (mine) {
    const View* const views[] = {&a.x_hat, &a.x, &a.grad_x_hat, &a.grad_x};
    span = span_of<C>(a.wide, views, b, 0, a.axes.F);
    const Row row(a, b);
    sweep<C>(span, rank, a.group, [&](auto number, int64_t f, int64_t slot) {
      constexpr int N = decltype(number)::value;
      const Place<N> at(a, f);
      const Raw<C, N> raw_x = fetch<C, N>(a.x.dtype, row.x + at.x(a));
      C x[N], r[N], slope[N], q[N] = {};
#pragma unroll 1
      for (int64_t l = 0; l < a.L; ++l) {
        const Raw<C, N> raw = fetch<C, N>(
            a.x_hat.dtype, row.x_hat + l * a.x_hat.stride_l * a.x_hat.item + at.x_hat(a));
        if (l == 0) widen(raw_x, a.x.dtype, x);
        residual(a, raw, x, r, slope);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          q[i] += r[i] * r[i];
          r[i] *= slope[i];
        }
        if (a.hold) store<C, N>(HELD, reinterpret_cast<char*>(held + l * step + slot), r);
      }
      sums[0] += sum_of(q);
    });
  }
  group_sums(sums, a.group, scratch);
  if (!mine) return;
  const double s = sums[0] / double(a.L);
  if (a.finish && rank == 0) {
    a.partials[2 * b] = s;
    a.partials[2 * b + 1] = 0;
  }
  const C common = C(weight_of(a, b) * IsoD::factor(s, double(a.axes.F), a.eps) / double(a.L));
  const Row row(a, b);
  sweep<C>(span, rank, a.group, [&](auto number, int64_t f, int64_t slot) {
    constexpr int N = decltype(number)::value;
    const Place<N> at(a, f);
    C factor[N];
#pragma unroll
    for (int i = 0; i < N; ++i) factor[i] = common;
    if (!a.hold) {
      C x[N], d[N], slope[N];
      const Raw<C, N> raw = fetch<C, N>(a.x_hat.dtype, row.x_hat + at.x_hat(a));
      widen(fetch<C, N>(a.x.dtype, row.x + at.x(a)), a.x.dtype, x);
      residual(a, raw, x, d, slope);
#pragma unroll
      for (int i = 0; i < N; ++i) d[i] *= slope[i];
      return write_gradients(a, row, at, d, factor);
    }
    C gx[N] = {};  // of x: held only where the activation's slope is 1
#pragma unroll 1
    for (int64_t l = 0; l < a.L; ++l) {
      C d[N];
      widen(fetch<C, N>(HELD, reinterpret_cast<const char*>(held + l * step + slot)), HELD, d);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        d[i] *= common;
        gx[i] -= d[i];
      }
      if (a.grad_x_hat.present)
        store<C, N>(a.grad_x_hat.dtype, row.grad_x_hat(a, l) + at.grad_x_hat(a), d);
    }
    if (a.grad_x.present) store<C, N>(a.grad_x.dtype, row.grad_x(a) + at.grad_x(a), gx);
  });
}

}  // namespace cuda
}  // namespace vaekern
