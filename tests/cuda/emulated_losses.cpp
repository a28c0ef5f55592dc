// The losses' CUDA kernels behind the CPU core's interface, run on the CPU: with csrc/bindings.cpp
// they are a module like vaekern._core.
#include <cstdio>
#include <stdexcept>

#include "../../csrc/cuda/loss.cu"
#include "../../csrc/cuda/sample.cu"
#include "../../csrc/cuda/scale.cu"

namespace vaekern {

namespace {

struct alignas(16) Unit {
  double numbers[2];
};

void require(bool good, const char* what) {
  if (!good) throw std::runtime_error(what);
}

void run_loss(const LossArgs& args) {
  const Tensor& like = args.x ? args.x : args.mu;
  int64_t features = 1;
  for (int k = 1; k < like.ndim; ++k) features *= like.shape[k];
  const int64_t units = cuda::loss_workspace(like.shape[0], features) / int64_t(sizeof(Unit));
  constexpr int64_t GUARD_UNITS = 32;
  const double nan = std::nan("");
  std::vector<Unit> workspace(units + GUARD_UNITS, Unit{{nan, nan}});
  const unsigned left = emulator::fault == emulator::Fault::ticket;
  unsigned ticket = left;
  cuda::Launch to;
  to.workspace = workspace.data();
  to.ticket = &ticket;
  emulator::launches_before = emulator::launches;
  require(cuda::loss(args, to) == 0, "the loss could not be emulated");
  require(ticket == left, "the ticket is not as it was");
  for (int64_t k = units; k < units + GUARD_UNITS; ++k)
    require(std::isnan(workspace[k].numbers[0]), "the workspace is overrun");
}

void run_sample(const SampleArgs& args) {
  require(cuda::sample(args, nullptr) == 0, "sample could not be emulated");
}

void run_sample_backward(const SampleArgs& args) {
  require(cuda::sample_backward(args, nullptr) == 0, "sample_backward could not be emulated");
}

void run_scale(const Tensor* grads, int count, const Tensor& factor, int) {
  require(cuda::scale(grads, count, factor, nullptr) == 0, "scale could not be emulated");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels emulated{"emulated CUDA", run_loss, run_sample, run_sample_backward,
                                run_scale,       nullptr,  nullptr};
  return emulated;
}

}  // namespace vaekern

extern "C" {

__attribute__((visibility("default"))) int writes_gradients(int objective, int64_t samples,
                                                            int64_t batch, int64_t features,
                                                            int grad_x, int in_double) {
  return vaekern::cuda::loss_writes_gradients(vaekern::Objective(objective), samples, batch,
                                              features, grad_x != 0, in_double != 0);
}

__attribute__((visibility("default"))) void set_emulator(int order, int shared_memory_limit) {
  emulator::order = emulator::Order(order);
  emulator::shared_memory_limit = shared_memory_limit;
}

__attribute__((visibility("default"))) void set_fault(int fault) {
  emulator::fault = emulator::Fault(fault);
}

__attribute__((visibility("default"))) int64_t launches() { return emulator::launches; }
}
