// The last block of a launch makes the value, the statistics and what belongs to whole samples out
// of the partial sums, in the order of their indices.
#pragma once

#include "columns.h"
#include "kl.h"

namespace vaekern {
namespace cuda {

// A sample's sum of q, and of the objective's terms, over its chunks.
VAEKERN_DEVICE void sample_sums(const Loss& a, int64_t b, double& square, double& terms) {
  square = terms = 0;
  const double* p = a.partials + 2 * b * a.chunks;
  for (int64_t k = 0; k < a.chunks; ++k) {
    square += __ldcg(p + 2 * k);
    terms += __ldcg(p + 2 * k + 1);
  }
}

template <class C>
VAEKERN_NOINLINE void finish(const Loss& a, double* scratch) {
  const int block = int(blockDim.x);
  const bool reconstruction = a.x.present, latent = a.mu.present;
  const int64_t B = reconstruction ? a.B : a.kl_samples;
  const double D = double(a.axes.F), beta = latent ? beta_of(a) : 0;
  C* value = static_cast<C*>(a.value);
  C* statistics = static_cast<C*>(a.statistics);
  const bool known = a.objective == Objective::gaussian;
  const bool per_row = known && (a.spread == Spread::scalar || a.spread == Spread::sample);

  // what all samples share: of columns their totals, spread evenly; iso-i's variance
  double shared[2] = {};
  if (a.totals > 0) {
    for (int64_t k = threadIdx.x; k < a.totals; k += block) {
      shared[0] += __ldcg(a.partials + 2 * k);
      shared[1] += __ldcg(a.partials + 2 * k + 1);
    }
    group_sums(shared, block, scratch);
  } else if (reconstruction && a.objective == Objective::iso_i) {
    for (int64_t b = threadIdx.x; b < B; b += block) {
      double square, terms;
      sample_sums(a, b, square, terms);
      shared[0] += square;
    }
    group_sums(shared, block, scratch);
  }
  const double tiny = double(SMALLEST_NORMAL<C>);
  const double mean = B ? shared[0] / (double(B) * D) : 0, v = IsoI::guarded(mean, tiny);

  double sums[3] = {};  // of the terms, of the squares, of the gradient of a single x_logvar
#pragma unroll 1
  for (int64_t b = threadIdx.x; b < B; b += block) {
    double nll = 0, square = 0, terms = 0;
    if (a.totals > 0) {
      square = shared[0] / double(B);
      nll = shared[1] / double(B);
    } else if (reconstruction) {
      sample_sums(a, b, square, terms);
      if (per_row) {
        const double raw = a.x_logvar[b];
        const bool below = raw < a.x_logvar_min;
        const double lv = below ? a.x_logvar_min : raw, scaled = square * std::exp(-lv);
        nll = 0.5 * (scaled + D * (lv + LOG_2PI));
        const double grad = below ? 0 : 0.5 * weight_of(a, b) * (D - scaled);
        if (a.spread == Spread::scalar)
          sums[2] += grad;
        else if (a.grad_x_logvar.data != nullptr)
          store_one<double>(a.grad_x_logvar.dtype,
                            const_cast<char*>(a.grad_x_logvar.data) + b * a.grad_x_logvar.step,
                            grad);
      } else if (known) {
        nll = 0.5 * (terms + D * LOG_2PI);
      } else if (a.objective == Objective::iso_d) {
        nll = IsoD::row_value(square, D, a.eps);
      } else if (a.objective == Objective::iso_i) {
        // below the guard there is no residual to speak of: every sample's term is the mean
        nll = IsoI::row_value(v, mean < tiny ? D * v : square, D);
      } else {
        nll = 0.5 * (terms + D * (1 + LOG_2PI));
      }
    }
    const double divergence = latent ? __ldcg(a.kl_rows + b) : 0;
    const double term = nll + (latent ? beta * divergence : 0);
    sums[0] += term;
    sums[1] += square;
    if (value != nullptr && a.reduction == Reduction::none) value[b] = C(term);
    if (statistics != nullptr) {
      statistics[b] = C(nll);
      statistics[B + b] = C(square);
      statistics[2 * B + b] = C(divergence);
    }
  }
  group_sums(sums, block, scratch);
  if (threadIdx.x != 0) return;
  if (value != nullptr && a.reduction != Reduction::none) value[0] = C(sums[0] * a.scale);
  if (reconstruction && a.objective != Objective::diag_i) {
    const C variance = C(B ? sums[1] / (double(B) * D) : 0);
    if (statistics != nullptr) statistics[3 * B] = variance;
    track(a, 0, variance);
  }
  if (a.spread == Spread::scalar && a.grad_x_logvar.data != nullptr)
    store_one<double>(a.grad_x_logvar.dtype, const_cast<char*>(a.grad_x_logvar.data), sums[2]);
}

}  // namespace cuda
}  // namespace vaekern
