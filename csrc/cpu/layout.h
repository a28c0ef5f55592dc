// Any strided layout as samples of F features in blocks of contiguous compute-type numbers.
// A tensor whose feature axes merge into one of stride 1 (axes.h) is read in place; the rest is
// gathered through small scratch blocks. All offsets are int64: B * D passes 2^31 at 65,536 x
// 32,768.
#pragma once

#include <algorithm>

#include "../axes.h"
#include "convert.h"

namespace vaekern {
namespace VAEKERN_ISA {

constexpr int64_t BLOCK = 2048;  // elements per block: five float blocks fit a 48 KB L1 cache

class Plan : public MergedAxes {
 public:
  using MergedAxes::MergedAxes;

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
};

}  // namespace VAEKERN_ISA
}  // namespace vaekern
