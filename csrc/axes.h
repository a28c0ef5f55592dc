// The feature axes of a call's tensors, ordered and merged once for all of them: contiguous and
// channels_last tensors become one axis of stride 1. Host code of the CPU and CUDA kernels alike;
// compiled once per instruction set, so it lives in that one's namespace.
#pragma once

#include <algorithm>

#include "core.h"

#ifndef VAEKERN_ISA
#define VAEKERN_ISA baseline
#endif

namespace vaekern {
namespace VAEKERN_ISA {

inline size_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

template <class C>
constexpr DType dtype_of = sizeof(C) == 8 ? DType::f64 : DType::f32;

// One tensor under merged axes.
struct View {
  char* base = nullptr;
  DType dtype = DType::f32;
  bool present = false;
  int64_t item = 0;
  int64_t stride_l = 0, stride_b = 0;
  int ndim = 0;
  int64_t stride[MAX_DIMS] = {};
  bool dense = false;  // feature f lies f elements after the first
};

struct Axes {
  int64_t F = 1;  // features per sample
  int ndim = 0;
  int64_t size[MAX_DIMS] = {};
};

class MergedAxes : public Axes {
 public:
  // `shape`: the feature axes, [ndim]
  MergedAxes(const int64_t* shape, int dims) : count_(dims) {
    for (int k = 0; k < dims; ++k) {
      shape_[k] = shape[k];
      F *= shape[k];
    }
  }

  // Registers a tensor whose last axes are the features: fewer axes, or size 1, broadcast.
  // `lead`: how many axes before the features it has (0: none, 1: batch, 2: samples and batch).
  View* add(View& v, const Tensor& t, int lead) {
    v.present = bool(t);
    if (!t) return &v;
    v.base = static_cast<char*>(t.data);
    v.dtype = t.dtype;
    v.item = int64_t(size_of(t.dtype));
    if (lead >= 1 && t.shape[lead - 1] != 1) v.stride_b = t.stride[lead - 1];
    if (lead >= 2) v.stride_l = t.stride[0];
    for (int k = 0; k < count_; ++k) {
      int axis = t.ndim - count_ + k;
      raw_[used_][k] = axis < lead || t.shape[axis] == 1 ? 0 : t.stride[axis];
    }
    views_[used_++] = &v;
    return &v;
  }

  // Call once after the last add(): the first tensor's strides order the axes.
  void finish() {
    int order[MAX_DIMS], n = 0;
    for (int k = 0; k < count_; ++k)
      if (shape_[k] != 1) order[n++] = k;
    std::stable_sort(order, order + n, [&](int a, int b) { return raw_[0][a] > raw_[0][b]; });
    for (int k = 0; k < n; ++k) {
      bool merge = ndim > 0;
      for (int t = 0; merge && t < used_; ++t)
        merge = views_[t]->stride[ndim - 1] == raw_[t][order[k]] * shape_[order[k]];
      if (!merge) size[ndim++] = 1;
      size[ndim - 1] *= shape_[order[k]];
      for (int t = 0; t < used_; ++t) views_[t]->stride[ndim - 1] = raw_[t][order[k]];
    }
    if (ndim == 0) {  // one feature
      size[ndim++] = 1;
      for (int t = 0; t < used_; ++t) views_[t]->stride[0] = 1;
    }
    for (int t = 0; t < used_; ++t) {
      views_[t]->ndim = ndim;
      views_[t]->dense = F == 1 || is_dense(*views_[t]);
    }
  }

 private:
  // Whether the axes, which others' strides may have kept apart, are one of stride 1 here.
  bool is_dense(const View& v) const {
    int64_t step = 1;
    for (int k = ndim - 1; k >= 0; step *= size[k--])
      if (v.stride[k] != step) return false;
    return true;
  }

  int count_;
  int used_ = 0;
  int64_t shape_[MAX_DIMS] = {};
  static constexpr int MAX_TENSORS = 10;
  int64_t raw_[MAX_TENSORS][MAX_DIMS] = {};
  View* views_[MAX_TENSORS] = {};
};

// How x_logvar lies over x.
enum class Spread { scalar, sample, feature, element };

inline Spread spread_of(const Tensor& logvar, const Tensor& x) {
  if (logvar.numel() == 1) return Spread::scalar;
  const bool whole = logvar.ndim == x.ndim;
  bool features = false;
  for (int k = whole ? 1 : 0; k < logvar.ndim; ++k) features |= logvar.shape[k] != 1;
  if (whole && logvar.shape[0] != 1) {
    const bool one_feature = x.numel() == x.shape[0];
    return features || one_feature ? Spread::element : Spread::sample;
  }
  return x.shape[0] == 1 && whole ? Spread::element : Spread::feature;
}

// How many axes it has before the features.
inline int lead_of(const Tensor& logvar, Spread spread, const Tensor& x) {
  if (spread == Spread::element || spread == Spread::sample) return 1;
  return logvar.ndim == x.ndim ? 1 : 0;
}

// diag-i's variance, the last F of the statistics, in the features' own order.
inline Tensor variance_of(const Tensor& x, void* data, DType dtype) {
  Tensor v = x;
  v.dtype = dtype;
  v.data = data;
  v.present = true;
  for (int64_t k = v.ndim - 1, step = 1; k >= 1; step *= v.shape[k--]) v.stride[k] = step;
  v.shape[0] = 1;
  return v;
}

// What one unit of the value is worth to each sample's term.
inline double reduction_scale(Reduction reduction, int64_t B, int64_t D) {
  if (B == 0) return 1;
  switch (reduction) {
    case Reduction::batchmean:
    case Reduction::dims: return 1.0 / double(B);
    case Reduction::mean: return 1.0 / (double(B) * double(D));
    default: return 1;
  }
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
