"""The likelihood of data under a VAE, by importance sampling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vaekern.diagnostics._checks import check_data
from vaekern.diagnostics._decode import CHUNK
from vaekern.diagnostics._model import Model, check_model
from vaekern.diagnostics._progress import progress_bar
from vaekern.models.likelihoods import Likelihood
from vaekern.models.modes import evaluation_mode
from vaekern.models.vae import VAE


@torch.no_grad()
def importance_weighted_nll(
    model: Any,
    x: Tensor,  # [N, ...]
    *,
    samples: int = 500,
    chunk_size: int = CHUNK,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> Tensor:  # [N]
    r"""Upper bound on -log p(x) of every sample, with k importance samples from the encoder.

    .. math::

        -\log \frac1k \sum_{l=1}^k \frac{p(x|z_l)\, p(z_l)}{q(z_l|x)},
        \quad z_l \sim q(z|x), \quad p(z) = N(0, I)

    Its expectation is the negative ELBO for k = 1, never rises with k, and tends to -log p(x);
    its mean over the data estimates the negative log-likelihood in nats, constants included.

    q(z|x) may be any Gaussian, or a flow's image of one. p(x|z) is the decoder's distribution: a
    mixture of logistics, or the Gaussian with the variance that the model has: fixed, learned,
    predicted by the decoder from z, or for ``estimate="mle"`` the loss's running estimate. For mle
    iso-d and diag-d that is one variance for all inputs, the mean of those that were fitted to each
    sample in training. The fitted ones themselves would give no likelihood: a variance that depends
    on the x it scores makes exp(-value) integrate to infinity, so numbers computed that way (the
    papers print some) cannot be compared with those of any model.

    Args:
        model: a :class:`vaekern.models.VAE`, or (encode, decode) with encode: x -> (mu, logvar),
            both [B, d], and decode: z -> (x_hat, x_logvar), the decoder's mean and a log sigma^2
            that broadcasts to it. Modules are put in evaluation mode meanwhile.
        x: [N, ...] data; moved to the model's device in pieces.
        samples: k.
        chunk_size: latent codes decoded at once.
        generator: makes the draws reproducible, on the model's device; they depend on chunk_size.
        progress: show a bar; by default where stderr is a terminal.

    Returns:
        [N] float64 in nats, on the device of x. Weights and sums are float64, the networks run in
        their own precision. No more than chunk_size codes are held at once.

    Raises:
        ValueError: no data, a number below 1, an encoder's or decoder's output that does not fit,
            a model with ``estimate="mle"`` that has not been trained, a deterministic encoder, or a
            decoder that is no distribution of x (squared error, cross-entropy of grey pixels).
        TypeError: a model that is neither, or x that is no floating-point tensor.

    Example:
        >>> def encode(x):  # the exact posterior of x = z + n, n ~ N(0, 1)
        ...     return x / 2, torch.full_like(x, 0.5).log()
        >>> def decode(z):
        ...     return z, torch.zeros(1)
        >>> nll = importance_weighted_nll((encode, decode), torch.tensor([[0.0], [2.0]]), samples=3)
        >>> [round(v, 4) for v in nll.tolist()]  # -log N(x; 0, 2)
        [1.2655, 2.2655]

    Source: Burda et al. 2016, "Importance weighted autoencoders", equation 8; Takida et al. 2022,
    "Preventing oversmoothing in VAE via generalized variance parameterization", section 6.4 and
    table 7, with k = 500.
    """
    parts = check_model("model", model)
    check_data(x, samples=samples, chunk_size=chunk_size)
    _check_trained(model)
    values = []
    with (
        evaluation_mode(*parts.networks),
        progress_bar(
            len(x) * samples, "importance samples", progress, unit=" draws", abbreviate=True
        ) as bar,
    ):
        for piece in x.split(chunk_size):
            piece = piece if parts.device is None else piece.to(parts.device)
            values.append(_bound(parts, piece, samples, chunk_size, generator, bar).to(x.device))
    return torch.cat(values)


def _bound(
    parts: Model,
    x: Tensor,
    samples: int,
    chunk_size: int,
    generator: torch.Generator | None,
    bar: Any,
) -> Tensor:  # [B]
    q = parts.posterior(x)
    dtype, q, x = q.mu.dtype, q.to(torch.float64), x.double()
    total = x.new_full((len(x),), -math.inf)
    at_once = max(1, chunk_size // len(x))
    for start in range(0, samples, at_once):
        count = min(at_once, samples - start)
        # log q(z|x) - log p(z), where the constants cancel
        z, ratio = q.sample_and_ratio(samples=count, generator=generator)
        nll = parts.nll(x.expand(count, *x.shape).flatten(0, 1), z.flatten(0, 1).to(dtype))
        total = torch.logaddexp(total, torch.logsumexp(-ratio - nll.view(count, -1), 0))
        bar.update(count * len(x))
    return math.log(samples) - total


def _check_trained(model: Any) -> None:
    if not isinstance(model, VAE):
        return
    loss = model.loss
    if not model.family.stochastic:
        raise ValueError(
            "model must have a posterior with a density, got a deterministic encoder, whose codes "
            "bound no likelihood; compare its squared error"
        )
    if isinstance(loss, Likelihood):
        if not loss.proper:
            raise ValueError(
                f"model must have a decoder that is a distribution of x, got {loss.name!r}; "
                "compare its squared error"
            )
        return
    if loss.estimate != "mle":
        return
    variance = loss.running_variance
    if variance is None or not bool(variance.any()):
        raise ValueError(
            "model must have been trained: its loss has estimate='mle' and has seen no batch in "
            "training mode, so there is no variance to score with; train it, or load its weights"
        )
