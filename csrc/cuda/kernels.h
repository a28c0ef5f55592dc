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

// What a launch of the loss needs besides its tensors.
struct Launch {
  void* workspace = nullptr;  // loss_workspace bytes, aligned to 16
  // 0, and 0 again after the launch; no two launches at a time share it. A workspace starts with
  // 16 bytes that may serve, once set to 0.
  unsigned* ticket = nullptr;
  void* stream = nullptr;
};

// Bytes of a workspace for B samples of D features (x's, or mu's where there is no x).
int64_t loss_workspace(int64_t B, int64_t D);

// reconstruction + beta KL with its reduction. Without `value` it is the backward, to which the
// forward's `statistics` spare a pass where the variance is one.
int loss(const LossArgs& args, const Launch& launch);

// May the gradient be written by the forward's own launch (3 tensors moved in all)? False where the
// variance belongs to all samples, or to a tile that does not fit a block's shared memory: then the
// backward writes it.
bool loss_writes_gradients(Objective objective, int64_t L, int64_t B, int64_t D, bool grad_x,
                           bool in_double);

// grads[i] *= factor, in place; its blocks return at once where factor is 1.
int scale(const Tensor* grads, int count, const Tensor& factor, void* stream);

int sample(const SampleArgs& args, void* stream);
int sample_backward(const SampleArgs& args, void* stream);

}  // namespace cuda
}  // namespace vaekern
