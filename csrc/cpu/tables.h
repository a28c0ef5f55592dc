// Every kernel of one instruction set; dispatch.cpp puts them into Kernels.
#pragma once

#include "../core.h"

#ifndef VAEKERN_ISA
#define VAEKERN_ISA baseline
#endif

#define VAEKERN_DECLARE(ISA)                                                     \
  namespace ISA {                                                                \
  void loss(const LossArgs&);                                                    \
  void sample(const SampleArgs&);                                                \
  void sample_backward(const SampleArgs&);                                       \
  void scale(const Tensor* grads, int count, const Tensor& factor, int threads); \
  void right_svd(const RightSvdArgs&);                                           \
  void assignment(const AssignmentArgs&);                                        \
  }

namespace vaekern {
VAEKERN_DECLARE(baseline)
VAEKERN_DECLARE(avx2)
VAEKERN_DECLARE(avx512)
}  // namespace vaekern
