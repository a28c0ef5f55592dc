// Tasks on OpenMP threads. A task's result depends on its index alone and results are combined in
// order, so the bits do not depend on the number of threads.
#pragma once

#include <cstdint>

namespace vaekern {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t PARALLEL_ELEMENTS = 100'000;

template <class Task>
inline void parallel_for(int64_t tasks, int64_t elements, int threads, Task task) {
#ifdef _OPENMP
  if (threads > 1 && tasks > 1 && elements >= PARALLEL_ELEMENTS) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < tasks; ++t) task(t);
    return;
  }
#endif
  for (int64_t t = 0; t < tasks; ++t) task(t);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace vaekern
