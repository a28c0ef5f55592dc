// grads *= factor in place, the factor read from its tensor; nothing moves where it is 1.
#include "layout.h"
#include "parallel.h"
#include "sweep.h"
#include "tables.h"

namespace vaekern {
namespace VAEKERN_ISA {

namespace {

template <class C>
void scale_dense(C* p, int64_t n, C factor, int threads) {
  constexpr int64_t step = 8 * BLOCK;
  parallel_for(ceil_div(n, step), n, threads, [&](int64_t t) {
    C* q = p + t * step;
    sweep<C>(std::min(step, n - t * step),
             [&](auto at, int64_t i, int) { at.store(q + i, at.load(q + i) * factor); });
  });
}

}  // namespace

// The gradients are the forward's own buffers: dense, float32 or float64.
void scale(const Tensor* grads, int count, const Tensor& factor, int threads) {
  const double f = scalar(factor);
  if (f == 1.0) return;
  for (int k = 0; k < count; ++k) {
    const int64_t n = grads[k].numel();
    if (grads[k].dtype == DType::f64)
      scale_dense(static_cast<double*>(grads[k].data), n, f, threads);
    else
      scale_dense(static_cast<float*>(grads[k].data), n, float(f), threads);
  }
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
