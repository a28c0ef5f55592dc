// One factor per feature: diag-i, and a known variance per feature whose gradient is wanted. A
// block takes a tile of TILE features and all samples, or a chunk of them; for diag-i what the
// gradient needs stays in shared memory until the tile's variances are known.
#pragma once

#include "reconstruction.h"

namespace vaekern {
namespace cuda {

constexpr int TILE = 32;
constexpr int TILE_THREADS = 256;
constexpr int TILE_WARPS = TILE_THREADS / WARP;

// Numbers in shared memory before what is held: the warps' sums of q and of w_b q, and the
// columns' factors and shared parts.
constexpr int TILE_SUMS = 2 * TILE_WARPS * TILE + 2 * TILE;

struct Column {
  double nll = 0, square = 0;  // over the batch
  double factor = 0, shared = 0;
};

template <class C>
VAEKERN_DEVICE void track(const Loss& a, int64_t i, C variance) {
  if (a.last == nullptr || a.B == 0) return;
  if (!(variance - variance == C(0))) return;  // a bad batch leaves the estimates as they were
  if (a.track_double) {
    double* running = static_cast<double*>(a.running) + i;
    const double v = double(variance);
    *running = *running > 0 ? *running + a.momentum * (v - *running) : v;
    static_cast<double*>(a.last)[i] = v;
  } else {
    float* running = static_cast<float*>(a.running) + i;
    const float v = float(variance);
    *running = *running > 0 ? *running + float(a.momentum) * (v - *running) : v;
    static_cast<float*>(a.last)[i] = v;
  }
}

template <class C>
VAEKERN_DEVICE C known_precision(const Loss& a, int64_t f) {
  const C bound = C(a.x_logvar_min);
  const C lv = load_one<C>(a.logvar.dtype, a.logvar.base + feature_offset<1>(a.axes, a.logvar, f));
  return std::exp(-(lv < bound ? bound : lv));
}

// The column's sums of q and of w_b q become its value, its factor and what is written of it.
template <class C>
VAEKERN_NOINLINE Column finish_column(const Loss& a, int64_t f, double sum, double weighted,
                                      double weights) {
  Column c;
  const double B = double(a.B);
  c.square = sum;
  if (a.objective == Objective::gaussian) {
    const C bound = C(a.x_logvar_min);
    const C raw =
        load_one<C>(a.logvar.dtype, a.logvar.base + feature_offset<1>(a.axes, a.logvar, f));
    const bool below = raw < bound;
    const C lv = below ? bound : raw, precision = std::exp(-lv);
    c.nll = 0.5 * (sum * double(precision) + B * (double(lv) + LOG_2PI));
    if (a.grad_logvar.present)
      store_one<C>(a.grad_logvar.dtype,
                   a.grad_logvar.base + feature_offset<1>(a.axes, a.grad_logvar, f),
                   below ? C(0) : C(0.5 * (weights - double(precision) * weighted)));
    return c;
  }
  const C v = C(a.B ? sum / B : 0);
  const C factor = DiagI::factor(v, C(a.eps));
  if (a.variance.present) {
    const int64_t at = feature_offset<1>(a.axes, a.variance, f);
    store_one<C>(a.variance.dtype, a.variance.base + at, v);
    track(a, at / a.variance.item, v);
  }
  c.factor = double(factor);
  if (a.uneven && a.B) c.shared = -c.factor * (c.factor * (weighted - weights * double(v))) / B;
  if (a.shared_out != nullptr) static_cast<C*>(a.shared_out)[f] = C(c.shared);
  if (a.terms) c.nll = 0.5 * B * (double(std::log(v + C(a.eps))) + 1 + LOG_2PI);
  return c;
}

template <class C, int N>
VAEKERN_DEVICE void reconstruct_tile(const Loss& a, double* scratch, C* memory) {
  constexpr DType HELD = dtype_of<C>;
  constexpr int SLOTS = TILE / N, STEP = TILE_THREADS / SLOTS;
  const int slot = int(threadIdx.x) % SLOTS;
  const int64_t tile = int64_t(blockIdx.x) % a.tiles, chunk = int64_t(blockIdx.x) / a.tiles;
  const int64_t first = tile * TILE, f = first + slot * N;
  const int64_t start = chunk * a.chunk;
  const int64_t end = a.B - start < a.chunk ? a.B : start + a.chunk;
  const bool inside = f < a.axes.F, known = a.objective == Objective::gaussian;
  C* held = memory + TILE_SUMS + slot * N;
  const Place<N> at(a, inside ? f : 0);
  const C inverse_l = C(1.0 / double(a.L));
  C* sums = memory;
  C* factors = memory + 2 * TILE_WARPS * TILE;
  if (known && threadIdx.x < TILE && first + int(threadIdx.x) < a.axes.F)
    factors[threadIdx.x] = known_precision<C>(a, first + int(threadIdx.x));
  __syncthreads();
  C q[N] = {}, wq[N] = {};
#pragma unroll 1
  for (int64_t b = start + int(threadIdx.x) / SLOTS; inside && b < end; b += STEP) {
    const Row row(a, b);
    const Raw<C, N> raw_x = fetch<C, N>(a.x.dtype, row.x + at.x(a));
    C x[N], r[N], slope[N], square[N] = {};
#pragma unroll 1
    for (int64_t l = 0; l < a.L; ++l) {
      const Raw<C, N> raw =
          fetch<C, N>(a.x_hat.dtype, row.x_hat + l * a.x_hat.stride_l * a.x_hat.item + at.x_hat(a));
      if (l == 0) widen(raw_x, a.x.dtype, x);
      residual(a, raw, x, r, slope);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        square[i] += r[i] * r[i];
        r[i] *= slope[i];
      }
      if (a.hold)
        store<C, N>(HELD, reinterpret_cast<char*>(held + ((b - start) * a.L + l) * TILE), r);
    }
    const double weight = a.uneven || known ? weight_of(a, b) : 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      q[i] += square[i] * inverse_l;
      wq[i] += C(weight) * (square[i] * inverse_l);
    }
    if (known && a.gradient) {
      C factor[N];
#pragma unroll
      for (int i = 0; i < N; ++i) factor[i] = factors[slot * N + i] * C(weight) * inverse_l;
      write_gradients(a, row, at, r, factor);
    }
  }
  // over the rows of a warp, then over the warps
#pragma unroll
  for (int mask = SLOTS; mask < WARP; mask *= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      q[i] += __shfl_xor_sync(ALL_LANES, q[i], mask);
      wq[i] += __shfl_xor_sync(ALL_LANES, wq[i], mask);
    }
  }
  const double weights = sum_of_weights(a, scratch);  // here, not across the loop in registers
  const int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP;
  if (lane < SLOTS) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sums[warp * TILE + lane * N + i] = q[i];
      sums[(TILE_WARPS + warp) * TILE + lane * N + i] = wq[i];
    }
  }
  __syncthreads();
  if (warp == 0) {
    double sum = 0, weighted = 0;
#pragma unroll
    for (int w = 0; w < TILE_WARPS; ++w) {
      sum += double(sums[w * TILE + lane]);
      weighted += double(sums[(TILE_WARPS + w) * TILE + lane]);
    }
    const int64_t column = first + lane;
    Column c;
    if (column < a.axes.F) {
      if (a.column_sums != nullptr) {
        a.column_sums[(2 * chunk) * a.axes.F + column] = sum;
        a.column_sums[(2 * chunk + 1) * a.axes.F + column] = weighted;
      } else {
        c = finish_column<C>(a, column, sum, weighted, weights);
      }
    }
    factors[lane] = C(c.factor);
    factors[TILE + lane] = C(c.shared);
    if (a.column_sums == nullptr && a.finish) {
      const double nll = sum_over_lanes<WARP>(c.nll), square = sum_over_lanes<WARP>(c.square);
      if (lane == 0) {
        a.partials[2 * tile] = square;
        a.partials[2 * tile + 1] = nll;
      }
    }
  }
  if (!a.hold) return;
  __syncthreads();
  C factor[N], shared[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    factor[i] = factors[slot * N + i];
    shared[i] = factors[TILE + slot * N + i];
  }
