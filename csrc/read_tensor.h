// Reads tensors from Python objects through DLPack's C exchange table, which torch publishes on its
// Tensor type: pointer, device, dtype, shape and strides, without a call into Python.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "core.h"
#include "dlpack.h"

namespace vaekern {

// The table, once set_exchange_table() has been called.
inline const dlpack::ExchangeApi*& exchange_table() {
  static const dlpack::ExchangeApi* table = nullptr;
  return table;
}

inline void set_exchange_table(pybind11::capsule capsule) {
  auto* found = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!found) throw pybind11::error_already_set();
  while (found && found->version.major != 1) found = found->previous;
  if (!found || !found->tensor_from_py_object)
    throw std::runtime_error("torch publishes no DLPack 1.x exchange table");
  exchange_table() = found;
}

inline dlpack::Tensor exchange(pybind11::handle object, int32_t device_type) {
  dlpack::Tensor d;
  if (exchange_table()->tensor_from_py_object(object.ptr(), &d) != 0)
    throw pybind11::error_already_set();
  if (d.device.type != device_type)
    throw std::invalid_argument(device_type == dlpack::CPU ? "a tensor is not on the CPU"
                                                           : "a tensor is not on a CUDA device");
  return d;
}

// A floating-point tensor; None: an absent one.
inline Tensor read_tensor(pybind11::handle object, int32_t device_type) {
  Tensor t;
  if (object.is_none()) return t;
  const dlpack::Tensor d = exchange(object, device_type);
  if (d.ndim > MAX_DIMS)
    throw std::invalid_argument("tensors of more than " + std::to_string(MAX_DIMS) +
                                " axes are not supported, got " + std::to_string(d.ndim) +
                                "; flatten the features");
  if (d.dtype.code == dlpack::FLOAT)
    t.dtype = d.dtype.bits == 64 ? DType::f64 : d.dtype.bits == 32 ? DType::f32 : DType::f16;
  else if (d.dtype.code == dlpack::BFLOAT)
    t.dtype = DType::bf16;
  else
    throw std::invalid_argument("a tensor is not floating point");
  t.data = d.data ? static_cast<char*>(d.data) + d.byte_offset : nullptr;
  t.present = true;
  t.ndim = d.ndim;
  int64_t step = 1;
  for (int k = d.ndim - 1; k >= 0; --k) {
    t.shape[k] = d.shape[k];
    t.stride[k] = d.strides ? d.strides[k] : step;
    step *= d.shape[k];
  }
  if (!t.data && t.numel()) throw std::invalid_argument("a tensor has no memory of its own");
  return t;
}

// The memory of a contiguous tensor of `numel` elements of `code` (dlpack::INT, ...) and `bits`.
inline void* read_contiguous(pybind11::handle object, int32_t device_type, uint8_t code, int bits,
                             int64_t numel) {
  const dlpack::Tensor d = exchange(object, device_type);
  int64_t step = 1;
  bool fits = d.dtype.code == code && d.dtype.bits == bits;
  for (int k = d.ndim - 1; k >= 0; --k) {
    fits = fits && (!d.strides || d.shape[k] == 1 || d.strides[k] == step);
    step *= d.shape[k];
  }
  if (!fits || step != numel) throw std::invalid_argument("a result has another dtype or size");
  return d.data ? static_cast<char*>(d.data) + d.byte_offset : nullptr;
}

}  // namespace vaekern
