// The part of DLPack 1.x's C ABI that reading a tensor from a Python object needs; layouts as in
// the DLPack specification (dmlc/dlpack, include/dlpack/dlpack.h), which fixes them for major
// version 1.
#pragma once

#include <cstdint>

namespace dlpack {

struct Version {
  uint32_t major, minor;
};

struct Device {
  int32_t type, id;
};
constexpr int32_t CPU = 1, CUDA = 2;

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
constexpr uint8_t INT = 0, UINT = 1, FLOAT = 2, BFLOAT = 4, BOOL = 6;

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // may be null: contiguous
  uint64_t byte_offset;
};

// Published by a tensor type as the capsule __dlpack_c_exchange_api__.
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object;
  void* managed_tensor_to_py_object;
  int (*tensor_from_py_object)(void* object,
                               Tensor* out);  // borrowed; valid while the object lives
  void* current_work_stream;
};

}  // namespace dlpack
