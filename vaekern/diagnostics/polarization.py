"""The polarized regime: latent dimensions that are either precise or pure noise."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaekern import functional
from vaekern.diagnostics._checks import check_samples
from vaekern.diagnostics.latents import Definition, active_units, check_same_samples


class PolarizedRegime(NamedTuple):
    """Result of :func:`polarized_regime`."""

    delta_kl: Tensor  # [] float64
    kl: Tensor  # [] float64, nats: L_KL, the mean over the samples
    active_kl: Tensor  # [] float64, nats: L_approxKL, the mean over the samples
    active: int
    mask: Tensor  # [d] bool: the active dimensions; the others are passive
    mean_squared_mu: Tensor  # [d] float64: E_x mu_j^2, near 0 where passive
    mean_variance: (
        Tensor  # [d] float64: E_x sigma_j^2, near 0 where active and near 1 where passive
    )


@torch.no_grad()
def polarized_regime(
    mu: Tensor,  # [N, d]
    logvar: Tensor,  # [N, d]
    *,
    definition: Definition = "std",
    threshold: float | None = None,
) -> PolarizedRegime:
    r"""How nearly every latent dimension is either active or passive.

    In the polarized regime the KL divergence needs the active dimensions only, and of them neither
    the variance:

    .. math::

        L_{KL} &= \mathrm{E}_x \tfrac12 \sum_j (\mu_j^2 + \sigma_j^2 - \log\sigma_j^2 - 1), \\
        L_{\approx KL} &= \mathrm{E}_x \tfrac12 \sum_{j \in V_a}
            (\mu_j^2 - \log\sigma_j^2 - 1), \\
        \Delta_{KL} &= |L_{KL} - L_{\approx KL}| / L_{KL}.

    The difference is :math:`\tfrac12\mathrm{E}_x\sum_{j \in V_a}\sigma_j^2` plus the KL of the
    passive dimensions, so it is never negative; it is computed from these terms and loses no digits
    to cancellation. The paper calls a model polarized where Delta_KL < 3 %.

    The averages go over the samples that are given: a whole data set for a number that describes
    the model, or one batch while it trains (what `vaekern train` records). The paper does not say
    which of the two its Table 1 uses. beta is not part of L_KL.

    Args:
        mu: [N, d] encoder means.
        logvar: [N, d] encoder log-variances, log sigma^2.
        definition, threshold: which dimensions are active, as in
            :func:`vaekern.diagnostics.active_units`; by default Rolinek et al.'s,
            :math:`\mathrm{Std}_x\,\mu_j(x) > 0.5`.

    Returns:
        Delta_KL, both KLs in nats, the active dimensions, and the mean mu^2 and sigma^2 of each
        dimension, by which one sees whether parts (a) and (b) of the definition hold. Where L_KL is
        0 (a collapsed encoder), Delta_KL is 0 if L_approxKL is 0 as well, else infinite.

    Raises:
        ValueError, TypeError: as :func:`vaekern.diagnostics.active_units`.

    Example:
        >>> mu = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
        >>> logvar = torch.tensor([[-8.0, 0.0], [-8.0, 0.0]])
        >>> regime = polarized_regime(mu, logvar)
        >>> regime.active, round(float(regime.kl), 4), f"{float(regime.delta_kl):.1e}"
        (1, 5.5002, '3.0e-05')

    Source: Rolinek et al. 2019, "Variational autoencoders pursue PCA directions (by accident)",
    definition 1, equations 10 and 30, section 5.2.
    """
    check_samples("mu", mu)
    check_same_samples(mu, logvar)
    units = active_units(mu, logvar, definition=definition, threshold=threshold)
    delta, kl, missing = kl_error(mu, logvar, units.mask)
    variance = logvar.double().exp().mean(0)
    squares = mu.double().square().mean(0)
    return PolarizedRegime(delta, kl, kl - missing, units.active, units.mask, squares, variance)


@torch.no_grad()
def kl_error(mu: Tensor, logvar: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Delta_KL, L_KL, L_KL - L_approxKL), unchecked: never waits for the device."""
    logvar = logvar.double()
    kl = functional.gaussian_kl(mu.double(), logvar, reduction="dims")
    missing = torch.where(active, 0.5 * logvar.exp().mean(0), kl).sum()
    total = kl.sum()
    # 0 / 0: nothing is missing from nothing
    return torch.where(missing == 0, 0.0, missing / total), total, missing


class PolarizedRegimeTracker:
    r"""The share of a training, up to its end, during which Delta_KL stayed small.

    An evaluation at step t speaks for the steps since the one before, so with evaluations at steps
    t_1 < ... < t_n, the last of them not below the threshold at t_k,

    .. math:: \mathrm{share} = (t_n - t_k) / t_n,

    which is 1 where all are below it and 0 where the last is not. An evaluation that is NaN counts
    as not below. The paper prints 100 times the share in its Table 1, from one evaluation in 500
    batches.

    Args:
        threshold: Delta_KL must be below it; the paper's is 3 %.

    Raises:
        ValueError: a threshold that is not positive.

    Example:
        >>> tracker = PolarizedRegimeTracker()
        >>> for step, delta_kl in ((500, 0.20), (1000, 0.01), (1500, 0.04), (2000, 0.02)):
        ...     tracker.update(step, delta_kl)
        >>> tracker.share
        0.25

    Source: Rolinek et al. 2019, section 5.2 and table 1.
    """

    def __init__(self, threshold: float = 0.03) -> None:
        if not 0 < threshold < math.inf:
            raise ValueError(f"threshold must be positive and finite, got {threshold}")
        self.threshold = threshold
        self.step = 0  # of the newest evaluation
        self.last_above = 0  # step of the newest evaluation that was not below the threshold

    def update(self, step: int, delta_kl: float | Tensor) -> None:
        """Take in Delta_KL as evaluated after ``step`` steps of training.

        Raises:
            ValueError: a step that is not beyond the one before.
        """
        if step <= self.step:
            raise ValueError(f"step must be above the one before, {self.step}, got {step}")
        self.step = step
        if not float(delta_kl) < self.threshold:
            self.last_above = step

    @property
    def share(self) -> float:
        """Between 0 and 1; NaN before the first evaluation."""
        return (self.step - self.last_above) / self.step if self.step else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, to be stored with a run."""
        return {"threshold": self.threshold, "step": self.step, "last_above": self.last_above}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned.

        Raises:
            KeyError: a number is missing.
        """
        self.threshold = float(state["threshold"])
        self.step, self.last_above = int(state["step"]), int(state["last_above"])
