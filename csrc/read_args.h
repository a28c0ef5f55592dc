// The operators' arguments from Python, by position as vaekern/backends.py says (LossKernels); the
// same for the CPU core and the CUDA kernels.
#pragma once

#include "read_tensor.h"

namespace vaekern {

inline LossArgs read_loss(int32_t device_type, pybind11::handle x_hat, pybind11::handle x,
                          pybind11::handle x_logvar, pybind11::handle mu, pybind11::handle logvar,
                          pybind11::handle scale_tril, pybind11::handle prior_mu,
                          pybind11::handle prior_logvar, pybind11::handle beta,
                          pybind11::handle upstream, pybind11::handle value,
                          pybind11::handle statistics, pybind11::handle grad_x_hat,
                          pybind11::handle grad_x, pybind11::handle grad_x_logvar,
                          pybind11::handle grad_mu, pybind11::handle grad_logvar,
                          pybind11::handle grad_scale_tril, pybind11::handle grad_prior_mu,
                          pybind11::handle grad_prior_logvar, pybind11::handle last,
                          pybind11::handle running, double momentum, int objective, int activation,
                          int reduction, double beta_number, double eps, double logvar_min,
                          double logvar_max, double x_logvar_min, int threads) {
  LossArgs a;
  a.x_hat = read_tensor(x_hat, device_type);
  a.x = read_tensor(x, device_type);
  a.x_logvar = read_tensor(x_logvar, device_type);
  a.mu = read_tensor(mu, device_type);
  a.logvar = read_tensor(logvar, device_type);
  a.scale_tril = read_tensor(scale_tril, device_type);
  a.prior_mu = read_tensor(prior_mu, device_type);
  a.prior_logvar = read_tensor(prior_logvar, device_type);
  a.beta = read_tensor(beta, device_type);
  a.upstream = read_tensor(upstream, device_type);
  a.value = read_tensor(value, device_type);
  a.statistics = read_tensor(statistics, device_type);
  a.grad_x_hat = read_tensor(grad_x_hat, device_type);
  a.grad_x = read_tensor(grad_x, device_type);
  a.grad_x_logvar = read_tensor(grad_x_logvar, device_type);
  a.grad_mu = read_tensor(grad_mu, device_type);
  a.grad_logvar = read_tensor(grad_logvar, device_type);
  a.grad_scale_tril = read_tensor(grad_scale_tril, device_type);
  a.grad_prior_mu = read_tensor(grad_prior_mu, device_type);
  a.grad_prior_logvar = read_tensor(grad_prior_logvar, device_type);
  a.last = read_tensor(last, device_type);
  a.running = read_tensor(running, device_type);
  a.momentum = momentum;
  a.objective = Objective(objective);
  a.activation = Activation(activation);
  a.reduction = Reduction(reduction);
  a.beta_number = beta_number;
  a.eps = eps;
  a.logvar_min = logvar_min;
  a.logvar_max = logvar_max;
  a.x_logvar_min = x_logvar_min;
  a.threads = threads;
  return a;
}

inline SampleArgs read_sample(int32_t device_type, pybind11::handle mu, pybind11::handle logvar,
                              pybind11::handle scale_tril, pybind11::handle noise,
                              pybind11::handle z, pybind11::handle kl, int threads) {
  SampleArgs a;
  a.mu = read_tensor(mu, device_type);
  a.logvar = read_tensor(logvar, device_type);
  a.scale_tril = read_tensor(scale_tril, device_type);
  a.noise = read_tensor(noise, device_type);
  a.z = read_tensor(z, device_type);
  a.kl = read_tensor(kl, device_type);
  a.threads = threads;
  return a;
}

inline SampleArgs read_sample_backward(int32_t device_type, pybind11::handle grad_z,
                                       pybind11::handle grad_kl, pybind11::handle mu,
                                       pybind11::handle logvar, pybind11::handle scale_tril,
                                       pybind11::handle noise, pybind11::handle grad_mu,
                                       pybind11::handle grad_logvar,
                                       pybind11::handle grad_scale_tril, int threads) {
  SampleArgs a;
  a.grad_z = read_tensor(grad_z, device_type);
  a.grad_kl = read_tensor(grad_kl, device_type);
  a.mu = read_tensor(mu, device_type);
  a.logvar = read_tensor(logvar, device_type);
  a.scale_tril = read_tensor(scale_tril, device_type);
  a.noise = read_tensor(noise, device_type);
  a.grad_mu = read_tensor(grad_mu, device_type);
  a.grad_logvar = read_tensor(grad_logvar, device_type);
  a.grad_scale_tril = read_tensor(grad_scale_tril, device_type);
  a.threads = threads;
  return a;
}

struct ScaleArgs {
  Tensor grads[8];
  int count = 0;
  Tensor factor;
  int threads = 1;
};

inline ScaleArgs read_scale(int32_t device_type, pybind11::handle g0, pybind11::handle g1,
                            pybind11::handle g2, pybind11::handle g3, pybind11::handle g4,
                            pybind11::handle g5, pybind11::handle g6, pybind11::handle g7,
                            pybind11::handle factor, int threads) {
  ScaleArgs a;
  for (pybind11::handle g : {g0, g1, g2, g3, g4, g5, g6, g7})
    if (!g.is_none()) a.grads[a.count++] = read_tensor(g, device_type);
  a.factor = read_tensor(factor, device_type);
  a.threads = threads;
  return a;
}

// What Python calls: the arguments of `read` on one type of device, and what to do with them.
template <int32_t DEVICE, class Args, class... Given, class Run>
auto reading(Args (*read)(int32_t, Given...), Run run) {
  return [=](Given... given) { run(read(DEVICE, given...)); };
}

}  // namespace vaekern
