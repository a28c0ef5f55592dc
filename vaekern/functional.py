"""Gaussian VAE objectives as functions: the only place that validates, broadcasts and reduces.

Conventions of every function here: the batch is the first axis and all axes after it are features
(or latent dimensions); ``logvar`` is log sigma^2; values are nats, constants included; arithmetic
is float32 or better whatever the inputs' dtype, a value is float64 for float64 input and float32
otherwise, and each gradient has its input's dtype.

reduction: "batchmean" = mean over the batch of values summed over their dimensions; "sum" = B times
that; "mean" = batchmean divided by the number of dimensions; "none" = one value per sample, [B].

On several processes the functions are local, but for :func:`mle_nll`, whose variance is a statistic
of the batch. Where batches differ in size, add up "sum"s and divide by the mean size over the
processes, or take :class:`vaekern.GaussianVAELoss`, which does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor

from . import _checks, joined, ops, reference
from .backends import has_kernel
from .joined import Joined
from .ops import ACTIVATIONS, COVARIANCES, NO_TRACKING, OBJECTIVES, REDUCTIONS, Options, Track

BATCH_COUPLED = (OBJECTIVES["iso-i"], OBJECTIVES["diag-i"])  # a sample's term depends on the others
_F32 = torch.float32
_F64 = torch.float64


def _narrow(*tensors: Tensor | None) -> bool:
    """Is some input half precision?"""
    return any(t is not None and t.dtype is not _F32 and t.dtype is not _F64 for t in tensors)


MAX_AXES = 8  # of the kernels (csrc/core.h); the reference takes any number


def _kernel(t: Tensor) -> bool:
    return has_kernel(t.device.type) and t.dim() <= MAX_AXES


def _expand_x_logvar(name: str, x_logvar: Tensor, x: Tensor) -> Tensor:
    """As it is for the layouts the kernels know (one number, per sample, per dimension, per
    element); any other broadcast as an expanded view, whose gradient autograd sums back."""
    shape = x_logvar.shape
    if shape == x.shape or x_logvar.numel() == 1:
        return x_logvar
    _checks.broadcasts(name, x_logvar, "x", x)
    if shape == x.shape[1:] or shape == (1, *x.shape[1:]):
        return x_logvar
    if len(shape) == x.dim() and shape[0] == x.shape[0] == x_logvar.numel():
        return x_logvar
    return _expand(x_logvar, x)


def _expand(t: Tensor, to: Tensor) -> Tensor:
    """A view of to's shape; autograd sums its gradient back, in float32 or better."""
    return (t if t.dtype in (_F32, _F64) else t.float()).expand(to.shape)


def world(process_group: object) -> object | None:
    """The process group over which a batch is joined, or None for this process alone."""
    if process_group is False:
        return None
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        if process_group is not None:
            raise ValueError(
                "process_group was given, but torch.distributed is not initialised; call "
                "torch.distributed.init_process_group first, or pass process_group=False"
            )
        return None
    group = process_group if process_group is not None else distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None  # type: ignore[arg-type]