#pragma unroll 1
  for (int64_t b = start + int(threadIdx.x) / SLOTS; inside && b < end; b += STEP) {
    const Row row(a, b);
    const C w = C(weight_of(a, b));
    C gx[N] = {};
#pragma unroll 1
    for (int64_t l = 0; l < a.L; ++l) {
      C d[N];
      widen(fetch<C, N>(HELD, reinterpret_cast<const char*>(held + ((b - start) * a.L + l) * TILE)),
            HELD, d);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        d[i] *= (factor[i] * w + shared[i]) * inverse_l;
        gx[i] -= d[i];
      }
      if (a.grad_x_hat.present)
        store<C, N>(a.grad_x_hat.dtype, row.grad_x_hat(a, l) + at.grad_x_hat(a), d);
    }
    if (a.grad_x.present) store<C, N>(a.grad_x.dtype, row.grad_x(a) + at.grad_x(a), gx);
  }
}

template <class C>
VAEKERN_DEVICE void reconstruct_columns(const Loss& a, double* scratch, C* memory) {
  const int64_t tile = int64_t(blockIdx.x) % a.tiles;
  if constexpr (WIDTH<C> > 1) {
    if (a.wide == Wide::aligned && (tile + 1) * TILE <= a.axes.F)
      return reconstruct_tile<C, WIDTH<C>>(a, scratch, memory);
  }
  reconstruct_tile<C, 1>(a, scratch, memory);
}

// Where columns are in chunks: a thread to a column.
template <class C>
VAEKERN_DEVICE void combine_columns(const Loss& a, double* scratch) {
  const double weights = sum_of_weights(a, scratch);
  const int64_t f = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  double sums[2] = {};
  if (f < a.axes.F) {
    double sum = 0, weighted = 0;
    for (int64_t k = 0; k < a.chunks; ++k) {
      sum += a.column_sums[2 * k * a.axes.F + f];
      weighted += a.column_sums[(2 * k + 1) * a.axes.F + f];
    }
    const Column c = finish_column<C>(a, f, sum, weighted, weights);
    sums[0] = c.square;
    sums[1] = c.nll;
  }
  if (!a.finish) return;
  group_sums(sums, int(blockDim.x), scratch);
  if (threadIdx.x == 0) {
    a.partials[2 * blockIdx.x] = sums[0];
    a.partials[2 * blockIdx.x + 1] = sums[1];
  }
}

}  // namespace cuda
}  // namespace vaekern
