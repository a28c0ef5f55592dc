// Sums in a fixed order: over a warp, over a block, and over a grid by whichever block is the last
// to finish.
#pragma once

#include "device.h"

namespace vaekern {
namespace cuda {

constexpr int WARP = 32;
constexpr int MOST_WARPS = 16;
constexpr int MOST_SUMS = 3;
// At the start of a block's shared memory.
constexpr int SCRATCH = MOST_WARPS * MOST_SUMS * int(sizeof(double));

// Every x[k] becomes its sum over the group that shares a task, a warp or the block, the same bits
// in every thread. A block's threads have to call together.
template <int K>
VAEKERN_DEVICE void group_sums(double (&x)[K], int group, double* scratch) {
  static_assert(K <= MOST_SUMS, "scratch is laid out for so many");
#pragma unroll
  for (int k = 0; k < K; ++k) x[k] = sum_over_lanes<WARP>(x[k]);
  if (group == WARP) return;
  const int warp = int(threadIdx.x) / WARP, warps = int(blockDim.x) / WARP;
  __syncthreads();  // an earlier sum has been read
  if (threadIdx.x % WARP == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) scratch[warp * K + k] = x[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) x[k] = scratch[k];
#pragma unroll 1
  for (int w = 1; w < warps; ++w) {
#pragma unroll
    for (int k = 0; k < K; ++k) x[k] += scratch[w * K + k];
  }
}

VAEKERN_DEVICE double group_sum(double x, int group, double* scratch) {
  double one[1] = {x};
  group_sums(one, group, scratch);
  return one[0];
}

// Is this block the last of the grid to come here? Then it sees what all others wrote before, and
// the ticket is as it was before the launch.
VAEKERN_DEVICE bool is_last_block(unsigned* ticket, double* scratch) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const bool last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    if (last) *ticket = 0;
    scratch[0] = last ? 1 : 0;
  }
  __syncthreads();
  const bool last = scratch[0] != 0;
  if (last) __threadfence();
  return last;
}

}  // namespace cuda
}  // namespace vaekern
