// z = mu + sigma noise (or mu + L noise) with the KL to N(0, I) in the same pass, and its backward.
#include "kernels.h"
#include "kl.h"

namespace vaekern {
namespace cuda {

namespace {

constexpr int SAMPLE_THREADS = 128;

// Absent tensors have no views. tril: [B, d, d] as in Loss.
struct Draw {
  Axes axes;
  View mu, logvar, noise, z, grad_z, grad_mu, grad_logvar;
  View tril, grad_tril;
  Numbers grad_kl;
  void* kl = nullptr;  // C [B]
  int64_t B = 0, L = 1;
  int group = WARP;
};

// The group's sample, and this thread's place in the group.
struct Mine {
  int rank;
  int64_t b;
  VAEKERN_DEVICE explicit Mine(int group)
      : rank(int(threadIdx.x) % group),
        b(int64_t(blockIdx.x) * (int(blockDim.x) / group) + int(threadIdx.x) / group) {}
};

template <class C>
VAEKERN_DEVICE C at(const Draw& a, const View& v, int64_t l, int64_t b, int64_t f) {
  return load_one<C>(v.dtype, row_of(v, l, b) + feature_offset<1>(a.axes, v, f));
}

template <class C>
VAEKERN_DEVICE void put(const Draw& a, const View& v, int64_t l, int64_t b, int64_t f, C x) {
  store_one<C>(v.dtype, const_cast<char*>(row_of(v, l, b)) + feature_offset<1>(a.axes, v, f), x);
}

template <class C>
VAEKERN_DEVICE double draw_diagonal(const Draw& a, int64_t b, int rank) {
  double kl = 0;
  for (int64_t f = rank; f < a.axes.F; f += a.group) {
    const C mu = at<C>(a, a.mu, 0, b, f), lv = at<C>(a, a.logvar, 0, b, f);
    const C sigma = std::exp(C(0.5) * lv);
    if (a.kl != nullptr) kl += double(C(0.5) * (mu * mu + exponential(lv).excess));
    for (int64_t l = 0; l < a.L; ++l) put(a, a.z, l, b, f, mu + sigma * at<C>(a, a.noise, l, b, f));
  }
  return kl;
}

// A warp takes a row of L: sums over its entries are sums over the lanes.
template <class C>
VAEKERN_DEVICE double draw_full(const Draw& a, int64_t b) {
  const int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP;
  double kl = 0;
  for (int64_t j = warp; j < a.axes.F; j += int(blockDim.x) / WARP) {
    const double mu = at<double>(a, a.mu, 0, b, j);
    for (int64_t l = 0; l < a.L; ++l) {
      double sum = 0;
      for (int64_t k = lane; k <= j; k += WARP)
        sum += double(load_one<C>(a.tril.dtype, entry_of(a.tril, b, j, k))) *
               at<double>(a, a.noise, l, b, k);
      sum = sum_over_lanes<WARP>(sum);
      if (lane == 0) put(a, a.z, l, b, j, C(mu + sum));
    }
    if (a.kl == nullptr) continue;
    for (int64_t k = lane; k <= j; k += WARP) {
      const double entry = double(load_one<C>(a.tril.dtype, entry_of(a.tril, b, j, k)));
      kl += 0.5 * entry * entry;
      if (k == j) kl += 0.5 * (mu * mu - 1) - std::log(entry);
    }
  }
  return kl;
}

template <class C>
__global__ void __launch_bounds__(SAMPLE_THREADS, 4) draw(const __grid_constant__ Draw a) {
  VAEKERN_DYNAMIC_SHARED(memory);
  const Mine p(a.group);
  double kl = 0;
  if (p.b < a.B) kl = a.tril.present ? draw_full<C>(a, p.b) : draw_diagonal<C>(a, p.b, p.rank);
  if (a.kl == nullptr) return;
  kl = group_sum(kl, a.group, reinterpret_cast<double*>(memory));
  if (p.b < a.B && p.rank == 0) static_cast<C*>(a.kl)[p.b] = C(kl);
}

// d mu = sum_l g_z + g_kl mu; d logvar = 1/2 sigma sum_l g_z noise + g_kl (e^logvar - 1) / 2;
// d L_jk = sum_l g_j noise_k + g_kl (L_jk - [j = k] / L_jj), k <= j
template <class C>
__global__ void __launch_bounds__(SAMPLE_THREADS, 4) draw_backward(const __grid_constant__ Draw a) {
  const Mine p(a.group);
  if (p.b >= a.B) return;
  const int64_t b = p.b, d = a.axes.F;
  const C w = a.grad_kl.data != nullptr ? C(a.grad_kl[b]) : C(0);
  for (int64_t f = p.rank; f < d; f += a.group) {
    const C mu = at<C>(a, a.mu, 0, b, f);
    C sum = C(0), product = C(0);
    for (int64_t l = 0; a.grad_z.present && l < a.L; ++l) {
      const C g = at<C>(a, a.grad_z, l, b, f);
      sum += g;
      product += g * at<C>(a, a.noise, l, b, f);
    }
    if (a.grad_mu.present) put(a, a.grad_mu, 0, b, f, a.grad_kl.data ? sum + w * mu : sum);
    if (!a.grad_logvar.present) continue;
    const C lv = at<C>(a, a.logvar, 0, b, f);
    // 0 * infinity is not asked for
    C drawn = a.grad_z.present ? C(0.5) * std::exp(C(0.5) * lv) * product : C(0);
    if (a.grad_kl.data) drawn += C(0.5) * w * exponential(lv).minus_one;
    put(a, a.grad_logvar, 0, b, f, drawn);
  }
  if (!a.grad_tril.present) return;
  for (int64_t i = p.rank; i < d * d; i += a.group) {
    const int64_t j = i / d, k = i - j * d;
    double sum = 0;
    if (k <= j) {
      for (int64_t l = 0; a.grad_z.present && l < a.L; ++l)
        sum += at<double>(a, a.grad_z, l, b, j) * at<double>(a, a.noise, l, b, k);
      if (a.grad_kl.data) {
        const double entry = double(load_one<C>(a.tril.dtype, entry_of(a.tril, b, j, k)));
        sum += double(w) * (k == j ? entry - 1 / entry : entry);
      }
    }
    store_one<C>(a.grad_tril.dtype, entry_of(a.grad_tril, b, j, k), C(sum));
  }
}

// ---------------------------------------------------------------- the host's side

Draw describe(const SampleArgs& given) {
  Draw a;
  const int lead = given.noise.ndim > given.mu.ndim ? 2 : 1;
  MergedAxes axes(given.mu.shape + 1, given.mu.ndim - 1);
  axes.add(a.mu, given.mu, 1);
  axes.add(a.logvar, given.logvar, 1);
  axes.add(a.noise, given.noise, lead);
  axes.add(a.z, given.z, lead);
  axes.add(a.grad_z, given.grad_z, lead);
  axes.add(a.grad_mu, given.grad_mu, 1);
  axes.add(a.grad_logvar, given.grad_logvar, 1);
  axes.finish();
  a.axes = axes;
  a.tril = matrices(given.scale_tril);
  a.grad_tril = matrices(given.grad_scale_tril);
  a.grad_kl = numbers(given.grad_kl, true);
  a.kl = given.kl.data;
  a.B = given.mu.shape[0];
  a.L = lead == 2 ? given.noise.shape[0] : 1;
  const bool block = a.tril.present || axes.F > 1024;
  a.group = block ? SAMPLE_THREADS : WARP;
  return a;
}

bool in_double(const SampleArgs& a) {
  const Tensor* all[] = {&a.mu, &a.logvar, &a.scale_tril};
  for (const Tensor* t : all)
    if (*t && t->dtype == DType::f64) return true;
  return false;
}

int launch_draw(void (*kernel)(Draw), const Draw& a, void* stream) {
  const int tasks = SAMPLE_THREADS / a.group;
  if (a.B == 0) return 0;
  return launch(kernel, (a.B + tasks - 1) / tasks, SAMPLE_THREADS, SCRATCH, stream, a);
}

}  // namespace

int sample(const SampleArgs& args, void* stream) {
  return launch_draw(in_double(args) ? draw<double> : draw<float>, describe(args), stream);
}

int sample_backward(const SampleArgs& args, void* stream) {
  return launch_draw(in_double(args) ? draw_backward<double> : draw_backward<float>, describe(args),
                     stream);
}

}  // namespace cuda
}  // namespace vaekern
