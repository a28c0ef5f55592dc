// reconstruction + beta KL with its reduction in one launch where the variance allows it: the CUDA
// kernel of vaekern::loss and its backward.
#include <limits>

#include "elements.h"
#include "finish.h"
#include "kernels.h"
#include "rows.h"

namespace vaekern {
namespace cuda {

namespace {

constexpr int SHORT_ROW = 256;          // up to here a warp takes a row, above a block
constexpr int64_t WANTED_TASKS = 2048;  // enough to fill any device
constexpr int64_t SHORTEST_CHUNK = 4096, LONGEST_CHUNK = 65536;
constexpr int64_t WANTED_TILES = 264, FEWEST_ROWS = 512;  // of a column's chunk
constexpr int LOSS_THREADS = 256, ROW_THREADS = 512;

// What follows the reconstruction's blocks in every launch.
template <class C>
VAEKERN_DEVICE void latent_and_finish(const Loss& a, double* scratch) {
  if (int64_t(blockIdx.x) >= a.blocks && a.mu.present) kl_of_samples<C>(a, scratch);
  if (a.finish && is_last_block(a.ticket, scratch)) finish<C>(a, scratch);
}

template <class C>
__global__ void __launch_bounds__(LOSS_THREADS, 2) loss_elements(const __grid_constant__ Loss a) {
  VAEKERN_DYNAMIC_SHARED(memory);
  double* scratch = reinterpret_cast<double*>(memory);
  if (int64_t(blockIdx.x) < a.blocks) reconstruct_elements<C>(a, scratch);
  latent_and_finish<C>(a, scratch);
}

template <class C>
__global__ void __launch_bounds__(ROW_THREADS) loss_rows(const __grid_constant__ Loss a) {
  VAEKERN_DYNAMIC_SHARED(memory);
  double* scratch = reinterpret_cast<double*>(memory);
  if (int64_t(blockIdx.x) < a.blocks)
    reconstruct_rows<C>(a, scratch, reinterpret_cast<C*>(memory + SCRATCH));
  latent_and_finish<C>(a, scratch);
}

template <class C>
__global__ void __launch_bounds__(TILE_THREADS) loss_columns(const __grid_constant__ Loss a) {
  VAEKERN_DYNAMIC_SHARED(memory);
  double* scratch = reinterpret_cast<double*>(memory);
  if (int64_t(blockIdx.x) < a.blocks) {
    if (a.tiles > 0)
      reconstruct_columns<C>(a, scratch, reinterpret_cast<C*>(memory + SCRATCH));
    else
      combine_columns<C>(a, scratch);
  }
  latent_and_finish<C>(a, scratch);
}

struct Dimensions {
  Loss loss;
  View value;
};

template <class C>
__global__ void __launch_bounds__(LOSS_THREADS, 2)
    kl_dimensions(const __grid_constant__ Dimensions a) {
  VAEKERN_DYNAMIC_SHARED(memory);
  kl_of_dimensions<C>(a.loss, a.value, reinterpret_cast<double*>(memory));
}

// ---------------------------------------------------------------- the host's side

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// +-3e38 stands for none (vaekern/ops.py, UNBOUNDED), so that infinities pass.
double bounded(double bound) {
  constexpr double none = 3e38, infinity = std::numeric_limits<double>::infinity();
  return bound <= -none ? -infinity : bound >= none ? infinity : bound;
}

int64_t features(const Tensor& t) {
  int64_t n = 1;
  for (int k = 1; k < t.ndim; ++k) n *= t.shape[k];
  return n;
}

// The parts of a workspace.
struct Workspace {
  double *partials, *kl_rows, *column_sums;
  void *statistics, *shared;
  int64_t bytes;

  Workspace(void* base, int64_t B, int64_t D) {
    char* p = static_cast<char*>(base);
    auto take = [&](int64_t count) {
      char* here = p;
      p += ceil_div(count, 2) * 2 * int64_t(sizeof(double));  // on multiples of 16 bytes
      return reinterpret_cast<double*>(here);
    };
    take(2);  // the ticket, where the caller has no better one
    const int64_t tiles = ceil_div(D, TILE);
    partials = take(2 * (B + std::max(WANTED_TASKS, tiles) + 1));
    kl_rows = take(B);
    statistics = take(3 * B + std::max<int64_t>(D, 1));
    shared = take(D);
    column_sums = take(2 * column_chunks(B, D) * D);
    bytes = p - static_cast<char*>(base);
  }