def gaussian_nll(
    x_hat: Tensor,
    x: Tensor,
    logvar: Tensor | float,
    *,
    activation: str | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    r"""Gaussian negative log-likelihood with a known log-variance.

    .. math:: \tfrac12 \sum_i \Big[ \tfrac1L \sum_l (\hat x_{li} - x_i)^2 / \sigma_i^2
              + \log \sigma_i^2 + \log 2\pi \Big]

    Args:
        x_hat: decoder mean [B, ...], or [L, B, ...] for L posterior samples; with ``activation``
            the logits (the gradient then goes to them).
        x: data [B, ...]; gets its gradient when it requires one.
        logvar: log sigma^2: a number, or a tensor that broadcasts to x (one number, per dimension,
            per channel, per sample as [B, 1, ...], per element). Gets its gradient.
        activation: None, "sigmoid" or "tanh", applied to x_hat inside the kernel.
        reduction: "batchmean", "sum", "mean" or "none".

    Returns:
        A scalar in nats, or [B] for "none".

    Raises:
        TypeError: a tensor is not float32, float64, bfloat16 or float16.
        ValueError: shapes do not match, or an option is unknown.

    Example:
        >>> import torch
        >>> from vaekern.functional import gaussian_nll
        >>> x = torch.zeros(2, 4)
        >>> round(float(gaussian_nll(x + 1, x, 0.0)), 4)  # 4/2 (1 + log 2 pi)
        5.6758

    Source: Dai & Wipf 2019, section 1, with sigma^2 = gamma.
    """
    _checks.option("reduction", reduction, ("batchmean", "sum", "mean", "none"))
    _checks.option("activation", activation, ACTIVATIONS)
    _checks.floating(x_hat=x_hat, x=x, required=True)
    if not isinstance(logvar, Tensor):
        number = _checks.number("logvar", logvar, "pass log sigma^2 as a number or a tensor")
        logvar = torch.full((1,), number, dtype=x.dtype, device=x.device)
    _checks.floating(x=x, logvar=logvar)
    narrow = _narrow(x_hat, x, logvar)
    _checks.reconstruction(x_hat, x)
    options = Options(1, ACTIVATIONS[activation], REDUCTIONS[reduction])
    logvar = _expand_x_logvar("logvar", logvar, x)
    return ops.loss(options, _kernel(x_hat), narrow, None, x_hat, x, logvar)[0]


def mle_nll(
    x_hat: Tensor,
    x: Tensor,
    covariance: str = "iso-i",
    *,
    eps: float = 1e-6,
    activation: str | None = None,
    reduction: str = "batchmean",
    process_group: object = None,
) -> Tensor:
    r"""Gaussian negative log-likelihood at the maximum-likelihood decoder variance (log-MSE).

    With r = x_hat - x, D features, E_B the batch mean and E_L the mean over posterior samples, per
    sample:

    .. math::
        \text{iso-i}:&\ \tfrac D2 (\log(E_B E_L |r|^2 / D) + 1 + \log 2\pi) \\
        \text{iso-d}:&\ \tfrac D2 (\log(E_L |r|^2 + \epsilon) - \log D + 1 + \log 2\pi) \\
        \text{diag-i}:&\ \tfrac12 \sum_i \log(E_B E_L r_i^2 + \epsilon) + \tfrac D2 (1 + \log 2\pi)
        \\ \text{diag-d}:&\ \tfrac12 \sum_i \log(E_L r_i^2 + \epsilon) + \tfrac D2 (1 + \log 2\pi)

    The paper drops the constants; here they are kept, so that the four can be compared.  The
    gradient is that of :func:`gaussian_nll` at the (detached) estimate.  The -i modes couple the
    batch: average gradients over micro-batches and you optimise something else
    (:meth:`vaekern.GaussianVAELoss.accumulate` is exact).

    Args:
        x_hat: [B, ...] or [L, B, ...]; with ``activation`` the logits.
        x: [B, ...].
        covariance: "iso-i", "iso-d", "diag-i" or "diag-d".
        eps: added inside the log (of the SUM for iso-d; iso-i has none and keeps its argument at
            or above the smallest normal number), so that a residual of zero stays finite.
        activation, reduction: as in :func:`gaussian_nll`. "none" gives for the -i modes the
            per-sample NLL at the batch's estimate, whose mean is the objective.
        process_group: the processes whose batches are one batch: None = the default group when
            torch.distributed is initialised, False = this process alone. All of them have to call,
            once each: pass False where one evaluates alone. "batchmean", "mean" and "sum" are
            scaled so that the processes' mean is the joined batch's value
            (:class:`vaekern.GaussianVAELoss` has the table).

    Returns:
        A scalar in nats, or [B] for "none".

    Raises:
        TypeError, ValueError: as :func:`gaussian_nll`.

    Example:
        >>> import torch
        >>> from vaekern.functional import mle_nll
        >>> x = torch.zeros(2, 4)
        >>> round(float(mle_nll(x + 1, x)), 4)  # the estimate is 1
        5.6758

    Source: Takida et al. 2022, section 5.2 and appendix G (Iso-I, Iso-D, Diag-I, Diag-D).
    """
    _checks.option("covariance", covariance, COVARIANCES)
    _checks.option("reduction", reduction, ("batchmean", "sum", "mean", "none"))
    _checks.option("activation", activation, ACTIVATIONS)
    _checks.process_group(process_group)
    _checks.floating(x_hat=x_hat, x=x, required=True)
    narrow = _narrow(x_hat, x)
    _checks.reconstruction(x_hat, x)
    options = Options(
        OBJECTIVES[covariance], ACTIVATIONS[activation], REDUCTIONS[reduction], eps=_checks.eps(eps)
    )
    group = world(process_group)
    if group is not None:
        return _joint_loss(options, group, None, narrow, None, x_hat, x)[0]
    return ops.loss(options, _kernel(x_hat), narrow, None, x_hat, x)[0]


def _joint_loss(
    options: Options,
    group: object | None,
    known: Joined | None,  # what an earlier pass has found out about the joined batch
    narrow: bool,
    beta: Tensor | None,
    x_hat: Tensor,
    x: Tensor,
    x_logvar: Tensor | None = None,
    mu: Tensor | None = None,
    logvar: Tensor | None = None,
    scale_tril: Tensor | None = None,
) -> tuple[Tensor, Tensor, Joined]:
    """The loss of a batch of which this is a part: (value, statistics, the joined batch).

    A coupled objective is evaluated as the NLL at the joined batch's variance, held fixed: that has
    the objective's gradient, so that nothing is communicated in the backward."""
    kernel, batch, features = _kernel(x_hat), x.shape[0], math.prod(x.shape[1:])
    variance = None
    if options.objective in BATCH_COUPLED:
        differentiated = torch.is_grad_enabled() and (x_hat.requires_grad or x.requires_grad)
        if differentiated and options.reduction == REDUCTIONS["none"]:
            raise ValueError(
                "reduction must not be 'none' where a gradient is taken and the variance is that "
                "of several processes or micro-batches, for each sample's weight moves the "
                "others' estimate; use 'batchmean', torch.no_grad() or process_group=False"
            )
        if known is None:
            alone = options._replace(reduction=REDUCTIONS["batchmean"])
            with torch.no_grad():
                found = ops.loss(alone, kernel, narrow, None, x_hat, x, want_statistics=True)[1]
                assert found is not None
                known = joined.join(joined.totals(found, batch), group)
        dtype = ops._value_dtype(x_hat, x, mu, logvar, scale_tril)
        with torch.no_grad():
            variance = joined.mean(known)
            x_logvar, excess = reference.known_variance(
                variance, options.objective == OBJECTIVES["diag-i"], features, options.eps, dtype
            )
        x_logvar = x_logvar if len(x_logvar) == 1 else x_logvar.view(x.shape[1:])
        x_hat, x = ops.differentiable_once(kernel, x_hat, x)
        options = options._replace(objective=OBJECTIVES["gaussian"])
    value, statistics = ops.loss(
        options, kernel, narrow, beta, x_hat, x, x_logvar, mu, logvar, scale_tril,
        want_statistics=True,
    )  # fmt: skip
    assert statistics is not None
    if known is None:
        known = joined.join(joined.totals(statistics, batch), group)
    if variance is not None:
        terms = {REDUCTIONS["sum"]: batch, REDUCTIONS["mean"]: 1 / max(features, 1)}
        value = value + excess * terms.get(options.reduction, 1)
        rows = statistics[: 3 * batch]
        statistics = torch.cat([rows[:batch] + excess, rows[batch:], variance.to(rows.dtype)])
    value = value * joined.share(known, options.reduction, batch, value.dtype)
    return value, statistics, known


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    r"""KL divergence from a diagonal Gaussian to N(0, I), or to a given diagonal Gaussian.

    .. math:: \tfrac12 \sum_j \big[ (\mu_j - m_j)^2 / s_j^2 + e^{t_j} - 1 - t_j \big],
              \quad t_j = \log\sigma_j^2 - \log s_j^2

    without cancellation near the prior.

    Args:
        mu, logvar: the posterior's mean and log sigma^2, [B, ...].
        prior_mu, prior_logvar: m and log s^2, broadcasting to mu; default 0. They get gradients
            too.
        reduction: "batchmean", "sum", "mean", "none" ([B]) or "dims": per latent dimension, the
            mean over the batch, shape of one sample; its sum is "batchmean".

    Returns:
        A scalar in nats, [B] or [...].

    Raises:
        TypeError, ValueError: as :func:`gaussian_nll`.

    Example:
        >>> import torch
        >>> from vaekern.functional import gaussian_kl
        >>> float(gaussian_kl(torch.ones(5, 2), torch.zeros(5, 2)))
        1.0

    Source: Rolinek et al. 2019, eq. (4); Kingma & Welling 2014, appendix B.
    """
    _checks.option("reduction", reduction, REDUCTIONS)
    _checks.floating(mu=mu, logvar=logvar, required=True)
    _checks.floating(mu=mu, prior_mu=prior_mu, prior_logvar=prior_logvar)
    _checks.latent(mu, logvar, None)
    narrow = _narrow(mu, logvar, prior_mu, prior_logvar)
    prior_mu = _expand_prior("prior_mu", prior_mu, mu)
    prior_logvar = _expand_prior("prior_logvar", prior_logvar, mu)
    return ops.loss(
        Options(0, 0, REDUCTIONS[reduction]), _kernel(mu), narrow, None,
        mu=mu, logvar=logvar, prior_mu=prior_mu, prior_logvar=prior_logvar,
    )[0]  # fmt: skip


def _expand_prior(name: str, prior: Tensor | None, mu: Tensor) -> Tensor | None:
    if prior is None or prior.shape == mu.shape:
        return prior
    _checks.broadcasts(name, prior, "mu", mu)
    return _expand(prior, mu)


def full_gaussian_kl(mu: Tensor, scale_tril: Tensor, *, reduction: str = "batchmean") -> Tensor:
    r"""KL(N(mu, L L^T) || N(0, I)) for a full-covariance posterior given by its Cholesky factor.

    .. math:: \tfrac12 (\|L\|_F^2 + \|\mu\|^2 - d) - \sum_j \log L_{jj}

    Args:
        mu: [B, d].
        scale_tril: L [B, d, d] with positive diagonal; what stands above the diagonal is ignored.
        reduction: as :func:`gaussian_kl`; "dims" splits the sum over the rows of L:
            1/2 (|L_j|^2 + mu_j^2 - 1) - log L_jj.

    Returns:
        A scalar in nats, [B] or [d].

    Raises:
        TypeError, ValueError: as :func:`gaussian_nll`.

    Example:
        >>> import torch
        >>> from vaekern.functional import full_gaussian_kl
        >>> float(full_gaussian_kl(torch.ones(3, 2), torch.eye(2).expand(3, 2, 2)))
        1.0

    Source: Rolinek et al. 2019, supplement B.3 (the beta-VAE with full covariance).
    """
    _checks.option("reduction", reduction, REDUCTIONS)
    _checks.floating(mu=mu, scale_tril=scale_tril, required=True)
    _checks.latent(mu, None, scale_tril)
    narrow = _narrow(mu, scale_tril)
    return ops.loss(
        Options(0, 0, REDUCTIONS[reduction]), _kernel(mu), narrow, None,
        mu=mu, scale_tril=scale_tril,
    )[0]  # fmt: skip


def reparameterize(
    mu: Tensor,
    logvar: Tensor | None = None,
    *,
    scale_tril: Tensor | None = None,
    samples: int | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw from the posterior: z = mu + exp(logvar / 2) noise, or mu + L noise.

    Args:
        mu: [B, ...] ([B, d] with scale_tril).
        logvar: log sigma^2 of mu's shape, or
        scale_tril: L [B, d, d].
        samples: L > 0 draws at once, z [L, B, ...]; None draws one, z [B, ...].
        noise: standard normal numbers of z's shape; then the call is a function. Default: drawn by
            torch.randn (in float32 for half-precision mu) from
        generator: a torch.Generator on mu's device.

    Returns:
        z, in mu's dtype.

    Raises:
        TypeError, ValueError: as :func:`gaussian_nll`, or both noise and generator.

    Example:
        >>> import torch
        >>> from vaekern.functional import reparameterize
        >>> mu = torch.zeros(2, 3)
        >>> reparameterize(mu, mu, noise=torch.ones(2, 3)).sum().item()
        6.0

    Source: Kingma & Welling 2014, section 2.4.
    """
    looked_at = noise is None or samples is not None or generator is not None
    if looked_at:
        noise = _noise(mu, logvar, scale_tril, samples, noise, generator)
    if logvar is not None and scale_tril is None:
        z = ops.direct_sample(mu, logvar, noise)
        if z is not None:
            return z
    if not looked_at:  # it says what is wrong
        noise = _noise(mu, logvar, scale_tril, samples, noise, generator)
    assert noise is not None
    return _draw(False, mu, logvar, scale_tril, noise)  # type: ignore[return-value]


def sample_and_kl(
    mu: Tensor,
    logvar: Tensor | None = None,
    *,
    scale_tril: Tensor | None = None,
    samples: int | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`reparameterize` and the KL to N(0, I) of every sample, in one pass.

    Args and errors: as :func:`reparameterize`.

    Returns:
        (z, kl): z [B, ...] or [L, B, ...] in mu's dtype, and kl [B] in nats.

    Example:
        >>> import torch
        >>> from vaekern.functional import sample_and_kl
        >>> z, kl = sample_and_kl(torch.ones(4, 2), torch.zeros(4, 2), samples=3)
        >>> list(z.shape), kl.tolist()
        ([3, 4, 2], [1.0, 1.0, 1.0, 1.0])

    Source: Kingma & Welling 2014, section 2.4 and appendix B.
    """
    noise = _noise(mu, logvar, scale_tril, samples, noise, generator)
    return _draw(True, mu, logvar, scale_tril, noise)  # type: ignore[return-value]


def _noise(
    mu: Tensor,
    logvar: Tensor | None,
    scale_tril: Tensor | None,
    samples: int | None,
    noise: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    _checks.floating(mu=mu, required=True)
    _checks.floating(mu=mu, logvar=logvar, scale_tril=scale_tril, noise=noise)
    _checks.latent(mu, logvar, scale_tril)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator, got {generator!r}; "
            "make one with torch.Generator().manual_seed(0)"
        )
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool)):
        raise TypeError(f"samples must be a whole number, got {samples!r}; None draws one")
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be a positive number, got {samples}; None draws one")
    shape = mu.shape if samples is None else (samples, *mu.shape)
    if noise is None:
        dtype = _F64 if mu.dtype is _F64 else _F32
        return torch.randn(shape, generator=generator, dtype=dtype, device=mu.device)
    if generator is not None:
        raise ValueError("noise and generator cannot both be given; drop one of them")
    if noise.shape != shape and (samples is not None or noise.shape[1:] != mu.shape):
        raise ValueError(
            f"noise must have the shape of z, got {_checks.shape_text(noise)} where z is "
            f"{list(shape)}; draw it with torch.randn({list(shape)})"
        )
    return noise


