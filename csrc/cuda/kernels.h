// The CUDA kernels' interface: plain structs on device pointers, filled by bindings.cpp and by the
// tests. Every function launches on the given stream and returns CUDA's error code (0: launched);
// nothing waits for the device, allocates, or depends on values, so calls can be captured in
// graphs.
#pragma once

#include <cstddef>

#include "../core.h"

namespace vaekern {
namespace cuda {

constexpr int LARGEST_D = 256;

// J = U diag(S) V^T per matrix.
struct RightSvdArgs {
  Tensor jacobian;               // [B, m, d] float32, bfloat16 or float16, any strides
  float* S = nullptr;            // [B, d], descending
  float* V = nullptr;            // [B, d, d], columns are the right singular vectors
  int32_t* sweeps = nullptr;     // [B]
  uint8_t* converged = nullptr;  // [B]
  uint8_t* finite = nullptr;     // [B]; 0: the matrix holds an infinity or NaN, and S and V are NaN
  void* workspace = nullptr;     // right_svd_workspace bytes
  void* stream = nullptr;
};

int right_svd_workspace(int64_t batch, int64_t m, int64_t d, size_t* bytes);
int right_svd(const RightSvdArgs& args);

// columns[b, i]: what row i is assigned where the sum of cost[b, i, columns[b, i]] is smallest; -1
// throughout a matrix with NaN or infinity.
struct AssignmentArgs {
  Tensor cost;                 // [B, d, d], any strides
  int64_t* columns = nullptr;  // [B, d]
  void* stream = nullptr;
};

int assignment(const AssignmentArgs& args);

}  // namespace cuda
}  // namespace vaekern