  // Tall and narrow: tiles alone would not fill the device.
  static int64_t column_chunks(int64_t B, int64_t D) {
    const int64_t tiles = std::max<int64_t>(1, ceil_div(D, TILE));
    return std::max<int64_t>(1, std::min(ceil_div(WANTED_TILES, tiles), B / FEWEST_ROWS));
  }
};

// Bytes of shared memory that keep a row (or a tile of columns) until its gradient is written.
template <class C>
int64_t row_bytes(int64_t L, int64_t D) {
  return SCRATCH + int64_t(sizeof(C)) * L * held_row<C>(D);
}
template <class C>
int64_t tile_bytes(int64_t L, int64_t rows) {
  return SCRATCH + int64_t(sizeof(C)) * (TILE_SUMS + L * rows * TILE);
}

// The launches of one call.
template <class C>
class Call {
 public:
  Call(const LossArgs& a, const Launch& launch)
      : given_(a),
        to_(launch),
        B_((a.x ? a.x : a.mu).shape[0]),
        D_(features(a.x ? a.x : a.mu)),
        work_(launch.workspace, B_, D_) {
    base_.scale = reduction_scale(a.reduction, B_, D_);
    base_.reduction = a.reduction;
    base_.uneven = a.upstream && a.reduction == Reduction::none;
    if (a.upstream && a.reduction != Reduction::dims)
      base_.upstream = numbers(a.upstream, base_.uneven);
    base_.beta = numbers(a.beta, false);
    base_.beta_number = a.beta_number;
    base_.logvar_min = bounded(a.logvar_min);
    base_.logvar_max = bounded(a.logvar_max);
    base_.x_logvar_min = bounded(a.x_logvar_min);
    base_.eps = a.eps;
    base_.objective = a.x ? a.objective : Objective::none;
    base_.activation = a.activation;
    base_.partials = work_.partials;
    base_.kl_rows = work_.kl_rows;
    base_.ticket = to_.ticket;
    base_.terms = bool(a.value);
    if (a.x) reconstruction();
    if (a.mu) latent();
  }

  int run() {
    if (given_.reduction == Reduction::dims && given_.value)
      if (const int error = dimensions()) return error;
    if (!given_.x || given_.objective == Objective::none) return latent_alone();
    switch (given_.objective) {
      case Objective::gaussian: return by_columns() ? known_columns() : known();
      case Objective::iso_d: return iso_d();
      case Objective::iso_i: return iso_i();
      case Objective::diag_i: return diag_i();
      default: return elements(with_outcome(base_), Factor::own, wants_gradient());
    }
  }

 private:
  void reconstruction() {
    const LossArgs& a = given_;
    MergedAxes axes(a.x.shape + 1, a.x.ndim - 1);
    const bool several = a.x_hat.ndim > a.x.ndim;
    axes.add(base_.x_hat, a.x_hat, several ? 2 : 1);
    axes.add(base_.x, a.x, 1);
    axes.add(base_.grad_x_hat, a.grad_x_hat, several ? 2 : 1);
    axes.add(base_.grad_x, a.grad_x, 1);
    base_.B = B_;
    base_.L = several ? a.x_hat.shape[0] : 1;
    if (a.objective == Objective::gaussian) {
      base_.spread = spread_of(a.x_logvar, a.x);
      const int lead = lead_of(a.x_logvar, base_.spread, a.x);
      if (base_.spread == Spread::feature || base_.spread == Spread::element) {
        axes.add(base_.logvar, a.x_logvar, lead);
        axes.add(base_.grad_logvar, a.grad_x_logvar, lead);
      } else {
        const bool per_sample = base_.spread == Spread::sample;
        base_.x_logvar = numbers(a.x_logvar, per_sample);
        base_.grad_x_logvar = numbers(a.grad_x_logvar, per_sample);
      }
    }
    C* known = is_known() && !base_.uneven ? static_cast<C*>(a.statistics.data) : statistics();
    const Tensor variance = variance_of(a.x, known + 3 * B_, dtype_of<C>);
    if (a.objective == Objective::diag_i) axes.add(base_.variance, variance, 1);
    axes.finish();
    base_.axes = axes;
    base_.last = a.last.data;
    base_.running = a.running.data;
    base_.track_double = a.last.dtype == DType::f64;
    base_.momentum = a.momentum;
  }

