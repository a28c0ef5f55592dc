// One block's eigendecomposition of a Gram matrix G = J^T J: pivoted Cholesky G = L L^T, then
// one-sided Jacobi rotations of L's columns until every pair is orthogonal relative to its own
// norms. The norms are then the singular values of J and the normalised columns its right singular
// vectors. Working on L instead of G keeps the relative accuracy of small columns, and no product
// of rotations has to be kept.
#pragma once

#include "../rotation.h"
#include "device.h"

namespace vaekern {
namespace cuda {

constexpr double EPSILON = 2.220446049250313e-16;
constexpr int MOST_SWEEPS = 60;

// Results of one matrix.
struct SvdOutput {
  float* S;
  float* V;
  int32_t* sweeps;
  uint8_t* converged;
  uint8_t* finite;
};

// A matrix of up to LARGEST columns, LANES lanes to a pair of columns and NUMBERS numbers of each
// column in a lane's registers (0: too many, they are read again for the rotation). ONE_WARP: the
// calling warp works alone, else the block's first threads(d) threads; the others have returned.
template <int LARGEST, int LANES, int NUMBERS, bool ONE_WARP>
struct Jacobi {
  static constexpr int PER_LANE = (LARGEST + 31) / 32;
  // rows that a warp's lanes cover at once, so that few lanes idle
  static constexpr int ROWS = LARGEST >= 32 ? 32 : LARGEST;

  // Distance between columns. Half a warp's 8-byte accesses, LANES to a column, then meet all 32
  // banks when the columns are neighbours.
  static VAEKERN_HD int stride(int d) { return (d + 15) / 16 * 16 + LANES; }
  static VAEKERN_HD int threads(int d) {
    return ONE_WARP ? 32 : ((d + 1) / 2 * LANES + 31) / 32 * 32;
  }
  // doubles besides the matrix: two vectors and two lists of integers
  static VAEKERN_HD int scratch(int d) { return 3 * d + 2; }

  double* L;  // [d] columns, `ld` apart, holding G at first
  int ld, d;
  double *first, *second;  // [d]
  int *order, *unused;     // [d]

  VAEKERN_DEVICE Jacobi(double* matrix, double* scratch_space, int size)
      : L(matrix), ld(stride(size)), d(size), first(scratch_space), second(first + size) {
    order = reinterpret_cast<int*>(second + size);
    unused = order + size;
  }

  VAEKERN_DEVICE static int thread() { return ONE_WARP ? threadIdx.x & 31 : threadIdx.x; }
  VAEKERN_DEVICE int team() const { return ONE_WARP ? 32 : threads(d); }
  VAEKERN_DEVICE static int lane() { return threadIdx.x & 31; }
  VAEKERN_DEVICE static void sync() {
    if constexpr (ONE_WARP)
      __syncwarp();
    else
      __syncthreads();
  }
  VAEKERN_DEVICE static bool any(bool mine) {
    if constexpr (ONE_WARP)
      return __any_sync(ALL_LANES, mine);
    else
      return __syncthreads_or(mine);
  }

  // The largest value and, of equal ones, the lowest index, over the warp; index < 0: none.
  VAEKERN_DEVICE static void largest_of_warp(double& value, int& index) {
#pragma unroll
    for (int k = 16; k > 0; k /= 2) {
      const double other = __shfl_xor_sync(ALL_LANES, value, k);
      const int at = __shfl_xor_sync(ALL_LANES, index, k);
      if (at >= 0 && (index < 0 || other > value || (other == value && at < index))) {
        value = other;
        index = at;
      }
    }
  }

  // G = L L^T with complete pivoting; order[k] is where L's column k lies. A column whose remainder
  // is rounding of its own square norm depends on those before it and is left out; the others go
  // on, so that a tiny independent column is not lost behind a large dependent one.
  VAEKERN_DEVICE int factorise(int most) {
    for (int j = thread(); j < d; j += team()) first[j] = EPSILON * L[j * ld + j];
    sync();
    uint32_t candidates = 0;  // every warp keeps its own and finds the same pivots
#pragma unroll
    for (int t = 0; t < PER_LANE; ++t) candidates |= uint32_t(lane() + 32 * t < d) << t;
    const int part = thread() / ROWS, parts = team() / ROWS, row = thread() % ROWS;
    int rank = 0;
    for (; rank < most; ++rank) {
      double pivot = 0;
      int at = -1;
#pragma unroll
      for (int t = 0; t < PER_LANE; ++t) {
        const int j = lane() + 32 * t;
        if (candidates >> t & 1) {
          const double remainder = L[j * ld + j];
          if (remainder > first[j] && remainder > pivot) {
            pivot = remainder;
            at = j;
          }
        }
      }
      largest_of_warp(pivot, at);
      if (at < 0) break;
      if ((at & 31) == lane()) candidates &= ~(1u << (at >> 5));
      if (thread() == 0) order[rank] = at;
      const double inverse = reciprocal_sqrt(pivot);
      sync();  // every warp has read the diagonal
      for (int j = part; j < d; j += parts) {
        const double l = L[at * ld + j] * inverse;
        if (j == at || l == 0) continue;  // eliminated before, or orthogonal
        for (int i = row; i < d; i += ROWS) {
          double& entry = L[j * ld + i];
          entry = i == at ? 0 : entry - (L[at * ld + i] * inverse) * l;
        }
      }
      sync();
      // no one reads this column before the next barrier
      for (int i = thread(); i < d; i += team()) L[at * ld + i] *= inverse;
    }
    sync();
    return rank;
  }