def _draw(
    kl: bool, mu: Tensor, logvar: Tensor | None, scale_tril: Tensor | None, noise: Tensor
) -> Tensor | tuple[Tensor, Tensor]:
    # a gradient for the noise itself is rare: the reference gives it
    kernel = _kernel(noise) and not noise.requires_grad
    return ops.sample(kernel, kl, mu, logvar, scale_tril, noise)


def gaussian_vae_loss(
    options: Options,
    x_hat: Tensor,
    x: Tensor,
    mu: Tensor,
    logvar: Tensor | None,
    x_logvar: Tensor | None,
    scale_tril: Tensor | None,
    beta: Tensor | None,
    process_group: object | None,
    known: Joined | None,
    want_statistics: bool = True,
    logvar_name: str = "x_logvar",  # what the caller knows it as
    track: Track = NO_TRACKING,
) -> tuple[Tensor, Tensor | None, Joined | None]:
    """What :class:`vaekern.GaussianVAELoss` evaluates: (loss, statistics vector of reference.loss,
    the joined batch where this is a part of one).

    track = (last, running, momentum): the buffers of the decoder's variance, to be updated.  Where
    the kernel does it and ``want_statistics`` is False, the statistics are not made (None)."""
    alone = process_group is None and known is None
    if alone:
        found = ops.direct_loss(
            options, beta, x_hat, x, x_logvar, mu, logvar, scale_tril, want_statistics, track
        )
        if found is not None:
            return *found, None
    _checks.floating(x_hat=x_hat, x=x, mu=mu, required=True)
    _checks.floating(x=x, logvar=logvar, x_logvar=x_logvar, scale_tril=scale_tril)
    narrow = _narrow(mu, logvar, scale_tril, x_hat, x, x_logvar)
    if x_hat.shape != x.shape or x.dim() == 0 or not x.numel():
        _checks.reconstruction(x_hat, x)
    if logvar is None or scale_tril is not None or logvar.shape != mu.shape or mu.dim() == 0:
        _checks.latent(mu, logvar, scale_tril)
    if x.shape[0] != mu.shape[0]:
        _checks.same_batch(x, mu)
    if x_logvar is not None:
        x_logvar = _expand_x_logvar(logvar_name, x_logvar, x)
    if track[0] is not None:
        _checks.buffers(track[0], x)
    if alone:
        return *ops.loss(
            options, _kernel(x_hat), narrow, beta, x_hat, x, x_logvar, mu, logvar,
            scale_tril, want_statistics=want_statistics, track=track,
        ), None  # fmt: skip
    value, statistics, known = _joint_loss(
        options, process_group, known, narrow, beta, x_hat, x, x_logvar, mu, logvar,
        scale_tril,
    )  # fmt: skip
    last, running, momentum = track
    if last is not None and running is not None:
        with torch.no_grad():
            ops.update(last, running, joined.tracked(known), momentum)
    return value, statistics, known


