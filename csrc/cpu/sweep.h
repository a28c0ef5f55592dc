// One pass over contiguous blocks: whole vectors unrolled four times, then a masked tail. A body is
// written once and is called with Whole or Part, which say how to load, store and mask.
#pragma once

#include "simd.h"

namespace vaekern {
namespace VAEKERN_ISA {

constexpr int UNROLL = 4;

template <class C>
struct Whole {
  VAEKERN_INLINE Vec<C> load(const C* p) const { return VAEKERN_ISA::load(p); }
  VAEKERN_INLINE void store(C* p, Vec<C> v) const { VAEKERN_ISA::store(p, v); }
  VAEKERN_INLINE Vec<C> keep(Vec<C> v, C = 0) const { return v; }
};

template <class C>
struct Part {
  int n;
  VAEKERN_INLINE Vec<C> load(const C* p) const { return load_part(p, n); }
  VAEKERN_INLINE void store(C* p, Vec<C> v) const { store_part(p, v, n); }
  // lanes past the end become `fill`
  VAEKERN_INLINE Vec<C> keep(Vec<C> v, C fill = 0) const {
    C lane[LANES<C>];
    std::memcpy(lane, &v, sizeof v);
    return load_part(lane, n, fill);
  }
};

// body(access, i, k): the vector at element i; k in [0, UNROLL) names an independent accumulator
template <class C, class Body>
VAEKERN_INLINE void sweep(int64_t n, Body body) {
  constexpr int W = LANES<C>;
  const Whole<C> whole;
  int64_t i = 0;
  for (; i + UNROLL * W <= n; i += UNROLL * W) {
    body(whole, i, 0);
    body(whole, i + W, 1);
    body(whole, i + 2 * W, 2);
    body(whole, i + 3 * W, 3);
  }
  for (int k = 0; i + W <= n; i += W, ++k) body(whole, i, k);
  if (i < n) body(Part<C>{int(n - i)}, i, UNROLL - 1);
}

// UNROLL vectors of partial sums
template <class C>
struct Sums {
  Vec<C> part[UNROLL] = {};
  VAEKERN_INLINE void add(int k, Vec<C> v) { part[k] += v; }
  // of n elements: a row shorter than a vector has few lanes to add up
  double total(int64_t n = LANES<C>) const {
    return sum_lanes<C>((part[0] + part[1]) + (part[2] + part[3]), n);
  }
};

}  // namespace VAEKERN_ISA
}  // namespace vaekern
