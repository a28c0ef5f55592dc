// Right singular vectors of a batch of matrices. Up to 32 columns one block does everything for one
// matrix; beyond, one kernel writes partial Gram matrices, a fixed split of the rows to a block,
// and another adds them up in order and decomposes. Nothing is added atomically: the same input
// gives the same bits.
#include <algorithm>

#include "gram.h"
#include "jacobi.h"
#include "kernels.h"

namespace vaekern {
namespace cuda {

namespace {

struct Arguments {
  Source source;
  SvdOutput out;     // of the first matrix
  double* partials;  // [B, splits, tiles, width, width]
  double* columns;   // [B, d, stride] where the columns do not fit shared memory, else null
  int64_t splits;
  int tiles_per_side, tiles, width;
};

__device__ SvdOutput of_matrix(const SvdOutput& all, int64_t b, int d) {
  return {all.S + b * d, all.V + b * d * d, all.sweeps + b, all.converged + b, all.finite + b};
}

// ---------------------------------------------------------------- up to 32 columns: one kernel

template <int NB>
struct Fused;
template <>
struct Fused<1> {
  using Solver = Jacobi<8, 4, 2, true>;
};
template <>
struct Fused<2> {
  using Solver = Jacobi<16, 4, 4, true>;
};
template <>
struct Fused<4> {
  using Solver = Jacobi<32, 8, 4, false>;
};

template <int NB>
__global__ void __launch_bounds__(512, 1) decompose_small(Arguments args) {
  using Solver = typename Fused<NB>::Solver;
  VAEKERN_DYNAMIC_SHARED(memory);
  const int64_t b = blockIdx.x;
  const int d = args.source.d, ld = Solver::stride(d);
  double* matrix = reinterpret_cast<double*>(memory);
  Square<NB> share;
  share.add_rows(args.source, b * args.source.stride_b, 0, args.source.m);
  combine(share, matrix, ld, d);
  if (int(threadIdx.x) >= Solver::threads(d)) return;
  Solver(matrix, matrix + d * ld, d).run(args.source.m, of_matrix(args.out, b, d));
}

template <int NB>
int launch_small(const Arguments& args, void* stream) {
  using Solver = typename Fused<NB>::Solver;
  const int d = args.source.d;
  const int64_t packets = (args.source.m + PACKET - 1) / PACKET;
  // a warp to eight packets, as many as the rotations need, 16 at most
  const int64_t warps =
      std::min<int64_t>(16, std::max<int64_t>(packets / 8, Solver::threads(d) / 32));
  const size_t shared = sizeof(double) * size_t(d * Solver::stride(d) + Solver::scratch(d));
  return launch(decompose_small<NB>, args.source.B, int(32 * warps), shared, stream, args);
}

// ---------------------------------------------------------------- more columns: two kernels

constexpr int GRAM_THREADS = 256;
constexpr int64_t WANTED_BLOCKS = 1024, FEWEST_ROWS = 512;

__device__ void rows_of_split(const Arguments& args, int64_t split, int64_t& start, int64_t& end) {
  const int64_t packets = (args.source.m + PACKET - 1) / PACKET;
  start = packets * split / args.splits * PACKET;
  end = packets * (split + 1) / args.splits * PACKET;
  if (end > args.source.m) end = args.source.m;
}

__device__ void write_partial(const double* tile, int width, double* partial) {
  for (int k = threadIdx.x; k < width * width; k += blockDim.x) partial[k] = tile[k];
}

// 33 to 64 columns: the upper blocks of the whole Gram matrix in one warp's registers
__global__ void __launch_bounds__(GRAM_THREADS, 1) gram(Arguments args) {
  VAEKERN_DYNAMIC_SHARED(memory);
  double* tile = reinterpret_cast<double*>(memory);
  const int64_t b = blockIdx.x / args.splits;
  int64_t start, end;
  rows_of_split(args, blockIdx.x % args.splits, start, end);
  Square<8> share;
  share.add_rows(args.source, b * args.source.stride_b, start, end);
  combine(share, tile, Square<8>::WIDTH, Square<8>::WIDTH);
  write_partial(tile, Square<8>::WIDTH,
                args.partials + int64_t(blockIdx.x) * Square<8>::WIDTH * Square<8>::WIDTH);
}

// 65 columns or more: tiles of 32 x 32, those on and above the diagonal, numbered row by row
__global__ void __launch_bounds__(GRAM_THREADS, 1) gram_tiles(Arguments args) {
  VAEKERN_DYNAMIC_SHARED(memory);
  double* tile = reinterpret_cast<double*>(memory);
  const int64_t block = blockIdx.x / args.tiles;
  int right = int(blockIdx.x % args.tiles), left = 0;
  while (right >= args.tiles_per_side - left) right -= args.tiles_per_side - left++;
  right += left;
  int64_t start, end;
  rows_of_split(args, block % args.splits, start, end);
  Tile share;
  share.add_rows(args.source, block / args.splits * args.source.stride_b, left * Tile::WIDTH,
                 right * Tile::WIDTH, start, end);
  combine(share, tile, Tile::WIDTH, Tile::WIDTH);
  write_partial(tile, Tile::WIDTH, args.partials + int64_t(blockIdx.x) * Tile::WIDTH * Tile::WIDTH);
}

__device__ double sum_of_partials(const Arguments& args, int64_t b, int i, int j) {
  const int width = args.width;
  int left = i / width, right = j / width, a = i % width, c = j % width;
  if (left > right) {
    const int t = left, s = a;
    left = right, a = c;
    right = t, c = s;
  }
  const int tile = left * args.tiles_per_side - left * (left - 1) / 2 + right - left;
  const int64_t step = int64_t(args.tiles) * width * width;
  const double* p = args.partials + b * args.splits * step + (tile * width + a) * width + c;
  double sum = *p;
  for (int64_t s = 1; s < args.splits; ++s) sum += p[s * step];
  return sum;
}

using Medium = Jacobi<64, 8, 8, false>;
using Large = Jacobi<LARGEST_D, 8, 0, false>;

template <class Solver, int THREADS>
__global__ void __launch_bounds__(THREADS, 1) decompose(Arguments args) {
  VAEKERN_DYNAMIC_SHARED(memory);
  const int64_t b = blockIdx.x;
  const int d = args.source.d, ld = Solver::stride(d);
  double* shared = reinterpret_cast<double*>(memory);
  const bool in_global = args.columns != nullptr;
  double* matrix = in_global ? args.columns + b * d * ld : shared;
  double* scratch = in_global ? shared : shared + d * ld;
  for (int k = threadIdx.x; k < d * d; k += blockDim.x) {
    const int j = k / d, i = k - j * d;
    matrix[j * ld + i] = sum_of_partials(args, b, i, j);
  }
  __syncthreads();
  Solver(matrix, scratch, d).run(args.source.m, of_matrix(args.out, b, d));
}

template <class Solver>
size_t matrix_bytes(int64_t d) {
  return sizeof(double) * size_t(d * Solver::stride(int(d)));
}

template <class Solver>
size_t scratch_bytes(int64_t d) {
  return sizeof(double) * size_t(Solver::scratch(int(d)));
}

template <class Solver, int THREADS>
int launch_decompose(const Arguments& args, void* stream) {
  const int d = args.source.d;
  const size_t shared =
      scratch_bytes<Solver>(d) + (args.columns == nullptr ? matrix_bytes<Solver>(d) : 0);
  return launch(decompose<Solver, THREADS>, args.source.B, Solver::threads(d), shared, stream,
                args);
}

// ---------------------------------------------------------------- the host's side

struct Plan {
  int width = 0, tiles_per_side = 0, tiles = 0;
  int64_t splits = 0;
  bool columns_in_global = false;
  size_t partials = 0, columns = 0;  // bytes
};

// Few matrices are split more finely, to fill the device: the last places of the float64 sums
// depend on B, and on nothing else but the input.
int make_plan(int64_t B, int64_t m, int64_t d, Plan& plan) {
  if (d <= 32) return 0;
  plan.width = d <= 64 ? 64 : Tile::WIDTH;
  plan.tiles_per_side = int((d + plan.width - 1) / plan.width);
  plan.tiles = plan.tiles_per_side * (plan.tiles_per_side + 1) / 2;
  const int64_t blocks = std::max<int64_t>(1, B * plan.tiles);
  plan.splits =
      std::max<int64_t>(1, std::min((WANTED_BLOCKS + blocks - 1) / blocks, m / FEWEST_ROWS));
  plan.partials = sizeof(double) * size_t(B * plan.splits * plan.tiles * plan.width * plan.width);
  if (d > 64) {
    int limit = 0;
    if (const int error = shared_memory_limit(&limit)) return error;
    if (matrix_bytes<Large>(d) + scratch_bytes<Large>(d) > size_t(limit)) {
      plan.columns_in_global = true;
      plan.columns = size_t(B) * matrix_bytes<Large>(d);
    }
  }
  return 0;
}

// The widest loads that alignment and strides allow for blocks of NB columns.
Layout layout_of(const Source& source, int NB) {
  const int64_t size = source.dtype == DType::f32 ? 4 : 2;
  const auto address = reinterpret_cast<uintptr_t>(source.base);
  const auto aligned = [&](int64_t n, int64_t stride) {  // n elements every `stride`
    return address % (n * size) == 0 && stride % n == 0 &&
           (source.B == 1 || source.stride_b % n == 0);
  };
  // pairs of columns in float32 are loaded as fours and exchanged
  const int64_t n = size == 4 && NB == 2 ? 4 : std::min<int64_t>(NB, 16 / size);
  if ((source.stride_d == 1 || source.d == 1) && source.d % n == 0 && aligned(n, source.stride_m))
    return Layout::rows;
  if (source.stride_m == 1 && aligned(4, source.d == 1 ? 0 : source.stride_d))
    return Layout::columns;
  return Layout::scattered;
}

}  // namespace

int right_svd_workspace(int64_t batch, int64_t m, int64_t d, size_t* bytes) {
  Plan plan;
  const int error = make_plan(batch, m, d, plan);
  *bytes = plan.partials + plan.columns;
  return error;
}

int right_svd(const RightSvdArgs& given) {
  const Tensor& J = given.jacobian;
  const int64_t B = J.shape[0], m = J.shape[1], d = J.shape[2];
  if (B == 0 || d == 0) return 0;
  Plan plan;
  if (const int error = make_plan(B, m, d, plan)) return error;
  Arguments args;
  args.source = {static_cast<const char*>(J.data),
                 J.dtype,
                 Layout::scattered,
                 J.stride[1] < J.stride[2],
                 B,
                 m,
                 J.stride[0],
                 J.stride[1],
                 J.stride[2],
                 int(d)};
  args.source.layout = layout_of(args.source, d <= 8 ? 1 : d <= 16 ? 2 : d <= 32 || d > 64 ? 4 : 8);
  args.out = {given.S, given.V, given.sweeps, given.converged, given.finite};
  args.partials = static_cast<double*>(given.workspace);
  args.columns = plan.columns_in_global ? args.partials + plan.partials / sizeof(double) : nullptr;
  args.splits = plan.splits;
  args.tiles_per_side = plan.tiles_per_side;
  args.tiles = plan.tiles;
  args.width = plan.width;
  if (d <= 8) return launch_small<1>(args, given.stream);
  if (d <= 16) return launch_small<2>(args, given.stream);
  if (d <= 32) return launch_small<4>(args, given.stream);
  const size_t tile = sizeof(double) * size_t(plan.width * plan.width);
  const int64_t blocks = B * plan.splits * plan.tiles;
  if (const int error = d <= 64
                            ? launch(gram, blocks, GRAM_THREADS, tile, given.stream, args)
                            : launch(gram_tiles, blocks, GRAM_THREADS, tile, given.stream, args))
    return error;
  if (d <= 64) return launch_decompose<Medium, 256>(args, given.stream);
  return launch_decompose<Large, 1024>(args, given.stream);
}

}  // namespace cuda
}  // namespace vaekern