class LossComponents(NamedTuple):
    """``loss`` carries the graph; the other fields are detached."""

    loss: Tensor
    reconstruction: Tensor  # reduced like the loss, as are kl and mse
    kl: Tensor  # without beta
    kl_per_dim: Tensor  # mean over the batch; its sum is the batchmean kl
    x_logvar: Tensor  # the decoder's log sigma^2, as the objective used it
    mse: Tensor  # E_L |r|^2: summed over the features, unless reduction is "mean"


def components(
    options: Options,
    loss: Tensor,
    statistics: Tensor,
    x_hat: Tensor,
    x: Tensor,
    mu: Tensor,
    logvar: Tensor | None,
    x_logvar: Tensor | None,
    scale_tril: Tensor | None,
    whole: Joined | None,
    per_dim: bool = True,
) -> LossComponents:
    """The parts of a loss, from its statistics vector; without per_dim, kl_per_dim is empty."""
    batch, features = x.shape[0], math.prod(x.shape[1:])
    rows = statistics[: 3 * batch].view(3, batch)
    if options.reduction == REDUCTIONS["none"]:
        parts = rows.clone()  # the user's own: the backward may still read the statistics
    else:
        parts = rows.sum(1)
        if options.reduction != REDUCTIONS["sum"]:
            divisor = features if options.reduction == REDUCTIONS["mean"] else 1
            parts = parts / (max(batch, 1) * divisor)
    if whole is not None:
        parts = parts * joined.share(whole, options.reduction, batch, parts.dtype)
    kl_per_dim = _kl_per_dim(options, mu, logvar, scale_tril) if per_dim else mu.new_empty(0)
    with torch.no_grad():
        if whole is not None and per_dim:
            kl_per_dim = kl_per_dim * joined.samples_share(whole, batch).to(kl_per_dim.dtype)
        if x_logvar is not None:
            decoder = x_logvar.detach().to(statistics.dtype).clamp_min(options.x_logvar_min)
        else:
            decoder = _mle_logvar(options, rows[1], statistics[3 * batch :], x_hat, x)
    return LossComponents(loss, parts[0], parts[2], kl_per_dim, decoder, parts[1])


