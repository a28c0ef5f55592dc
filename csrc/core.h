// The core's interface: plain structs on raw pointers, filled by bindings.cpp and by the native
// tests. It knows nothing of Python or torch.
#pragma once

#include <cstdint>

namespace vaekern {

enum class DType : int { f32, f64, bf16, f16 };

// Rows shared with vaekern/ops.py (OBJECTIVES, ACTIVATIONS, REDUCTIONS).
enum class Objective : int { none, gaussian, iso_i, iso_d, diag_i, diag_d };
enum class Activation : int { identity, sigmoid, tanh };
enum class Reduction : int { batchmean, sum, mean, none, dims };

constexpr int MAX_DIMS = 8;

// A strided tensor; strides count elements and may be 0 (expanded). data == nullptr: absent.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  int ndim = 0;
  int64_t shape[MAX_DIMS] = {};
  int64_t stride[MAX_DIMS] = {};
  explicit operator bool() const { return data != nullptr || present; }
  bool present = false;  // an empty tensor has no data and is there all the same

  int64_t numel() const {
    int64_t n = 1;
    for (int k = 0; k < ndim; ++k) n *= shape[k];
    return n;
  }
};

// Reconstruction + beta KL, either part absent; see reference.loss in vaekern/reference.py.
struct LossArgs {
  Tensor x_hat;         // [B, ...] or [L, B, ...]
  Tensor x;             // [B, ...]
  Tensor x_logvar;      // one number, [B, 1, ...], [...], [1, ...] or x's shape
  Tensor mu;            // [B, ...]
  Tensor logvar;        // mu's shape, or
  Tensor scale_tril;    // [B, d, d]
  Tensor prior_mu;      // mu's shape
  Tensor prior_logvar;  // mu's shape
  Tensor beta;          // one number; absent: beta_number
  Tensor upstream;      // backward only: one number, [B] (none) or mu's features (dims)
  Tensor value;         // forward only
  Tensor statistics;    // forward only
  Tensor grad_x_hat, grad_x, grad_x_logvar;  // each absent when not asked for
  Tensor grad_mu, grad_logvar, grad_scale_tril, grad_prior_mu, grad_prior_logvar;
  // Where given (forward, not for empty batches): last <- the variance; running <- it while it is
  // 0, then its moving average. Both float32 or both float64, contiguous.
  Tensor last, running;
  double momentum = 0;
  Objective objective = Objective::none;
  Activation activation = Activation::identity;
  Reduction reduction = Reduction::batchmean;
  double beta_number = 1;
  double eps = 1e-6;
  double logvar_min = -3e38, logvar_max = 3e38;
  double x_logvar_min = -3e38;
  int threads = 1;
};

// z = mu + sigma noise and, where asked for, the KL to N(0, I) per sample.
struct SampleArgs {
  Tensor mu;                                     // [B, ...]
  Tensor logvar;                                 // mu's shape, or
  Tensor scale_tril;                             // [B, d, d]
  Tensor noise;                                  // [B, ...] or [L, B, ...]
  Tensor z, kl;                                  // forward
  Tensor grad_z, grad_kl;                        // backward; either may be absent
  Tensor grad_mu, grad_logvar, grad_scale_tril;  // backward; each absent when not asked for
  int threads = 1;
};

// J [B, m, d] = U diag(S) V^T, d <= MAX_COLUMNS; float64 keeps all its digits, the other dtypes are
// computed in double as well and need less of it. S and V are float32, or float64 for a float64 J.
struct RightSvdArgs {
  Tensor J;                   // [B, m, d], m >= 1
  Tensor S, V;                // [B, d] descending, [B, d, d]; contiguous
  int64_t* status = nullptr;  // [B]: sweeps + 1; negative: they did not suffice; 0: not finite
  int threads = 1;
};

// The permutations of least cost: row i of cost [B, d, d] takes column columns[b, i].
struct AssignmentArgs {
  Tensor cost;                 // finite
  int64_t* columns = nullptr;  // [B, d]; -1 throughout where the cost is not finite
  int threads = 1;
};

constexpr int MAX_COLUMNS = 256;

// One instruction set's build of every kernel.
struct Kernels {
  const char* isa;
  void (*loss)(const LossArgs&);
  void (*sample)(const SampleArgs&);
  void (*sample_backward)(const SampleArgs&);
  // grads[i] *= factor, in place; returns at once where factor is 1.
  void (*scale)(const Tensor* grads, int count, const Tensor& factor, int threads);
  void (*right_svd)(const RightSvdArgs&);
  void (*assignment)(const AssignmentArgs&);
};

// The best build for this processor; VAEKERN_ISA=baseline|avx2|avx512 asks for another.
const Kernels& kernels();

}  // namespace vaekern
