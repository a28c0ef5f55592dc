// z = mu + sigma noise (or mu + L noise) with the KL to N(0, I) in the same pass, and its backward.
#include "kl.h"
#include "tables.h"

namespace vaekern {
namespace VAEKERN_ISA {

namespace {

// The axes before the features: [L, B] for several draws, else [B].
int lead_axes(const SampleArgs& a) { return a.noise.ndim > a.mu.ndim ? 2 : 1; }

// The axes of a call's tensors. Where there is a KL, a sum for each sample, samples are rows; where
// there is none, the whole batch is one row, so that narrow ones cost no more than wide ones.
class Drawing {
 public:
  Drawing(const SampleArgs& a, bool rows)
      : rows_(rows),
        lead_(lead_axes(a)),
        B_(rows ? a.mu.shape[0] : 1),
        L_(lead_ == 2 ? a.noise.shape[0] : 1),
        plan_(rows ? a.mu.shape + 1 : a.mu.shape, rows ? a.mu.ndim - 1 : a.mu.ndim) {}

  void of_sample(View& v, const Tensor& t) { add(v, t, 1); }
  void of_draw(View& v, const Tensor& t) { add(v, t, lead_); }
  void finish() { plan_.finish(); }

  // task(b, f, n): n features from f of row b. Blocks of a row follow one another where it is a
  // sample, begin(b) before them and end(b) after.
  template <class Begin, class Task, class End>
  void run(int threads, Begin begin, Task task, End end) const {
    const int64_t F = plan_.F, all = (L_ + 4) * B_ * F;
    if (!rows_) {
      parallel_for(ceil_div(F, BLOCK), all, threads, [&](int64_t k) {
        auto state = begin(0);
        task(0, k * BLOCK, std::min(BLOCK, F - k * BLOCK), state);
      });
      return;
    }
    parallel_for(B_, all, threads, [&](int64_t b) {
      auto state = begin(b);
      for (int64_t f = 0; f < F; f += BLOCK) task(b, f, std::min(BLOCK, F - f), state);
      end(b, state);
    });
  }

  const Plan& plan() const { return plan_; }
  int64_t draws() const { return L_; }

 private:
  void add(View& v, const Tensor& t, int lead) {
    plan_.add(v, t, rows_ ? lead : lead - 1);
    if (rows_) return;
    v.stride_l = v.stride_b;  // of the draws, the one axis that is left before the features
    v.stride_b = 0;
  }