@torch.no_grad()
def _kl_per_dim(
    options: Options, mu: Tensor, logvar: Tensor | None, scale_tril: Tensor | None
) -> Tensor:
    """The mean over the batch, [...]."""
    dims = Options(0, 0, REDUCTIONS["dims"], 1.0, *options[4:])
    narrow = False  # no gradient is asked for
    return ops.loss(dims, _kernel(mu), narrow, None, mu=mu, logvar=logvar, scale_tril=scale_tril)[0]


def _mle_logvar(
    options: Options, square: Tensor, variance: Tensor, x_hat: Tensor, x: Tensor
) -> Tensor:
    """log of the maximum-likelihood variance: [1], [B, 1, ...], one sample's shape, or x's
    shape."""
    if options.objective == OBJECTIVES["iso-i"]:
        return variance.clamp_min(torch.finfo(variance.dtype).tiny).log()
    if options.objective == OBJECTIVES["diag-i"]:
        return (variance + options.eps).log().view(x.shape[1:])
    if options.objective == OBJECTIVES["iso-d"]:
        per_sample = (square + options.eps).log() - math.log(math.prod(x.shape[1:]))
        return per_sample.view(-1, *[1] * (x.dim() - 1))
    activation = ops.ACTIVATION_NAMES[options.activation]
    return (reference.squared_residual(x_hat, x, activation) + options.eps).log()
