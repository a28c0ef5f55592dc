// The Python module vaekern._core: reads tensors through DLPack's C exchange table and calls the
// kernels without the GIL. Arguments are validated above (vaekern/functional.py).
#include <pybind11/pybind11.h>

#include "core.h"
#include "read_tensor.h"

namespace py = pybind11;
using namespace vaekern;

namespace {

PyTypeObject *tensor_type = nullptr, *parameter_type = nullptr;

Tensor read(py::handle object) { return read_tensor(object, dlpack::CPU); }

void init(py::capsule table, py::type tensor, py::type parameter) {
  set_exchange_table(table);
  tensor_type = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());
  parameter_type = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
}

void loss(py::handle x_hat, py::handle x, py::handle x_logvar, py::handle mu, py::handle logvar,
          py::handle scale_tril, py::handle prior_mu, py::handle prior_logvar, py::handle beta,
          py::handle upstream, py::handle value, py::handle statistics, py::handle grad_x_hat,
          py::handle grad_x, py::handle grad_x_logvar, py::handle grad_mu, py::handle grad_logvar,
          py::handle grad_scale_tril, py::handle grad_prior_mu, py::handle grad_prior_logvar,
          py::handle last, py::handle running, double momentum, int objective, int activation,
          int reduction, double beta_number, double eps, double logvar_min, double logvar_max,
          double x_logvar_min, int threads) {
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
  a.last = read(last);
  a.running = read(running);
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

void scale(py::handle g0, py::handle g1, py::handle g2, py::handle g3, py::handle g4, py::handle g5,
           py::handle g6, py::handle g7, py::handle factor, int threads) {
  Tensor grads[8];
  int count = 0;
  for (py::handle g : {g0, g1, g2, g3, g4, g5, g6, g7})
    if (!g.is_none()) grads[count++] = read(g);
  const Tensor f = read(factor);
  py::gil_scoped_release release;
  kernels().scale(grads, count, f, threads);
}

void right_svd(py::handle J, py::handle S, py::handle V, uintptr_t status, int threads) {
  RightSvdArgs a;
  a.J = read(J);
  a.S = read(S);
  a.V = read(V);
  a.status = reinterpret_cast<int64_t*>(status);
  a.threads = threads;
  py::gil_scoped_release release;
  kernels().right_svd(a);
}

void assignment(py::handle cost, uintptr_t columns, int threads) {
  AssignmentArgs a;
  a.cost = read(cost);
  a.columns = reinterpret_cast<int64_t*>(columns);
  a.threads = threads;
  py::gil_scoped_release release;
  kernels().assignment(a);
}

bool same_shape(const Tensor& a, const Tensor& b, int skip = 0) {
  if (a.ndim != b.ndim + skip) return false;
  for (int k = 0; k < b.ndim; ++k)
    if (a.shape[k + skip] != b.shape[k]) return false;
  return true;
}

// Is x_logvar one number, per sample, per dimension or per element?
bool known_layout(const Tensor& v, const Tensor& x) {
  if (v.numel() == 1 && v.ndim <= x.ndim) return true;
  if (same_shape(v, x) || same_shape(x, v, 1)) return true;
  if (v.ndim != x.ndim) return false;
  bool features = v.shape[0] == 1;
  for (int k = 1; features && k < x.ndim; ++k) features = v.shape[k] == x.shape[k];
  return features || (v.shape[0] == x.shape[0] && v.numel() == x.shape[0]);
}

// The bits of a buffer that the kernel may write: `n` numbers, contiguous, float32 or float64, on
// the CPU; else 0.
int tracked(py::handle buffer, int64_t n) {
  dlpack::Tensor d;
  if (exchange_table()->tensor_from_py_object(buffer.ptr(), &d) != 0) {
    PyErr_Clear();
    return 0;
  }
  if (!d.data || d.device.type != dlpack::CPU || d.dtype.code != dlpack::FLOAT || d.dtype.bits < 32)
    return 0;
  int64_t step = 1;
  for (int k = d.ndim - 1; k >= 0; --k) {
    if (d.strides && d.shape[k] != 1 && d.strides[k] != step) return 0;
    step *= d.shape[k];
  }
  return step == n ? d.dtype.bits : 0;
}

// The whole validation of a loss's tensors, for the case that nothing is wrong: 1 = some input is
// half precision, 2 = some is float64; -1 = anything out of the ordinary, which Python explains.
int check(py::handle x_hat, py::handle x, py::handle x_logvar, py::handle mu, py::handle logvar,
          py::handle scale_tril, py::handle last, py::handle running, int objective) {
  py::handle given[] = {x_hat, x, mu, x_logvar, logvar, scale_tril};
  Tensor t[6];
  int flags = 0;
  for (int k = 0; k < 6; ++k) {
    if (given[k].is_none()) {
      if (k < 3) return -1;
      continue;
    }
    PyTypeObject* type = Py_TYPE(given[k].ptr());
    if (type != tensor_type && type != parameter_type) return -1;
    dlpack::Tensor d;
    if (exchange_table()->tensor_from_py_object(given[k].ptr(), &d) != 0) {
      PyErr_Clear();
      return -1;
    }
    const bool wide = d.dtype.code == dlpack::FLOAT && d.dtype.bits >= 32;
    const bool narrow =
        d.dtype.bits == 16 && (d.dtype.code == dlpack::FLOAT || d.dtype.code == dlpack::BFLOAT);
    if ((!wide && !narrow) || d.device.type != dlpack::CPU || d.ndim < 1 || d.ndim > MAX_DIMS)
      if (k < 3 || d.ndim != 0) return -1;
    flags |= narrow ? 1 : d.dtype.bits == 64 ? 2 : 0;
    t[k].present = true;
    t[k].ndim = d.ndim;
    for (int j = 0; j < d.ndim; ++j) t[k].shape[j] = d.shape[j];
    if (!d.data && t[k].numel()) return -1;
  }
  const Tensor &a = t[0], &data = t[1], &m = t[2];
  if (!same_shape(a, data) && !(same_shape(a, data, 1) && a.shape[0] > 0)) return -1;
  if (data.numel() == 0 || m.shape[0] != data.shape[0]) return -1;
  if (t[3].present && !known_layout(t[3], data)) return -1;
  if (t[4].present == t[5].present) return -1;
  if (t[4].present && !same_shape(t[4], m)) return -1;
  if (t[5].present && (m.ndim != 2 || t[5].ndim != 3 || t[5].shape[0] != m.shape[0] ||
                       t[5].shape[1] != m.shape[1] || t[5].shape[2] != m.shape[1]))
    return -1;
  if (last.is_none()) return flags;
  const int64_t variances =
      Objective(objective) == Objective::diag_i ? data.numel() / data.shape[0] : 1;
  const int bits = tracked(last, variances);
  return bits && bits == tracked(running, variances) ? flags : -1;
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
  m.def("right_svd", &right_svd);
  m.def("assignment", &assignment);
  m.def("check", &check);
}