  // Rotates all pairs of the first `rank` columns, in the order of a round-robin tournament, until
  // none needs it.
  VAEKERN_DEVICE int orthogonalise(int rank, bool& converged) {
    const int even = rank + (rank & 1), rounds = even - 1;
    const int pair = thread() / LANES, member = thread() % LANES;
    const double tolerance = d * EPSILON;
    converged = false;
    int sweeps = 0;
    while (!converged && sweeps < MOST_SWEEPS) {
      bool rotated = false;
      for (int round = 0; round < rounds; ++round) {
        int p = round + pair, q = pair == 0 ? even - 1 : round - pair + rounds;
        if (p >= rounds) p -= rounds;
        if (pair != 0 && q >= rounds) q -= rounds;
        const bool active = pair < even / 2 && p < rank && q < rank;
        double* x = L + (active ? order[p] : 0) * ld;
        double* y = L + (active ? order[q] : 0) * ld;
        double alpha = 0, beta = 0, gamma = 0;
        double held_x[NUMBERS + 1], held_y[NUMBERS + 1];
        if (active) {
          if constexpr (NUMBERS > 0) {
#pragma unroll
            for (int k = 0; k < NUMBERS; ++k) {
              const int i = member + LANES * k;
              held_x[k] = i < d ? x[i] : 0;
              held_y[k] = i < d ? y[i] : 0;
              alpha += held_x[k] * held_x[k];
              beta += held_y[k] * held_y[k];
              gamma += held_x[k] * held_y[k];
            }
          } else {
#pragma unroll 1
            for (int i = member; i < d; i += LANES) {
              alpha += x[i] * x[i];
              beta += y[i] * y[i];
              gamma += x[i] * y[i];
            }
          }
        }
        alpha = sum_over_lanes<LANES>(alpha);
        beta = sum_over_lanes<LANES>(beta);
        gamma = sum_over_lanes<LANES>(gamma);
        if (active && oblique(alpha, beta, gamma, tolerance)) {
          rotated = true;
          const Rotation turn = rotation(alpha, beta, gamma);
          if constexpr (NUMBERS > 0) {
#pragma unroll
            for (int k = 0; k < NUMBERS; ++k) {
              const int i = member + LANES * k;
              if (i < d) {
                x[i] = turn.c * held_x[k] - turn.s * held_y[k];
                y[i] = turn.s * held_x[k] + turn.c * held_y[k];
              }
            }
          } else {
#pragma unroll 1
            for (int i = member; i < d; i += LANES) {
              const double from_x = x[i], from_y = y[i];
              x[i] = turn.c * from_x - turn.s * from_y;
              y[i] = turn.s * from_x + turn.c * from_y;
            }
          }
        }
        sync();
      }
      ++sweeps;
      converged = !any(rotated);
    }
    return sweeps;
  }

  // Sorts: order[c] becomes where the column of the c-th largest norm lies, normalised, and
  // second[c] that norm. The rest of `order` lists the free columns. Returns how many norms are not
  // zero.
  VAEKERN_DEVICE int sort(int rank) {
    const int warp = thread() / 32, warps = team() / 32;
    for (int k = warp; k < rank; k += warps) {
      double square = 0;
      for (int i = lane(); i < d; i += 32) {
        const double x = L[order[k] * ld + i];
        square += x * x;
      }
      square = sum_over_lanes<32>(square);
      if (lane() == 0) first[k] = sqrt(square);
    }
    for (int j = thread(); j < d; j += team()) {
      bool free = true;
      for (int k = 0; k < rank; ++k) free = free && order[k] != j;
      unused[j] = free;
    }
    sync();
    // a thread to a column: there are never fewer
    const int k = thread();
    int target = 0, column = 0;
    double norm = 0;
    if (k < rank) {
      column = order[k];
      norm = first[k];
      for (int i = 0; i < rank; ++i) target += first[i] > norm || (first[i] == norm && i < k);
    }
    sync();  // `order` has been read
    if (k < rank) {
      order[target] = column;
      second[target] = norm;
    }
    for (int j = thread(); j < d; j += team())
      if (unused[j]) {
        int before = 0;
        for (int i = 0; i < j; ++i) before += unused[i];
        order[rank + before] = j;
        second[rank + before] = 0;
      }
    sync();
    int kept = rank;
    while (kept > 0 && !(second[kept - 1] > 0)) --kept;
    for (int c = warp; c < kept; c += warps)
      for (int i = lane(); i < d; i += 32) L[order[c] * ld + i] /= second[c];
    sync();
    return kept;
  }

