// The Python module vaekern._cuda: reads tensors through DLPack's C exchange table and launches the
// kernels on the stream it is given. Arguments are validated above (vaekern/linalg.py).
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include "../read_args.h"
#include "kernels.h"
#include "tickets.h"

namespace py = pybind11;
using namespace vaekern;

namespace {

void raise_on(int code, const char* what) {
  const auto error = static_cast<cudaError_t>(code);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // a launch that was refused must not be reported by the next one
  throw std::runtime_error(std::string(what) + ": CUDA error " + std::to_string(code) + ", " +
                           cudaGetErrorString(error));
}

// The caller holds torch's current device on this one; this run time, linked statically, has a
// notion of its own.
void use_device(int device) { raise_on(cudaSetDevice(device), "cannot use the CUDA device"); }

void* pointer(py::handle object, uint8_t code, int bits, int64_t numel) {
  return read_contiguous(object, dlpack::CUDA, code, bits, numel);
}

Tensor read_matrices(py::handle object) {
  const Tensor t = read_tensor(object, dlpack::CUDA);
  if (t.ndim != 3 || t.shape[2] > cuda::LARGEST_D)
    throw std::invalid_argument("matrices must be [B, m, d] with d up to " +
                                std::to_string(cuda::LARGEST_D));
  return t;
}

int64_t right_svd_workspace(int64_t batch, int64_t m, int64_t d, int device) {
  use_device(device);
  size_t bytes = 0;
  raise_on(cuda::right_svd_workspace(batch, m, d, &bytes), "right_svd");
  return int64_t(bytes);
}

void right_svd(py::handle jacobian, py::handle S, py::handle V, py::handle sweeps,
               py::handle converged, py::handle finite, py::handle workspace, int device,
               uintptr_t stream) {
  use_device(device);
  cuda::RightSvdArgs args;
  args.jacobian = read_matrices(jacobian);
  if (args.jacobian.dtype == DType::f64)
    throw std::invalid_argument("right_svd has no float64 kernel for CUDA devices");
  const int64_t batch = args.jacobian.shape[0], d = args.jacobian.shape[2];
  size_t bytes = 0;
  raise_on(cuda::right_svd_workspace(batch, args.jacobian.shape[1], d, &bytes), "right_svd");
  args.S = static_cast<float*>(pointer(S, dlpack::FLOAT, 32, batch * d));
  args.V = static_cast<float*>(pointer(V, dlpack::FLOAT, 32, batch * d * d));
  args.sweeps = static_cast<int32_t*>(pointer(sweeps, dlpack::INT, 32, batch));
  args.converged = static_cast<uint8_t*>(pointer(converged, dlpack::BOOL, 8, batch));
  args.finite = static_cast<uint8_t*>(pointer(finite, dlpack::BOOL, 8, batch));
  args.workspace = pointer(workspace, dlpack::UINT, 8, int64_t(bytes));
  args.stream = reinterpret_cast<void*>(stream);
  raise_on(cuda::right_svd(args), "right_svd could not be launched");
}

void assignment(py::handle cost, py::handle columns, int device, uintptr_t stream) {
  use_device(device);
  cuda::AssignmentArgs args;
  args.cost = read_matrices(cost);
  if (args.cost.shape[1] != args.cost.shape[2])
    throw std::invalid_argument("cost matrices must be square");
  const int64_t numel = args.cost.shape[0] * args.cost.shape[1];
  args.columns = static_cast<int64_t*>(pointer(columns, dlpack::INT, 64, numel));
  args.stream = reinterpret_cast<void*>(stream);
  raise_on(cuda::assignment(args), "assignment could not be launched");
}

// Calls whose last arguments are the device and its stream.
template <class Args, class... Given, class Run>
auto launching(const char* name, Args (*read)(int32_t, Given...), Run run) {
  return [=](Given... given, int device, uintptr_t stream) {
    const Args args = read(dlpack::CUDA, given...);
    use_device(device);
    const int error = run(args, device, reinterpret_cast<void*>(stream));
    raise_on(error, name);
  };
}

template <class... Given>
auto launching_loss(LossArgs (*read)(int32_t, Given...)) {
  return [=](Given... given, py::handle workspace, int device, uintptr_t stream) {
    const LossArgs args = read(dlpack::CUDA, given...);
    use_device(device);
    const Tensor& like = args.x ? args.x : args.mu;
    int64_t features = 1;
    for (int k = 1; k < like.ndim; ++k) features *= like.shape[k];
    cuda::Launch to;
    to.stream = reinterpret_cast<void*>(stream);
    to.workspace =
        pointer(workspace, dlpack::UINT, 8, cuda::loss_workspace(like.shape[0], features));
    raise_on(tickets().take(device, to), "a ticket for the loss");
    raise_on(cuda::loss(args, to), "the loss could not be launched");
  };
}

bool writes_gradients(int objective, int64_t samples, int64_t batch, int64_t features, bool grad_x,
                      bool in_double, int device) {
  use_device(device);
  return cuda::loss_writes_gradients(Objective(objective), samples, batch, features, grad_x,
                                     in_double);
}

// Launches a kernel on a one-by-one matrix in the device's memory and waits for it; raises CUDA's
// reason where that is not possible. The answer is 0.
int64_t probe(int device) {
  use_device(device);
  struct Memory {
    double cost = 1;
    int64_t column = -1;
  } here;
  Memory* there = nullptr;
  raise_on(cudaMalloc(reinterpret_cast<void**>(&there), sizeof here), "no memory on the device");
  cudaError_t error = cudaMemcpy(there, &here, sizeof here, cudaMemcpyHostToDevice);
  if (error == cudaSuccess) {
    cuda::AssignmentArgs args;
    args.cost.data = &there->cost;
    args.cost.dtype = DType::f64;
    args.cost.ndim = 3;
    for (int k = 0; k < 3; ++k) args.cost.shape[k] = args.cost.stride[k] = 1;
    args.columns = &there->column;
    error = static_cast<cudaError_t>(cuda::assignment(args));
  }
  if (error == cudaSuccess) error = cudaMemcpy(&here, there, sizeof here, cudaMemcpyDeviceToHost);
  cudaFree(there);
  raise_on(error, "a trial launch failed");
  raise_on(tickets().prepare(device), "no memory on the device");
  return here.column;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "vaekern's CUDA kernels";
  m.attr("architectures") = VAEKERN_CUDA_ARCHITECTURES;
  m.def("init", [](py::capsule table) { set_exchange_table(table); });
  m.def("probe", &probe);
  m.def("right_svd_workspace", &right_svd_workspace);
  m.def("right_svd", &right_svd);
  m.def("assignment", &assignment);
  m.def("loss_workspace", &cuda::loss_workspace);
  m.def("writes_gradients", &writes_gradients);
  m.def("loss", launching_loss(read_loss));
  m.def("scale", launching("scale could not be launched", read_scale,
                           [](const ScaleArgs& a, int, void* stream) {
                             return cuda::scale(a.grads, a.count, a.factor, stream);
                           }));
  m.def("sample",
        launching("sample could not be launched", read_sample,
                  [](const SampleArgs& a, int, void* stream) { return cuda::sample(a, stream); }));
  m.def("sample_backward", launching("sample_backward could not be launched", read_sample_backward,
                                     [](const SampleArgs& a, int, void* stream) {
                                       return cuda::sample_backward(a, stream);
                                     }));
}
