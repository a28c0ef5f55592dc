// Linear assignment by shortest augmenting paths, one warp to a matrix: every lane keeps the state
// of its columns in registers, the rows' duals lie in shared memory, and a step of the search is
// one row of costs and one minimum over the warp. It takes the same steps in the same arithmetic as
// SciPy's linear_sum_assignment, so that ties fall the same way: columns are scanned in the order
// of a list that starts as d - 1, ..., 0 and closes a gap with its last element; of equally near
// columns the first is taken, unless one is unassigned, of which then the last.
#include <limits>

#include "device.h"
#include "kernels.h"

namespace vaekern {
namespace cuda {

namespace {

constexpr double INFINITE = std::numeric_limits<double>::infinity();

struct Costs {
  const void* data;
  DType dtype;
  int64_t stride_b, stride_i, stride_j;
  int d;
  bool in_shared;
  int64_t* columns;
};

__device__ double load_cost(const Costs& costs, int64_t offset) {
  switch (costs.dtype) {
    case DType::f64: return static_cast<const double*>(costs.data)[offset];
    case DType::f32: return static_cast<const float*>(costs.data)[offset];
    case DType::bf16: return bfloat_to_float(static_cast<const uint16_t*>(costs.data)[offset]);
    default: return half_to_float(static_cast<const uint16_t*>(costs.data)[offset]);
  }
}

// Unsigned integers in the order of the doubles. (No distance is -0: sums that start at 0 never
// are.)
VAEKERN_DEVICE uint64_t ordered(double x) {
  const uint64_t bits = uint64_t(__double_as_longlong(x));
  return bits >> 63 ? ~bits : bits | uint64_t(1) << 63;
}

// What one lane knows of its columns lane, lane + 32, ...
template <int K>
struct Columns {
  double v[K], shortest[K];
  int path[K], row[K], place[K];  // place: in the list of those not reached yet; -1: reached
};

// A step's minimum: the distance first, then an unassigned column before an assigned one and the
// place as said above, packed so that the smallest number wins.
template <int K>
VAEKERN_DEVICE uint32_t nearest(const Columns<K>& c, double& distance) {
  double best = INFINITE;
  uint32_t key = ~0u;
#pragma unroll
  for (int t = 0; t < K; ++t) {
    if (c.place[t] < 0) continue;
    const uint32_t mine =
        c.row[t] < 0 ? uint32_t(0xffff - c.place[t]) : 0x10000u + uint32_t(c.place[t]);
    if (c.shortest[t] < best || (c.shortest[t] == best && mine < key)) {
      best = c.shortest[t];
      key = mine;
    }
  }
  const uint64_t bits = ordered(best);
  const uint32_t high = __reduce_min_sync(ALL_LANES, uint32_t(bits >> 32));
  const uint32_t low =
      __reduce_min_sync(ALL_LANES, uint32_t(bits >> 32) == high ? uint32_t(bits) : ~0u);
  const bool least = uint32_t(bits >> 32) == high && uint32_t(bits) == low;
  const uint32_t winner = __reduce_min_sync(ALL_LANES, least ? key : ~0u);
  const unsigned holders = __ballot_sync(ALL_LANES, least && key == winner);
  if (holders == 0) return ~0u;
  distance = __shfl_sync(ALL_LANES, best, __ffs(int(holders)) - 1);
  return distance < INFINITE ? winner : ~0u;
}

template <class T, int K>
__global__ void __launch_bounds__(32, 1) assign(Costs costs) {
  VAEKERN_DYNAMIC_SHARED(memory);
  const int d = costs.d, lane = threadIdx.x;
  const int64_t offset = int64_t(blockIdx.x) * costs.stride_b;
  double* u = reinterpret_cast<double*>(memory);   // [d]
  int* column_of = reinterpret_cast<int*>(u + d);  // [d]
  int* row_of = column_of + d;                     // [d]
  int* reached = row_of + d;                       // [d] rows, in a search
  int* path_of = reached + d;                      // [d] of columns, for walking back
  T* table = reinterpret_cast<T*>(path_of + d);
  int64_t* out = costs.columns + int64_t(blockIdx.x) * d;

  // neighbouring lanes on the axis whose elements are neighbours
  const bool by_row = costs.stride_j <= costs.stride_i;
  const int64_t outer = by_row ? costs.stride_i : costs.stride_j;
  const int64_t inner = by_row ? costs.stride_j : costs.stride_i;
  bool invalid = false;
  for (int i = 0; i < d; ++i)
    for (int j = lane; j < d; j += 32) {
      const double cost = load_cost(costs, offset + i * outer + j * inner);
      invalid = invalid || !isfinite(cost);
      if (costs.in_shared) table[by_row ? i * d + j : j * d + i] = T(cost);
    }
  invalid = __any_sync(ALL_LANES, invalid);

  Columns<K> c;
#pragma unroll
  for (int t = 0; t < K; ++t) {
    c.v[t] = 0;
    c.path[t] = c.row[t] = -1;
  }
  for (int i = lane; i < d; i += 32) {
    u[i] = 0;
    column_of[i] = row_of[i] = -1;
  }
  __syncwarp();

  for (int start = 0; start < d && !invalid; ++start) {
    int left = d, i = start, sink = -1;
    double distance = 0;
#pragma unroll
    for (int t = 0; t < K; ++t) {
      const int j = lane + 32 * t;
      c.shortest[t] = INFINITE;
      c.place[t] = j < d ? d - 1 - j : -1;
    }
    for (int k = lane; k < d; k += 32) reached[k] = k == start;
    __syncwarp();
    while (sink < 0) {
      const double dual = u[i];
#pragma unroll
      for (int t = 0; t < K; ++t) {
        if (c.place[t] < 0) continue;
        const int j = lane + 32 * t;
        const double cost =
            costs.in_shared ? double(table[i * d + j])
                            : load_cost(costs, offset + i * costs.stride_i + j * costs.stride_j);
        const double through = distance + cost - dual - c.v[t];
        if (through < c.shortest[t]) {
          c.shortest[t] = through;
          c.path[t] = i;
        }
      }
      const uint32_t key = nearest<K>(c, distance);
      if (key == ~0u) {
        invalid = true;
        break;
      }
      const bool is_sink = key < 0x10000u;
      const int place = is_sink ? 0xffff - int(key) : int(key - 0x10000u);
      --left;
      int found = -1;
#pragma unroll
      for (int t = 0; t < K; ++t) {
        const bool chosen = c.place[t] == place;
        if (chosen) {
          found = is_sink ? lane + 32 * t : c.row[t];
          c.place[t] = -1;
        } else if (c.place[t] == left) {
          c.place[t] = place;
        }
      }
      const unsigned holder = __ballot_sync(ALL_LANES, found >= 0);
      found = __shfl_sync(ALL_LANES, found, __ffs(int(holder)) - 1);
      if (is_sink) {
        sink = found;
      } else {
        i = found;
        if (lane == 0) reached[i] = 1;
      }
    }
    if (invalid) break;
    __syncwarp();
    // duals: of the rows reached, u += distance - shortest of the row's column; of the columns
    // reached, v -= distance - shortest
#pragma unroll
    for (int t = 0; t < K; ++t) {
      const int j = lane + 32 * t;
      if (j >= d) continue;
      if (c.row[t] >= 0 && reached[c.row[t]]) u[c.row[t]] += distance - c.shortest[t];
      if (c.place[t] < 0) c.v[t] -= distance - c.shortest[t];
      path_of[j] = c.path[t];
    }
    if (lane == 0) u[start] += distance;
    __syncwarp();
    if (lane == 0) {  // the path turns round: each of its rows takes the column it was reached from
      for (int j = sink;;) {
        const int row = path_of[j], next = column_of[row];
        column_of[row] = j;
        row_of[j] = row;
        if (row == start) break;
        j = next;
      }
    }
    __syncwarp();
#pragma unroll
    for (int t = 0; t < K; ++t)
      if (lane + 32 * t < d) c.row[t] = row_of[lane + 32 * t];
  }
  for (int row = lane; row < d; row += 32) out[row] = invalid ? -1 : column_of[row];
}

template <class T>
int launch_assignment(Costs& costs, int64_t batch, void* stream) {
  int limit = 0;
  if (const int error = shared_memory_limit(&limit)) return error;
  const size_t d = size_t(costs.d);
  size_t shared = 8 * d + 4 * 4 * d;
  costs.in_shared = shared + sizeof(T) * d * d <= size_t(limit);
  if (costs.in_shared) shared += sizeof(T) * d * d;
  if (d <= 32) return launch(assign<T, 1>, batch, 32, shared, stream, costs);
  if (d <= 64) return launch(assign<T, 2>, batch, 32, shared, stream, costs);
  if (d <= 128) return launch(assign<T, 4>, batch, 32, shared, stream, costs);
  return launch(assign<T, 8>, batch, 32, shared, stream, costs);
}

}  // namespace

int assignment(const AssignmentArgs& args) {
  const Tensor& cost = args.cost;
  if (cost.shape[0] == 0 || cost.shape[1] == 0) return 0;
  Costs costs{cost.data,      cost.dtype,         cost.stride[0], cost.stride[1],
              cost.stride[2], int(cost.shape[1]), false,          args.columns};
  return cost.dtype == DType::f64 ? launch_assignment<double>(costs, cost.shape[0], args.stream)
                                  : launch_assignment<float>(costs, cost.shape[0], args.stream);
}

}  // namespace cuda
}  // namespace vaekern