  void latent() {
    const LossArgs& a = given_;
    MergedAxes axes(a.mu.shape + 1, a.mu.ndim - 1);
    axes.add(base_.mu, a.mu, 1);
    axes.add(base_.logvar_z, a.logvar, 1);
    axes.add(base_.prior_mu, a.prior_mu, 1);
    axes.add(base_.prior_logvar, a.prior_logvar, 1);
    axes.add(base_.grad_mu, a.grad_mu, 1);
    axes.add(base_.grad_logvar_z, a.grad_logvar, 1);
    axes.add(base_.grad_prior_mu, a.grad_prior_mu, 1);
    axes.add(base_.grad_prior_logvar, a.grad_prior_logvar, 1);
    if (a.reduction == Reduction::dims) {
      if (a.upstream) axes.add(base_.dim_weights, a.upstream, 0);
      axes.add(dims_, a.value, 0);
    }
    axes.finish();
    base_.latent = axes;
    base_.tril = matrices(a.scale_tril);
    base_.grad_tril = matrices(a.grad_scale_tril);
    base_.kl_samples = B_;
    const int64_t work = a.scale_tril ? axes.F * axes.F : axes.F;
    base_.kl_group = work <= 512 ? WARP : 0;  // 0: the block, of whatever size
  }

  bool wants_gradient() const { return given_.grad_x_hat || given_.grad_x; }

  // Does the backward know the statistics of the forward?
  bool is_known() const { return !given_.value && given_.statistics; }

  // Where to write them: for the caller, or for another launch.
  C* statistics() const {
    const bool wanted = given_.value && given_.statistics;
    return static_cast<C*>(wanted ? given_.statistics.data : work_.statistics);
  }

  // This launch makes the value, the KL and what belongs to whole samples.
  Loss with_outcome(Loss a) const {
    const bool row_gradients = a.grad_x_logvar.data != nullptr;
    a.value = given_.reduction == Reduction::dims ? nullptr : given_.value.data;
    if (given_.value && given_.statistics && given_.reduction != Reduction::dims)
      a.statistics = given_.statistics.data;
    a.finish = a.value != nullptr || a.statistics != nullptr || row_gradients;
    return a;
  }

  // ... this one does not.
  static Loss without_latent(Loss a) {
    a.mu.present = false;
    a.grad_x_logvar.data = nullptr;
    return a;
  }

  // This launch leaves the statistics of every sample for the next one.
  Loss with_statistics(Loss a) const {
    a.statistics = statistics();
    a.finish = true;
    return a;
  }

  int64_t kl_blocks(const Loss& a, int threads) const {
    if (!a.mu.present) return 0;
    return a.kl_group == WARP ? ceil_div(a.kl_samples, threads / WARP) : a.kl_samples;
  }

  int launch_loss(void (*kernel)(Loss), Loss a, int threads, int64_t shared) const {
    int64_t blocks = a.blocks + kl_blocks(a, threads);
    if (a.kl_group == 0) a.kl_group = threads;
    if (blocks == 0) {
      if (!a.finish) return 0;
      blocks = 1;  // an empty batch has a value, too
    }
    return launch(kernel, blocks, threads, size_t(shared), to_.stream, a);
  }

  int latent_alone() {
    Loss a = with_outcome(base_);
    const bool gradients = given_.grad_mu || given_.grad_logvar || given_.grad_scale_tril ||
                           given_.grad_prior_mu || given_.grad_prior_logvar;
    if (!a.finish && !gradients) return 0;
    return launch_loss(loss_elements<C>, a, LOSS_THREADS / 2, SCRATCH);
  }

  int dimensions() {
    Dimensions d{base_, dims_};
    Loss& a = d.loss;  // values only; the gradients are another launch's
    a.grad_mu.present = a.grad_logvar_z.present = a.grad_tril.present = false;
    a.grad_prior_mu.present = a.grad_prior_logvar.present = false;
    const int64_t d_ = a.latent.F;
    const int64_t blocks = a.tril.present ? d_ : ceil_div(d_, WARP);
    if (blocks == 0) return 0;
    return launch(kl_dimensions<C>, blocks, LOSS_THREADS, SCRATCH + sizeof(double) * LOSS_THREADS,
                  to_.stream, d);
  }

