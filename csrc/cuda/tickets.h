// Counters for the blocks of a launch, which the kernels put back to 0: launches on one stream
// follow one another and share one, every captured launch has its own for as long as the process
// lives (graphs may run at the same time, wherever they were captured).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

#include "kernels.h"

namespace vaekern {

class Tickets {
 public:
  // Memory for a device's tickets, outside of any capture. Waits for the device.
  int prepare(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Slab& slab = slabs_[device];
    if (slab.base != nullptr) return cudaSuccess;
    void* memory = nullptr;
    cudaError_t error = cudaMalloc(&memory, COUNT * sizeof(unsigned));
    if (error == cudaSuccess) error = cudaMemset(memory, 0, COUNT * sizeof(unsigned));
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    if (error == cudaSuccess) slab.base = static_cast<unsigned*>(memory);
    return error;
  }

  // The current device's.
  int take(int device, cuda::Launch& to) {
    const auto stream = static_cast<cudaStream_t>(to.stream);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (const cudaError_t error = cudaStreamIsCapturing(stream, &status)) return error;
    const bool captured = status != cudaStreamCaptureStatusNone;
    if (!captured && !is_prepared(device))
      if (const int error = prepare(device)) return error;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      Slab& slab = slabs_[device];
      if (!captured) {
        const auto found = slab.of_stream.find(to.stream);
        if (found != slab.of_stream.end()) {
          to.ticket = found->second;
          return cudaSuccess;
        }
      }
      if (slab.base != nullptr && slab.used < COUNT) {
        to.ticket = slab.base + slab.used++;
        if (!captured) slab.of_stream[to.stream] = to.ticket;
        return cudaSuccess;
      }
    }
    // none left: one more node in the graph
    to.ticket = static_cast<unsigned*>(to.workspace);
    return cudaMemsetAsync(to.ticket, 0, sizeof(unsigned), stream);
  }

 private:
  static constexpr int COUNT = 16384;

  struct Slab {
    unsigned* base = nullptr;
    int used = 0;
    std::map<void*, unsigned*> of_stream;
  };

  bool is_prepared(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return slabs_[device].base != nullptr;
  }

  std::mutex mutex_;
  std::map<int, Slab> slabs_;
};

inline Tickets& tickets() {
  static Tickets* all = new Tickets;  // the driver may be gone when the process ends
  return *all;
}

}  // namespace vaekern