  // Completes the first `kept` columns to an orthonormal basis: again and again the unit vector
  // that is farthest from them, the lowest among equals, with their part taken off twice.
  VAEKERN_DEVICE void complete(int kept) {
    const int warp = thread() / 32, warps = team() / 32;
    for (int c = kept; c < d; ++c) {
      for (int i = thread(); i < d; i += team()) {
        double rest = 1;
        for (int t = 0; t < c; ++t) rest -= L[order[t] * ld + i] * L[order[t] * ld + i];
        first[i] = rest;
      }
      sync();
      double farthest = 0;
      int axis = -1;
      for (int i = lane(); i < d; i += 32)
        if (axis < 0 || first[i] > farthest) {
          farthest = first[i];
          axis = i;
        }
      largest_of_warp(farthest, axis);
      sync();
      double* fresh = L + order[c] * ld;
      for (int i = thread(); i < d; i += team()) {
        double x = i == axis;
        for (int t = 0; t < c; ++t) x -= L[order[t] * ld + axis] * L[order[t] * ld + i];
        fresh[i] = x;
      }
      sync();
      for (int t = warp; t < c; t += warps) {
        double part = 0;
        for (int i = lane(); i < d; i += 32) part += L[order[t] * ld + i] * fresh[i];
        part = sum_over_lanes<32>(part);
        if (lane() == 0) first[t] = part;
      }
      sync();
      for (int i = thread(); i < d; i += team()) {
        double x = fresh[i];
        for (int t = 0; t < c; ++t) x -= first[t] * L[order[t] * ld + i];
        fresh[i] = x;
      }
      sync();
      double square = 0;
      for (int i = lane(); i < d; i += 32) square += fresh[i] * fresh[i];
      square = sum_over_lanes<32>(square);
      sync();
      for (int i = thread(); i < d; i += team()) fresh[i] *= reciprocal_sqrt(square);
      sync();
    }
  }

  VAEKERN_DEVICE void choose_signs() {
    const int warp = thread() / 32, warps = team() / 32;
    for (int c = warp; c < d; c += warps) {
      double* column = L + c * ld;
      double largest = 0;
      int at = -1;
      for (int i = lane(); i < d; i += 32) largest = fmax(largest, fabs(column[i]));
#pragma unroll
      for (int k = 16; k > 0; k /= 2)
        largest = fmax(largest, __shfl_xor_sync(ALL_LANES, largest, k));
      for (int i = lane(); i < d && at < 0; i += 32)
        if (decides_sign(column[i], largest)) at = i;
#pragma unroll
      for (int k = 16; k > 0; k /= 2) {
        const int other = __shfl_xor_sync(ALL_LANES, at, k);
        if (at < 0 || (other >= 0 && other < at)) at = other;
      }
      const bool negative = column[at] < 0;
      __syncwarp();
      if (negative)
        for (int i = lane(); i < d; i += 32) column[i] = -column[i];
    }
    sync();
  }

  // most: no more columns than the matrix J has rows can be independent.
  VAEKERN_DEVICE void run(int64_t most, const SvdOutput& out) {
    bool bad = false;
    for (int j = thread(); j < d; j += team()) bad = bad || !isfinite(L[j * ld + j]);
    if (any(bad)) {
      const float nan = __uint_as_float(0x7fc00000u);
      for (int i = thread(); i < d; i += team()) out.S[i] = nan;
      for (int i = thread(); i < d * d; i += team()) out.V[i] = nan;
      if (thread() == 0) {
        *out.sweeps = 0;
        *out.converged = 0;
        *out.finite = 0;
      }
      return;
    }
    bool converged;
    const int rank = factorise(most < d ? int(most) : d);
    const int sweeps = orthogonalise(rank, converged);
    complete(sort(rank));
    choose_signs();
    for (int c = thread(); c < d; c += team()) out.S[c] = float(second[c]);
    for (int k = thread(); k < d * d; k += team()) {
      const int i = k / d;
      out.V[k] = float(L[order[k - i * d] * ld + i]) + 0.0f;  // no negative zeros
    }
    if (thread() == 0) {
      *out.sweeps = sweeps;
      *out.converged = converged;
      *out.finite = 1;
    }
  }
};

}  // namespace cuda
}  // namespace vaekern
