// The Python module vaekern._core: reads tensors through DLPack's C exchange table and calls the
// kernels without the GIL. Arguments are validated above (vaekern/functional.py).
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "core.h"
#include "dlpack.h"

namespace py = pybind11;
using namespace vaekern;

namespace {

const dlpack::ExchangeApi* api = nullptr;

Tensor read(py::handle object) {
  Tensor t;
  if (object.is_none()) return t;
  dlpack::Tensor d;
  if (api->tensor_from_py_object(object.ptr(), &d) != 0) throw py::error_already_set();
  if (d.device.type != dlpack::CPU) throw std::invalid_argument("a tensor is not on the CPU");
  if (d.ndim > MAX_DIMS)
    throw std::invalid_argument("tensors of more than " + std::to_string(MAX_DIMS) +
                                " axes are not supported, got " + std::to_string(d.ndim) +
                                "; flatten the features");
  if (d.dtype.code == dlpack::FLOAT)
    t.dtype = d.dtype.bits == 64   ? DType::f64
              : d.dtype.bits == 32 ? DType::f32
                                   : DType::f16;
  else if (d.dtype.code == dlpack::BFLOAT)
    t.dtype = DType::bf16;
  else
    throw std::invalid_argument("a tensor is not floating point");
  t.data = static_cast<char*>(d.data) + d.byte_offset;
  t.present = true;
  t.ndim = d.ndim;
  int64_t step = 1;
  for (int k = d.ndim - 1; k >= 0; --k) {
    t.shape[k] = d.shape[k];
    t.stride[k] = d.strides ? d.strides[k] : step;
    step *= d.shape[k];
  }
  return t;
}

void init(py::capsule table) {
  auto* found = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(table.ptr(), "dlpack_exchange_api"));
  if (!found) throw py::error_already_set();
  while (found && found->version.major != 1) found = found->previous;
  if (!found || !found->tensor_from_py_object)
    throw std::runtime_error("torch publishes no DLPack 1.x exchange table");
  api = found;
}

void loss(py::handle x_hat, py::handle x, py::handle x_logvar, py::handle mu, py::handle logvar,
          py::handle scale_tril, py::handle prior_mu, py::handle prior_logvar, py::handle beta,
          py::handle upstream, py::handle value, py::handle statistics, py::handle grad_x_hat,
          py::handle grad_x, py::handle grad_x_logvar, py::handle grad_mu, py::handle grad_logvar,
          py::handle grad_scale_tril, py::handle grad_prior_mu, py::handle grad_prior_logvar,
          int objective, int activation, int reduction, double beta_number, double eps,
          double logvar_min, double logvar_max, double x_logvar_min, int threads) {
  LossArgs a;
  a.x_hat = read(x_hat);
  a.x = read(x);
  a.x_logvar = read(x_logvar);
  a.mu = read(mu);
  a.logvar = read(logvar);
  a.scale_tril = read(scale_tril);
  a.prior_mu = read(prior_mu);
  a.prior_logvar = read(prior_logvar);
  a.beta = read(beta);
  a.upstream = read(upstream);
  a.value = read(value);
  a.statistics = read(statistics);
  a.grad_x_hat = read(grad_x_hat);
  a.grad_x = read(grad_x);
  a.grad_x_logvar = read(grad_x_logvar);
  a.grad_mu = read(grad_mu);
  a.grad_logvar = read(grad_logvar);
  a.grad_scale_tril = read(grad_scale_tril);
  a.grad_prior_mu = read(grad_prior_mu);
  a.grad_prior_logvar = read(grad_prior_logvar);
  a.objective = Objective(objective);
  a.activation = Activation(activation);
  a.reduction = Reduction(reduction);
  a.beta_number = beta_number;
  a.eps = eps;
  a.logvar_min = logvar_min;
  a.logvar_max = logvar_max;
  a.x_logvar_min = x_logvar_min;
  a.threads = threads;
  py::gil_scoped_release release;
  kernels().loss(a);
}

void sample(py::handle mu, py::handle logvar, py::handle scale_tril, py::handle noise, py::handle z,
            py::handle kl, int threads) {
  SampleArgs a;
  a.mu = read(mu);
  a.logvar = read(logvar);
  a.scale_tril = read(scale_tril);
  a.noise = read(noise);
  a.z = read(z);
  a.kl = read(kl);
  a.threads = threads;
  py::gil_scoped_release release;
  kernels().sample(a);
}

void sample_backward(py::handle grad_z, py::handle grad_kl, py::handle mu, py::handle logvar,
                     py::handle scale_tril, py::handle noise, py::handle grad_mu,
                     py::handle grad_logvar, py::handle grad_scale_tril, int threads) {
  SampleArgs a;
  a.grad_z = read(grad_z);
  a.grad_kl = read(grad_kl);
  a.mu = read(mu);
  a.logvar = read(logvar);
  a.scale_tril = read(scale_tril);
  a.noise = read(noise);
  a.grad_mu = read(grad_mu);
  a.grad_logvar = read(grad_logvar);
  a.grad_scale_tril = read(grad_scale_tril);
  a.threads = threads;
  py::gil_scoped_release release;
  kernels().sample_backward(a);
}

void scale(py::sequence grads, py::handle factor, int threads) {
  constexpr int most = 8;
  Tensor tensors[most];
  const int count = int(py::len(grads));
  if (count > most) throw std::invalid_argument("at most 8 gradients");
  for (int k = 0; k < count; ++k) tensors[k] = read(grads[k]);
  const Tensor f = read(factor);
  py::gil_scoped_release release;
  kernels().scale(tensors, count, f, threads);
}

template <class C>
void track_as(const Tensor& last, const Tensor& running, const Tensor& variance, double momentum) {
  C* l = static_cast<C*>(last.data);
  C* r = static_cast<C*>(running.data);
  const int64_t n = last.numel();
  for (int64_t i = 0; i < n; ++i) {
    const C v = variance.dtype == DType::f64 ? C(static_cast<const double*>(variance.data)[i])
                                             : C(static_cast<const float*>(variance.data)[i]);
    r[i] = l[i] > 0 ? r[i] + C(momentum) * (v - r[i]) : v;
    l[i] = v;
  }
}

// last <- variance; running <- variance while last is 0, then its moving average
void track(py::handle last, py::handle running, py::handle variance, double momentum) {
  const Tensor l = read(last), r = read(running), v = read(variance);
  if (l.dtype == DType::f64)
    track_as<double>(l, r, v, momentum);
  else
    track_as<float>(l, r, v, momentum);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "vaekern's native CPU kernels";
  m.def("init", &init);
  m.def("isa", [] { return kernels().isa; });
  m.def("loss", &loss);
  m.def("sample", &sample);
  m.def("sample_backward", &sample_backward);
  m.def("scale", &scale);
  m.def("track", &track);
}
