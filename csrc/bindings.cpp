// The Python module vaekern._core: reads tensors through DLPack's C exchange table and calls the
// kernels without the GIL. Arguments are validated above (vaekern/functional.py).
#include <pybind11/pybind11.h>

#include "core.h"
#include "read_args.h"

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

template <class Args>
auto native(void (*run)(const Args&)) {
  return [run](const Args& a) {
    py::gil_scoped_release release;
    run(a);
  };
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
  const Kernels& k = kernels();
  m.def("loss", reading<dlpack::CPU>(read_loss, native(k.loss)));
  m.def("sample", reading<dlpack::CPU>(read_sample, native(k.sample)));
  m.def("sample_backward", reading<dlpack::CPU>(read_sample_backward, native(k.sample_backward)));
  m.def("scale", reading<dlpack::CPU>(read_scale, [](const ScaleArgs& a) {
          py::gil_scoped_release release;
          kernels().scale(a.grads, a.count, a.factor, a.threads);
        }));
  m.def("right_svd", &right_svd);
  m.def("assignment", &assignment);
  m.def("check", &check);
}