  bool rows_;
  int lead_;
  int64_t B_, L_;
  Plan plan_;
};

template <class C>
void diagonal(const SampleArgs& a) {
  Drawing drawing(a, bool(a.kl));
  View mu, logvar, noise, z;
  drawing.of_sample(mu, a.mu);
  drawing.of_sample(logvar, a.logvar);
  drawing.of_draw(noise, a.noise);
  drawing.of_draw(z, a.z);
  drawing.finish();
  const Plan& plan = drawing.plan();
  drawing.run(
      a.threads, [](int64_t) { return 0.0; },
      [&](int64_t b, int64_t f, int64_t n, double& kl) {
        C sm[BLOCK], sl[BLOCK], sn[BLOCK], sz[BLOCK], sigma[BLOCK];
        const C* m = plan.read<C>(mu, 0, b, f, n, sm);
        const C* v = plan.read<C>(logvar, 0, b, f, n, sl);
        Sums<C> sums;
        sweep<C>(n, [&](auto at, int64_t i, int k) {
          Vec<C> l = at.load(v + i);
          at.store(sigma + i, VAEKERN_ISA::exp<C>(C(0.5) * l));
          if (!a.kl) return;
          Vec<C> u = at.load(m + i);
          sums.add(k, at.keep(u * u + exp_all<C>(l).excess));
        });
        if (a.kl) kl += sums.total(n);
        for (int64_t s = 0; s < drawing.draws(); ++s) {
          const C* e = plan.read<C>(noise, s, b, f, n, sn);
          C* out = plan.target<C>(z, s, b, f, sz);
          sweep<C>(n, [&](auto at, int64_t i, int) {
            at.store(out + i, at.load(m + i) + at.load(sigma + i) * at.load(e + i));
          });
          plan.write<C>(z, s, b, f, n, out);
        }
      },
      [&](int64_t b, double kl) { static_cast<C*>(a.kl.data)[b] = C(0.5 * kl); });
}

template <class C>
double upstream_kl(const SampleArgs& a, int64_t b) {
  if (!a.grad_kl) return 0;
  double g;
  load_run<double>(static_cast<char*>(a.grad_kl.data) +
                       b * a.grad_kl.stride[0] * int64_t(size_of(a.grad_kl.dtype)),
                   a.grad_kl.dtype, 1, 1, &g);
  return g;
}

// d mu = sum_l g_z + g_kl mu; d logvar = 1/2 sigma sum_l g_z noise + g_kl (e^logvar - 1) / 2
template <class C>
void diagonal_backward(const SampleArgs& a) {
  Drawing drawing(a, bool(a.grad_kl));
  View mu, logvar, noise, grad_z, grad_mu, grad_logvar;
  drawing.of_sample(mu, a.mu);
  drawing.of_sample(logvar, a.logvar);
  drawing.of_draw(noise, a.noise);
  drawing.of_draw(grad_z, a.grad_z);
  drawing.of_sample(grad_mu, a.grad_mu);
  drawing.of_sample(grad_logvar, a.grad_logvar);
  drawing.finish();
  const Plan& plan = drawing.plan();
  drawing.run(
      a.threads, [&](int64_t b) { return C(upstream_kl<C>(a, b)); },
      [&](int64_t b, int64_t f, int64_t n, C w) {
        C sm[BLOCK], sl[BLOCK], sn[BLOCK], sg[BLOCK], sgm[BLOCK], sgl[BLOCK];
        const C* m = plan.read<C>(mu, 0, b, f, n, sm);
        const C* v = plan.read<C>(logvar, 0, b, f, n, sl);
        C* gm = grad_mu.present ? plan.target<C>(grad_mu, 0, b, f, sgm) : sgm;
        C* gl = grad_logvar.present ? plan.target<C>(grad_logvar, 0, b, f, sgl) : sgl;
        std::fill(gm, gm + n, C(0));
        std::fill(gl, gl + n, C(0));
        for (int64_t s = 0; grad_z.present && s < drawing.draws(); ++s) {
          const C* e = plan.read<C>(noise, s, b, f, n, sn);
          const C* g = plan.read<C>(grad_z, s, b, f, n, sg);
          sweep<C>(n, [&](auto at, int64_t i, int) {
            Vec<C> gi = at.load(g + i);
            at.store(gm + i, at.load(gm + i) + gi);
            at.store(gl + i, at.load(gl + i) + gi * at.load(e + i));
          });
        }
        sweep<C>(n, [&](auto at, int64_t i, int) {
          Vec<C> l = at.load(v + i);
          Vec<C> drawn = C(0.5) * VAEKERN_ISA::exp<C>(C(0.5) * l) * at.load(gl + i);
          if (!a.grad_z) drawn = splat(C(0));  // 0 * infinity is not asked for
          if (a.grad_kl) {
            at.store(gm + i, at.load(gm + i) + w * at.load(m + i));
            drawn += C(0.5) * w * exp_all<C>(l).minus_one;
          }
          at.store(gl + i, drawn);
        });
        if (grad_mu.present) plan.write<C>(grad_mu, 0, b, f, n, gm);
        if (grad_logvar.present) plan.write<C>(grad_logvar, 0, b, f, n, gl);
      },
      [](int64_t, C) {});
}

// Offsets of row b (of draw l) in a [B, d] or [L, B, d] tensor.
int64_t row_offset(const Tensor& t, int64_t l, int64_t b) {
  return t.ndim == 3 ? l * t.stride[0] + b * t.stride[1] : b * t.stride[0];
}

template <class C>
void full(const SampleArgs& a) {
  const int64_t B = a.mu.shape[0], d = a.mu.shape[1];
  const int64_t L = lead_axes(a) == 2 ? a.noise.shape[0] : 1;
  const Tensor& tril = a.scale_tril;
  parallel_for(B, (L + 1) * B * d * d, a.threads, [&](int64_t b) {
    std::vector<C> mu(d), row(d), noise(L * d), z(L * d);
    Element<C>{a.mu}.read(b * a.mu.stride[0], a.mu.stride[1], d, mu.data());
    for (int64_t l = 0; l < L; ++l)
      Element<C>{a.noise}.read(row_offset(a.noise, l, b), a.noise.stride[a.noise.ndim - 1], d,
                               noise.data() + l * d);
    double kl = 0;
    for (int64_t j = 0; j < d; ++j) {
      Element<C>{tril}.read(b * tril.stride[0] + j * tril.stride[1], tril.stride[2], j + 1,
                            row.data());
      double s = double(mu[j]) * double(mu[j]) - 1;
      for (int64_t k = 0; k <= j; ++k) s += double(row[k]) * double(row[k]);
      if (a.kl) kl += 0.5 * s - std::log(double(row[j]));
      for (int64_t l = 0; l < L; ++l) {
        double t = double(mu[j]);
        for (int64_t k = 0; k <= j; ++k) t += double(row[k]) * double(noise[l * d + k]);
        z[l * d + j] = C(t);
      }
    }
    for (int64_t l = 0; l < L; ++l)
      Element<C>{a.z}.write(row_offset(a.z, l, b), a.z.stride[a.z.ndim - 1], d, z.data() + l * d);
    if (a.kl) static_cast<C*>(a.kl.data)[b] = C(kl);
  });
}

// d mu = sum_l g_z + g_kl mu; d L_jk = sum_l g_j noise_k + g_kl (L_jk - [j = k] / L_jj), k <= j
template <class C>
void full_backward(const SampleArgs& a) {
  const int64_t B = a.mu.shape[0], d = a.mu.shape[1];
  const int64_t L = lead_axes(a) == 2 ? a.noise.shape[0] : 1;
  const Tensor &tril = a.scale_tril, &grad = a.grad_scale_tril;
  parallel_for(B, (L + 1) * B * d * d, a.threads, [&](int64_t b) {
    std::vector<C> mu(d), row(d), noise(L * d), g(L * d, C(0));
    Element<C>{a.mu}.read(b * a.mu.stride[0], a.mu.stride[1], d, mu.data());
    for (int64_t l = 0; l < L; ++l) {
      Element<C>{a.noise}.read(row_offset(a.noise, l, b), a.noise.stride[a.noise.ndim - 1], d,
                               noise.data() + l * d);
      if (a.grad_z)
        Element<C>{a.grad_z}.read(row_offset(a.grad_z, l, b), a.grad_z.stride[a.grad_z.ndim - 1], d,
                                  g.data() + l * d);
    }
    const double w = upstream_kl<C>(a, b);
    for (int64_t j = 0; grad && j < d; ++j) {
      Element<C>{tril}.read(b * tril.stride[0] + j * tril.stride[1], tril.stride[2], j + 1,
                            row.data());
      const C diagonal = row[j];
      for (int64_t k = 0; k <= j; ++k) {
        double s = w * double(row[k]);
        for (int64_t l = 0; l < L; ++l) s += double(g[l * d + j]) * double(noise[l * d + k]);
        if (k == j && a.grad_kl) s -= w / double(diagonal);
        row[k] = C(s);
      }
      for (int64_t k = j + 1; k < d; ++k) row[k] = C(0);
      Element<C>{grad}.write(b * grad.stride[0] + j * grad.stride[1], grad.stride[2], d,
                             row.data());
    }
    if (!a.grad_mu) return;
    for (int64_t j = 0; j < d; ++j) {
      double s = w * double(mu[j]);
      for (int64_t l = 0; l < L; ++l) s += double(g[l * d + j]);
      row[j] = C(s);
    }
    Element<C>{a.grad_mu}.write(b * a.grad_mu.stride[0], a.grad_mu.stride[1], d, row.data());
  });
}

bool in_double(const SampleArgs& a) {
  const Tensor* all[] = {&a.mu, &a.logvar, &a.scale_tril};
  for (const Tensor* t : all)
    if (*t && t->dtype == DType::f64) return true;
  return false;
}

}  // namespace

void sample(const SampleArgs& a) {
  if (a.scale_tril) return in_double(a) ? full<double>(a) : full<float>(a);
  in_double(a) ? diagonal<double>(a) : diagonal<float>(a);
}

void sample_backward(const SampleArgs& a) {
  if (a.scale_tril) return in_double(a) ? full_backward<double>(a) : full_backward<float>(a);
  in_double(a) ? diagonal_backward<double>(a) : diagonal_backward<float>(a);
}

}  // namespace VAEKERN_ISA
}  // namespace vaekern