  int elements(Loss a, Factor factor, bool gradient) {
    a.factor = factor;
    a.gradient = gradient;
    if (!gradient) a.grad_x_hat.present = a.grad_x.present = false;
    const View* const views[] = {&a.x_hat,  &a.x,          &a.logvar, &a.variance,
                                 &a.shared, &a.grad_x_hat, &a.grad_x, &a.grad_logvar};
    if (factor != Factor::variance) a.variance.present = a.shared.present = false;
    a.wide = wide_of<C>(views, 8, a.L);
    int threads = LOSS_THREADS;
    if (D_ <= SHORT_ROW) {
      a.group = WARP;
      a.chunks = 1;
      threads = LOSS_THREADS / 2;
    } else {
      const int64_t wanted = ceil_div(B_ * D_, WANTED_TASKS);
      const int64_t chunk = std::min(std::max(wanted, SHORTEST_CHUNK), LONGEST_CHUNK);
      a.chunks = ceil_div(D_, chunk);
      if (D_ <= 1024) threads = LOSS_THREADS / 2;
      a.group = threads;
    }
    a.chunk = std::max<int64_t>(1, ceil_div(ceil_div(D_, a.chunks), 8) * 8);
    a.chunks = std::max<int64_t>(1, ceil_div(D_, a.chunk));
    a.blocks = D_ ? ceil_div(B_ * a.chunks, threads / a.group) : 0;
    return launch_loss(loss_elements<C>, a, threads, SCRATCH);
  }

  int known() {
    const bool per_row = base_.spread == Spread::scalar || base_.spread == Spread::sample;
    const Factor factor = per_row ? Factor::row : Factor::logvar;
    return elements(with_outcome(base_), factor, wants_gradient());
  }

  int iso_d() {
    if (is_known()) {
      Loss a = with_outcome(base_);
      a.known = given_.statistics.data;
      return elements(a, Factor::row, wants_gradient());
    }
    if (!wants_gradient()) return elements(with_outcome(base_), Factor::none, false);
    Loss a = with_outcome(base_);
    const View* const views[] = {&a.x_hat, &a.x, &a.grad_x_hat, &a.grad_x};
    a.wide = wide_of<C>(views, 4, a.L);
    a.chunks = 1;
    int threads = D_ <= 1024 ? 128 : D_ <= 8192 ? 256 : ROW_THREADS;
    a.group = D_ <= SHORT_ROW ? WARP : threads;
    const int rows = threads / a.group;
    int limit = 0;
    if (const int error = shared_memory_limit(&limit)) return error;
    int64_t shared = SCRATCH + rows * (row_bytes<C>(a.L, D_) - SCRATCH);
    // of x the gradient has no slope, which only the identity's 1 makes no difference to
    a.hold = shared <= limit && (!a.grad_x.present || a.activation == Activation::identity);
    if (!a.hold) shared = SCRATCH;
    a.gradient = true;
    a.blocks = ceil_div(B_, rows);
    return launch_loss(loss_rows<C>, a, threads, shared);
  }

  // One number from everything comes first: two launches, or one where the forward left it.
  int iso_i() {
    Loss a = with_outcome(base_);
    a.known = given_.statistics.data;
    if (!is_known()) {
      if (wants_gradient()) a = with_statistics(a);
      if (const int error = elements(a, Factor::none, false)) return error;
      if (!wants_gradient()) return 0;
      a = without_latent(base_);
      a.known = statistics();
    }
    return elements(a, Factor::row, wants_gradient());
  }

  int diag_i() {
    const bool rows = given_.value && given_.reduction == Reduction::none;
    if (is_known() && !base_.uneven)  // not even the columns' sums are needed
      return elements(with_outcome(base_), Factor::variance, wants_gradient());
    // the columns' variances come first, and with them the value where no sample's own is asked for
    Loss a = rows ? without_latent(base_) : with_outcome(base_);
    bool wrote = false;
    if (const int error = columns(a, wants_gradient() && !rows, &wrote)) return error;
    const bool left = wants_gradient() && !wrote;
    if (!rows && !left) return 0;
    a = rows ? with_outcome(base_) : without_latent(base_);
    a.last = nullptr;
    if (base_.uneven) {
      a.shared.base = static_cast<char*>(work_.shared);
      a.shared.dtype = dtype_of<C>;
      a.shared.item = sizeof(C);
      a.shared.present = a.shared.dense = true;
    }
    return elements(a, Factor::variance, left);
  }

