// Any strided layout as samples of F features in blocks of contiguous compute-type numbers.
// A Plan orders and merges the feature axes once for all tensors of a call: contiguous and
// channels_last tensors become one axis of stride 1, which is read in place; the rest is gathered
// through small scratch blocks. All offsets are int64: B * D passes 2^31 at 65,536 x 32,768.
#pragma once

#include <algorithm>

#include "convert.h"

namespace vaekern {
namespace VAEKERN_ISA {

constexpr int64_t BLOCK = 2048;  // elements per block: five float blocks fit a 48 KB L1 cache

// One tensor under a plan.
struct View {
  char* base = nullptr;
  DType dtype = DType::f32;
  bool present = false;
  int64_t item = 0;
  int64_t stride_l = 0, stride_b = 0;
  int ndim = 0;
  int64_t stride[MAX_DIMS] = {};
  bool dense = false;  // one feature axis of stride 1
};

class Plan {
 public:
  int64_t F = 1;  // features per sample
  int ndim = 0;
  int64_t size[MAX_DIMS] = {};

  // `shape`: the feature axes, [ndim]
  Plan(const int64_t* shape, int dims) : count_(dims) {
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
      views_[t]->dense = ndim == 1 && (views_[t]->stride[0] == 1 || F == 1);
    }
  }

  // n features from f0 of sample (l, b) as contiguous C: in place where that is how they lie.
  template <class C>
  VAEKERN_INLINE const C* read(const View& v, int64_t l, int64_t b, int64_t f0, int64_t n,
                               C* scratch) const {
    char* p = v.base + (l * v.stride_l + b * v.stride_b) * v.item;
    if (v.dense && v.dtype == dtype_of<C>) return reinterpret_cast<const C*>(p) + f0;
    gather(v, p, f0, n, scratch);
    return scratch;
  }

  // Where to write n features: in place, or scratch that write() scatters afterwards.
  template <class C>
  VAEKERN_INLINE C* target(const View& v, int64_t l, int64_t b, int64_t f0, C* scratch) const {
    if (v.dense && v.dtype == dtype_of<C>)
      return reinterpret_cast<C*>(v.base + (l * v.stride_l + b * v.stride_b) * v.item) + f0;
    return scratch;
  }

  template <class C>
  VAEKERN_INLINE void write(const View& v, int64_t l, int64_t b, int64_t f0, int64_t n,
                            const C* from) const {
    if (v.dense && v.dtype == dtype_of<C>) return;
    scatter(v, v.base + (l * v.stride_l + b * v.stride_b) * v.item, f0, n, from);
  }

 private:
  // calls run(offset in elements, stride, first, length) for the pieces of [f0, f0 + n)
  template <class Run>
  void pieces(const View& v, int64_t f0, int64_t n, Run run) const {
    int64_t index[MAX_DIMS], rest = f0, offset = 0;
    for (int k = ndim - 1; k >= 0; --k) {
      index[k] = rest % size[k];
      rest /= size[k];
      offset += index[k] * v.stride[k];
    }
    const int last = ndim - 1;
    for (int64_t done = 0; done < n;) {
      int64_t length = std::min(n - done, size[last] - index[last]);
      run(offset, v.stride[last], done, length);
      done += length;
      index[last] += length;
      offset += length * v.stride[last];
      for (int k = last; k > 0 && index[k] == size[k]; --k) {
        offset += v.stride[k - 1] - size[k] * v.stride[k];
        index[k] = 0;
        ++index[k - 1];
      }
    }
  }

  template <class C>
  __attribute__((noinline)) void gather(const View& v, const char* p, int64_t f0, int64_t n,
                                        C* out) const {
    pieces(v, f0, n, [&](int64_t offset, int64_t stride, int64_t first, int64_t length) {
      load_run<C>(p + offset * v.item, v.dtype, stride, length, out + first);
    });
  }

  template <class C>
  __attribute__((noinline)) void scatter(const View& v, char* p, int64_t f0, int64_t n,
                                         const C* in) const {
    pieces(v, f0, n, [&](int64_t offset, int64_t stride, int64_t first, int64_t length) {
      store_run<C>(p + offset * v.item, v.dtype, stride, length, in + first);
    });
  }

  int count_;
  int used_ = 0;
  int64_t shape_[MAX_DIMS] = {};
  static constexpr int MAX_TENSORS = 10;
  int64_t raw_[MAX_TENSORS][MAX_DIMS] = {};
  View* views_[MAX_TENSORS] = {};
};

}  // namespace VAEKERN_ISA
}  // namespace vaekern
