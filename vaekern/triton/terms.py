"""The maths of every objective, said once for Triton, as csrc/terms.h says it for C++.

Loops, tails, reductions and launches do not know which objective they run.  r = x_hat - x, q = E_L
r^2; nats.  Every gradient is d NLL / d r = w a r / L with a factor a: exp(-logvar) where the
variance is known, else from a statistic of q over a group: everything (iso-i), a row (iso-d), a
column (diag-i), an element (diag-d).

Of libdevice nothing is used, for the interpreter has none.  Every branch that a constant decides
has its ``else``: what stands after a ``return`` would be compiled all the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG_2PI = tl.constexpr(1.8378770664093454836)
_LOG2_E_HIGH = tl.constexpr(1.44269502162933349609375)  # the nearest float32
_LOG2_E_LOW = tl.constexpr(1.925963033500235e-08)  # and what it leaves
_LN_2 = tl.constexpr(0.6931471805599453)

# vaekern.ops.OBJECTIVES, ACTIVATIONS
GAUSSIAN = tl.constexpr(1)
ISO_I = tl.constexpr(2)
ISO_D = tl.constexpr(3)
DIAG_I = tl.constexpr(4)
DIAG_D = tl.constexpr(5)
SIGMOID = tl.constexpr(1)
TANH = tl.constexpr(2)


@triton.jit
def exp(t):
    """e^t to 2 ulp: tl.exp's product with log2 e loses |t| / 2 of them in float32."""
    if t.dtype.is_fp64():
        return tl.exp(t)
    else:
        high = t * _LOG2_E_HIGH
        low = tl.fma(t, tl.full(t.shape, _LOG2_E_HIGH, t.dtype), -high) + t * _LOG2_E_LOW
        e = tl.exp2(high)
        return tl.where(tl.abs(high) < 126.0, e + e * (low * _LN_2), e)


@triton.jit
def exp_excess(t):
    """e^t - 1 - t and e^t - 1, without cancellation: the series below |t| = 1."""
    small = tl.abs(t) < 1.0
    s = tl.where(small, t, 0.0)
    # s^2 / 2! + ... + s^19 / 19!, by Horner's rule
    series = tl.full(t.shape, 1.0, t.dtype)
    for n in tl.static_range(19, 2, -1):
        series = series * (s / n) + 1.0
    series = series * s * s * 0.5
    e = exp(t)
    return tl.where(small, series, e - 1.0 - t), tl.where(small, s + series, e - 1.0)


@triton.jit
def activate(a, ACTIVATION: tl.constexpr):
    """The activation's value and slope."""
    if ACTIVATION == SIGMOID:
        s = 1.0 / (1.0 + exp(-a))
        return s, s * (1.0 - s)
    elif ACTIVATION == TANH:  # with t = e^{-2 |a|} - 1, exact near 0 and never overflowing
        _, t = exp_excess(-2.0 * tl.abs(a))
        size = -t / (t + 2.0)
        return tl.where(a < 0, -size, size), 1.0 - size * size
    else:
        return a, tl.full(a.shape, 1.0, a.dtype)


@triton.jit
def bounded(logvar, BOUND: tl.constexpr):
    """Bounded below, as torch.clamp_min does it: NaN stays."""
    return tl.where(logvar < BOUND, BOUND, logvar)


# ---------------------------------------------------------------- one factor for each element


@triton.jit
def element(q, v, OBJECTIVE: tl.constexpr, EPS: tl.constexpr, BOUND: tl.constexpr):
    """(2 NLL - constant, factor a, 2 d NLL / d logvar) of an element; v is its logvar (gaussian),
    its column's variance (diag-i) or nothing (diag-d)."""
    if OBJECTIVE == GAUSSIAN:
        logvar = bounded(v, BOUND)
        a = exp(-logvar)
        return q * a + logvar, a, tl.where(v < BOUND, 0.0, 1.0 - q * a)
    elif OBJECTIVE == DIAG_I:
        a = 1.0 / (v + EPS)
        return tl.log(v + EPS) + (q - v) * a, a, q
    else:
        return tl.log(q + EPS), 1.0 / (q + EPS), q


@triton.jit
def element_value(total, count, OBJECTIVE: tl.constexpr):
    """NLL from the sum of ``count`` first results of ``element``, in float64."""
    if OBJECTIVE == GAUSSIAN:
        return 0.5 * (total + count * LOG_2PI)
    else:
        return 0.5 * (total + count * (LOG_2PI + 1.0))


# ---------------------------------------------------------------- one factor for each row, or one
# s = sum_i q_i of the row; logvar is known (gaussian), v the mean of q over everything (iso-i).


@triton.jit
def row_value(s, logvar, v, D, OBJECTIVE: tl.constexpr, EPS: tl.constexpr):
    """In float64."""
    if OBJECTIVE == GAUSSIAN:
        return 0.5 * (s * tl.exp(-logvar) + D * (logvar + LOG_2PI))
    elif OBJECTIVE == ISO_D:
        return 0.5 * D * (tl.log(s + EPS) - tl.log(D) + (LOG_2PI + 1.0))
    else:
        value = 0.5 * (D * (tl.log(v) + (LOG_2PI + 1.0)) + (s - D * v) / v)
        return tl.where(v - v == 0.0, value, v)  # infinite or NaN


@triton.jit
def row_factor(s, logvar, D, OBJECTIVE: tl.constexpr, EPS: tl.constexpr):
    if OBJECTIVE == GAUSSIAN:
        return exp(-logvar)
    else:
        return D / (s + EPS)


# ---------------------------------------------------------------- the KL


@triton.jit
def gaussian_kl(shift, logvar, prior_logvar, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Of one dimension against N(m, s^2), shift = mu - m: (2 KL, 2 d / d mu, 2 d / d logvar,
    2 d / d log s^2).

    KL = 1/2 [ shift^2 / s^2 + e^t - 1 - t ], t = log sigma^2 - log s^2.
    """
    t = tl.where(logvar < LOW, LOW, logvar)
    t = tl.where(t > HIGH, HIGH, t)
    precise = shift
    if prior_logvar is not None:
        t -= prior_logvar
        precise = shift * exp(-prior_logvar)
    excess, minus_one = exp_excess(t)
    square = shift * precise
    outside = (logvar < LOW) | (logvar > HIGH)
    return (
        square + excess,
        2.0 * precise,
        tl.where(outside, 0.0, minus_one),
        -(square + minus_one),
    )