  // Sums down the columns are the gradient of a variance per feature, and the statistics as the CPU
  // core leaves them: totals of columns spread evenly, unless each sample's own value is asked for.
  bool by_columns() const {
    const bool totals = given_.value && given_.reduction != Reduction::none;
    return base_.spread == Spread::feature && (given_.grad_x_logvar || totals);
  }

  int known_columns() {
    bool wrote = false;
    if (!given_.value || given_.reduction != Reduction::none)
      return columns(with_outcome(base_), wants_gradient(), &wrote);
    Loss a = with_outcome(base_);
    a.grad_logvar.present = false;
    if (const int error = elements(a, Factor::logvar, false)) return error;
    return columns(without_latent(base_), wants_gradient(), &wrote);
  }

  // wrote: were the gradients of x_hat and x written, too?
  int columns(Loss a, bool gradient, bool* wrote) {
    const bool known = a.objective == Objective::gaussian;
    a.gradient = gradient;
    if (!gradient) a.grad_x_hat.present = a.grad_x.present = false;
    const View* const views[] = {&a.x_hat,      &a.x,      &a.logvar,
                                 &a.grad_x_hat, &a.grad_x, &a.grad_logvar};
    a.wide = wide_of<C>(views, 6, a.L);
    a.tiles = a.totals = ceil_div(D_, TILE);
    a.chunks = Workspace::column_chunks(B_, D_);
    int limit = 0;
    if (const int error = shared_memory_limit(&limit)) return error;
    int64_t shared = tile_bytes<C>(a.L, B_);
    a.hold = gradient && !known && shared <= limit &&
             (!a.grad_x.present || a.activation == Activation::identity);
    if (a.hold) a.chunks = 1;
    if (!a.hold) shared = tile_bytes<C>(0, 0);
    *wrote = gradient && (known || a.hold);
    a.chunk = ceil_div(std::max<int64_t>(B_, 1), a.chunks);
    a.chunks = ceil_div(std::max<int64_t>(B_, 1), a.chunk);
    a.blocks = a.tiles * a.chunks;
    if (!known && !a.hold && a.uneven) a.shared_out = work_.shared;
    if (a.chunks == 1) return launch_loss(loss_columns<C>, a, TILE_THREADS, shared);
    Loss first = without_latent(a);
    first.column_sums = work_.column_sums;
    first.finish = false;
    first.last = nullptr;
    if (const int error = launch_loss(loss_columns<C>, first, TILE_THREADS, shared)) return error;
    a.column_sums = work_.column_sums;
    a.tiles = 0;  // combine_columns
    a.blocks = a.totals = ceil_div(D_, TILE_THREADS);
    return launch_loss(loss_columns<C>, a, TILE_THREADS, shared);
  }

  const LossArgs& given_;
  const Launch& to_;
  const int64_t B_, D_;
  const Workspace work_;
  Loss base_;
  View dims_;
};

bool in_double(const LossArgs& a) {
  const Tensor* all[] = {&a.x_hat,  &a.x,          &a.x_logvar, &a.mu,
                         &a.logvar, &a.scale_tril, &a.prior_mu, &a.prior_logvar};
  for (const Tensor* t : all)
    if (*t && t->dtype == DType::f64) return true;
  return false;
}

}  // namespace

int64_t loss_workspace(int64_t B, int64_t D) { return Workspace(nullptr, B, D).bytes; }

bool loss_writes_gradients(Objective objective, int64_t L, int64_t B, int64_t D, bool grad_x,
                           bool in_double) {
  if (objective == Objective::iso_i) return false;
  if (objective != Objective::diag_i || grad_x) return objective != Objective::diag_i;
  int limit = 0;
  if (shared_memory_limit(&limit)) return false;
  return (in_double ? tile_bytes<double>(L, B) : tile_bytes<float>(L, B)) <= limit;
}

int loss(const LossArgs& args, const Launch& to) {
  if (in_double(args)) return Call<double>(args, to).run();
  return Call<float>(args, to).run();
}

}  // namespace cuda
}  // namespace vaekern
