"""The KL term of a step: warm-up, free bits, capacity."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from vaekern import functional, joined
from vaekern.functional import LossComponents
from vaekern.models import VAE, Posterior
from vaekern.training.schedule_config import KLConfig

Number = TypeVar("Number", float, Tensor)


def kl_per_dimension(
    mu: Tensor,
    logvar: Tensor,
    process_group: object = False,
    *,
    scale_tril: Tensor | None = None,
) -> Tensor:
    r"""KL(N(mu_j, exp logvar_j) || N(0, 1)) of each latent dimension, averaged over the batch.

    .. math:: \frac1B \sum_b \tfrac12 (\mu_{bj}^2 + e^{l_{bj}} - 1 - l_{bj})

    With a full covariance L L^T the parts of its KL that belong to the rows of L,

    .. math:: \frac1B \sum_b \tfrac12 (\mu_{bj}^2 + \|L_{bj}\|^2 - 1) - \log L_{bjj}

    Args:
        mu, logvar: [B, d]; half precision is widened to float32.
        process_group: the processes whose batches are one; False = this one alone, None = all.
        scale_tril: L [B, d, d] in the place of logvar.

    Returns:
        [d], in nats, with its graph. On several processes it is the joined batch's on each, and
        the mean of their gradients is its gradient.

    Example:
        >>> kl_per_dimension(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2))
        tensor([1., 0.])

    Source: Kingma & Welling 2014, appendix B.
    """
    if mu.dtype in (torch.float16, torch.bfloat16):
        mu, logvar = mu.float(), logvar.float()
    if scale_tril is None:
        kl = 0.5 * (mu.square() + torch.expm1(logvar) - logvar)
    else:
        log_diagonal = scale_tril.diagonal(dim1=-2, dim2=-1).log()
        kl = 0.5 * (mu.square() + scale_tril.square().sum(-1) - 1.0) - log_diagonal
    group = functional.world(process_group)
    if group is None:
        return kl.mean(0)
    sums, batch = kl.sum(0), len(kl)
    part = torch.cat([sums.detach().double(), sums.new_full((1,), batch, dtype=torch.float64)])
    whole = joined.join(part, group)
    share = sums * (whole.ranks / whole.samples.clamp_min(1)).to(sums.dtype)
    return joined.with_gradient(share, joined.mean(whole).to(sums.dtype))


def free_bits_kl(
    mu: Tensor,
    logvar: Tensor,
    free_bits: float,
    process_group: object = False,
    *,
    scale_tril: Tensor | None = None,
) -> Tensor:
    r"""The KL with a floor for each latent dimension, below which it is neither paid nor pushed.

    .. math:: \sum_j \max(\lambda, \tfrac1B \sum_b \mathrm{KL}_{bj})

    Args:
        mu, logvar: [B, d].
        free_bits: lambda, in nats for each dimension.
        process_group, scale_tril: as `kl_per_dimension`.

    Returns:
        A number in nats, with its graph.

    Example:
        >>> mu = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> free_bits_kl(mu, torch.zeros(2, 2), 0.25)  # 1 paid in full, 0 raised to the floor
        tensor(1.2500)

    Source: Kingma et al. 2016, Improving Variational Inference with Inverse Autoregressive Flow,
    equation 15, each dimension a group of its own.
    """
    per_dimension = kl_per_dimension(mu, logvar, process_group, scale_tril=scale_tril)
    return per_dimension.clamp(min=free_bits).sum()


def capacity_kl(
    mu: Tensor,
    logvar: Tensor,
    capacity: float,
    process_group: object = False,
    *,
    scale_tril: Tensor | None = None,
) -> Tensor:
    r"""The distance of the batch's KL from a target.

    .. math:: |\tfrac1B \sum_{b,j} \mathrm{KL}_{bj} - C|

    Args:
        mu, logvar: [B, d].
        capacity: C, in nats.
        process_group, scale_tril: as `kl_per_dimension`.

    Returns:
        A number in nats, with its graph.

    Example:
        >>> capacity_kl(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2), 5.0)
        tensor(4.)

    Source: Burgess et al. 2018, Understanding disentangling in beta-VAE, equation 8.
    """
    per_dimension = kl_per_dimension(mu, logvar, process_group, scale_tril=scale_tril)
    return (per_dimension.sum() - capacity).abs()


class KLTerm:
    """What each step of a stage charges for the KL.

    Args:
        config: the settings.
        beta: the weight, after its warm-up.
        epochs: of the stage.
        steps: of an epoch.

    Example:
        >>> term = KLTerm(KLConfig(kl_warmup_epochs=2), beta=4.0, epochs=9, steps=10)
        >>> [term.beta(step) for step in (0, 5, 10, 20, 30)]
        [0.0, 1.0, 2.0, 4.0, 4.0]
    """

    def __init__(self, config: KLConfig, beta: float, epochs: int, steps: int):
        self.config = config
        self.full_beta = beta
        self.warmup = config.kl_warmup_steps or (config.kl_warmup_epochs or 0) * steps
        self.rise = (config.capacity_epochs or epochs) * steps

    @property
    def settled(self) -> int:
        """The step from which on nothing of it moves any more."""
        return self.warmup if self.config.capacity is None else max(self.warmup, self.rise)

    def beta(self, step: int) -> float:
        """The KL's weight after so many steps: beta * min(1, step / warm-up)."""
        return self.full_beta if step >= self.warmup else self.full_beta * step / self.warmup

    def capacity(self, step: int) -> float | None:
        """C after so many steps, in nats: C * min(1, step / rise)."""
        full = self.config.capacity
        return None if full is None else full if step >= self.rise else full * step / self.rise

    def components(
        self,
        vae: VAE,
        x: Tensor,
        q: Posterior,
        step: int,
        noise: Tensor,
        eps: float | None = None,
    ) -> LossComponents:
        """`VAE.components` with this step's KL term, and kl_per_dim left empty.

        Free bits and capacity take the reconstruction from the loss's own kernel (called with
        beta = 0) and add their KL in PyTorch, which costs a few passes over [B, d].
        """
        capacity, free_bits = self.capacity(step), self.config.free_bits
        if capacity is None and free_bits is None:
            beta = None if step >= self.warmup else self.beta(step)
            return vae.components(x, q, beta=beta, eps=eps, noise=noise, per_dim=False)
        found = vae.components(x, q, beta=0.0, eps=eps, noise=noise, per_dim=False)
        group = vae.loss.process_group
        if capacity is not None:
            kl = capacity_kl(q.mu, q.logvar, capacity, group, scale_tril=q.scale_tril)
        else:
            assert free_bits is not None
            kl = free_bits_kl(q.mu, q.logvar, free_bits, group, scale_tril=q.scale_tril)
        return found._replace(loss=found.loss + self.beta(step) * kl)

    def watched(self, reconstruction: Number, kl: Number) -> Number:
        """The loss at the end of all schedules: what the epochs of a run can be compared by."""
        return reconstruction + self.full_beta * abs(kl - (self.config.capacity or 0.0))

    def record(self, step: int) -> dict[str, Any]:
        """What metrics.jsonl says of the weight and the target, where they move."""
        moving: dict[str, Any] = {"beta": self.beta(step)} if self.warmup else {}
        return moving if self.config.capacity is None else {"capacity": self.capacity(step)}

    def warning(self, epochs: int, steps: int) -> str | None:
        """One sentence where a schedule does not end within the stage."""
        if self.warmup > epochs * steps:
            return (
                f"the KL warm-up takes {self.warmup} steps and stage 1 has only {epochs * steps} "
                f"({epochs} epochs of {steps}): beta ends at {self.beta(epochs * steps):.3g} "
                f"instead of {self.full_beta:.3g}"
            )
        if self.config.capacity is not None and self.rise > epochs * steps:
            return (
                f"the capacity rises over {self.rise} steps and stage 1 has only {epochs * steps}: "
                f"it ends at {self.capacity(epochs * steps):.3g} nats "
                f"instead of {self.config.capacity:.3g}"
            )
        return None
