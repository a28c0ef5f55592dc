"""What the decoder makes of a code that is moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vaekern import _checks, functional
from vaekern.diagnostics._checks import check_samples
from vaekern.diagnostics._decode import CHUNK, decode
from vaekern.diagnostics._decoders import Decoder, check_decoder
from vaekern.diagnostics._exact import exact_evaluation
from vaekern.diagnostics.latents import encoder_variance_spectrum


class DirectionalVariance(NamedTuple):
    """Result of :func:`directional_variance`."""

    variance: Tensor  # [B, d] float64: of the decoded samples, mean over the data's dimensions
    eigenvalue: Tensor  # [B, d] float64: lambda_j of Sigma_z, ascending
    direction: Tensor  # [B, d, d] float64: column j is the unit vector of eigenvalue j
    images: Tensor | None  # [B, d, samples, ...]: what was decoded, if asked for


class LatentTraversals(NamedTuple):
    """Result of :func:`latent_traversals`."""

    images: Tensor  # [R, C, ...]: row r moves dimension[r] through the values
    dimension: Tensor  # [R] int64, by mean encoder variance, smallest first
    value: Tensor  # [C] of z_j, ascending
    variance: Tensor  # [R] float64: mean encoder variance of the dimension
    kl: Tensor  # [R] float64: mean KL of the dimension, nats


@torch.no_grad()
def directional_variance(
    decoder: Any,
    mu: Tensor,  # [B, d]
    logvar: Tensor | None = None,  # [B, d]
    *,
    scale_tril: Tensor | None = None,  # [B, d, d]
    samples: int = 15,
    scale: float = 1.0,
    draws: Literal["quantiles", "normal"] = "quantiles",
    generator: torch.Generator | None = None,
    return_images: bool = False,
) -> DirectionalVariance:
    r"""How much the decoded sample varies when its code moves along one direction.

    With the eigenvectors v_j and eigenvalues lambda_j of the encoder's covariance
    :math:`\Sigma_z(x) = \mathrm{diag}\,\exp(\mathrm{logvar})` or :math:`L L^\top`,

    .. math:: \mathrm{variance}_j = \frac{1}{D} \sum_{i=1}^D \mathrm{Var}_k\;
        \hat x_i(\mu + a_k v_j)

    A converged model has lambda_j near 0 or near 1. Near 0 the direction is used and its variance
    is large; near 1 the decoder ignores it and the variance is 0.

    The n = ``samples`` offsets a_k are the same for all directions, and are shifted and scaled to
    mean 0 and variance ``scale``^2 exactly (divisor n). So a linear decoder W gives
    :math:`\mathrm{scale}^2 |W v_j|^2 / D` with no sampling error.

    Args:
        decoder: a model with ``decode`` (such as a VAE), a module or a function of z. Modules are
            put in evaluation mode meanwhile. At most 512 codes are decoded at once, or
            ``samples`` where that is more.
        mu: [B, d] encoder means of B inputs.
        logvar: [B, d] encoder log-variances, log sigma^2: the directions are the axes.
        scale_tril: [B, d, d] lower triangular L, in the place of logvar.
        samples: offsets for each direction; the paper shows 15.
        scale: standard deviation of the offsets; 1 is the prior's.
        draws: ``"quantiles"``, evenly spread and ascending, or ``"normal"``, at random.
        generator: makes ``"normal"`` reproducible; on the device of mu.
        return_images: also return what was decoded.

    Returns:
        Variances [B, d] in squared units of the data, the eigenvalues beside them ascending, the
        directions [B, d, d], and [B, d, samples, ...] decoded samples or None.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, neither or both of logvar
            and scale_tril, fewer than 2 samples, or a scale that is not positive.
        TypeError: an argument that is no floating-point tensor.

    Example:
        >>> columns = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
        >>> result = directional_variance(
        ...     lambda z: z @ columns.T, torch.zeros(1, 2), torch.tensor([[-6.0, -2.0]])
        ... )
        >>> [[round(float(v), 4) for v in row] for row in result.variance]  # 9 / 3 and 1 / 3
        [[3.0, 0.3333]]

    Source: Dai and Wipf 2019, "Diagnosing and enhancing VAE models", figure 2 and appendix C; the
    scale of their noise is not given.
    """
    check_samples("mu", mu)
    _checks.floating(mu=mu, logvar=logvar, scale_tril=scale_tril)
    _checks.latent(mu, logvar, scale_tril)
    _checks.finite(logvar=logvar, scale_tril=scale_tril)
    _checks.option("draws", draws, ("quantiles", "normal"))
    _checks.positive("scale", scale, "1 is the prior's standard deviation")
    if samples < 2:
        raise ValueError(f"samples must be at least 2 to have a variance, got {samples}")
    checked, mu = check_decoder(decoder, mu, "mean")
    eigenvalue, direction = _eigen(logvar, scale_tril)
    offsets = scale * _offsets(samples, draws, mu.device, generator)

    batch, d = mu.shape
    steps = direction.mT.reshape(batch * d, d)  # row b d + j is v_j of input b
    variance, images = [], []
    for rows in torch.arange(batch * d, device=mu.device).split(max(1, CHUNK // samples)):
        moved = mu.double()[rows // d, None] + offsets[:, None] * steps[rows, None]
        x = _decode(checked, moved.flatten(0, 1).to(mu.dtype), max(CHUNK, samples))
        x = x.unflatten(0, (len(rows), samples))
        variance.append(x.double().flatten(2).var(1, correction=0).mean(1))
        if return_images:
            images.append(x)
    return DirectionalVariance(
        torch.cat(variance).view(batch, d),
        eigenvalue,
        direction,
        torch.cat(images).unflatten(0, (batch, d)) if return_images else None,
    )


@torch.no_grad()
def perturbed_codes(
    decoder: Any,
    mu: Tensor,  # [N, d]
    variances: Sequence[float] = (0.001, 0.01, 0.1, 1.0),
    *,
    samples: int = 8,
    generator: torch.Generator | None = None,
) -> Tensor:  # [S, N, K, ...]
    r"""Decoded neighbours of codes, at several distances.

    .. math:: \hat x(\mu_n + s\, \epsilon_{nk}), \qquad \epsilon_{nk} \sim N(0, I)

    The same draws serve every s^2, so that only the distance tells the results apart. A smooth
    decoder keeps to the original longer.

    Args:
        decoder: a model with ``decode`` (such as a VAE), a module or a function of z. Modules are
            put in evaluation mode meanwhile. At most 512 codes are decoded at once.
        mu: [N, d] encoder means.
        variances: S values of s^2; 0 decodes mu itself.
        samples: K draws for each code.
        generator: makes them reproducible; on the device of mu.

    Returns:
        [S, N, K, ...] decoded samples.

    Raises:
        ValueError: a shape other than [N, d], values that are not finite, a variance that is
            negative or not finite, no variance, or no draws.
        TypeError: mu is no floating-point tensor.

    Example:
        >>> images = perturbed_codes(lambda z: 2 * z, torch.ones(3, 2), (0.0, 1.0), samples=4)
        >>> images.shape, images[0].unique().tolist()
        (torch.Size([2, 3, 4, 2]), [2.0])

    Source: Takida et al. 2022, "Preventing oversmoothing in VAE via generalized variance
    parameterization", appendix D.2, figure D.3.
    """
    check_samples("mu", mu)
    if not variances or not all(0 <= v < math.inf for v in variances):
        raise ValueError(
            f"variances must be one or more values of s^2, finite and not negative, got "
            f"{variances!r}; e.g. (0.01, 0.1)"
        )
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    checked, mu = check_decoder(decoder, mu, "mean")
    noise = torch.randn(
        len(mu), samples, mu.shape[1], generator=generator, device=mu.device, dtype=mu.dtype
    )
    return torch.stack(
        [_decode(checked, (mu[:, None] + math.sqrt(v) * noise).flatten(0, 1)) for v in variances]
    ).unflatten(1, (len(mu), samples))


@torch.no_grad()
def latent_traversals(
    decoder: Any,
    mu: Tensor,  # [N, d]
    logvar: Tensor,  # [N, d]
    *,
    code: Tensor | None = None,  # [d]
    rows: int = 12,
    reach: float = 3.0,
    steps: int = 11,
) -> LatentTraversals:
    r"""Decode a code with one latent dimension after the other moved through the prior's range.

    Row r decodes ``code`` with z_j, j = dimension[r], replaced by ``steps`` evenly spaced values
    from -reach to reach. Rows are sorted by :math:`\mathrm{E}_x\, \sigma_j^2(x)`, smallest first,
    so the dimensions that carry information come first; beside it stands
    :math:`\mathrm{KL}_j = \tfrac12 \mathrm{E}_x (\mu_j^2 + \sigma_j^2 - \log \sigma_j^2 - 1)`.

    Args:
        decoder: a model with ``decode`` (such as a VAE), a module or a function of z. Modules are
            put in evaluation mode meanwhile. At most 512 codes are decoded at once.
        mu: [N, d] encoder means over a data set.
        logvar: [N, d] encoder log-variances, log sigma^2.
        code: [d] the code to start from; by default 0, the prior's mean.
        rows: at most this many dimensions.
        reach: largest value of z_j; the prior's standard deviation is 1.
        steps: values of z_j; an odd number passes through 0.

    Returns:
        The decoded samples [R, C, ...], the dimension of each row, the values of z_j, and mean
        encoder variance and KL (nats) of each row, float64.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, no rows, a reach that is not
            positive, or fewer than 2 steps.
        TypeError: an argument that is no floating-point tensor.

    Example:
        >>> mu, logvar = torch.zeros(5, 2), torch.tensor([[0.0, -4.0]]).expand(5, 2)
        >>> result = latent_traversals(lambda z: z, mu, logvar, steps=3)
        >>> result.dimension.tolist(), result.images[0].tolist()
        ([1, 0], [[0.0, -3.0], [0.0, 0.0], [0.0, 3.0]])
    """
    check_samples("mu", mu)
    check_samples("logvar", logvar, beside=("mu", mu))
    _checks.latent(mu, logvar, None)
    d = mu.shape[1]
    if code is None:
        code = mu.new_zeros(d)
    elif code.shape != (d,):
        raise ValueError(
            f"code must be one latent code [{d}], got {list(code.shape)}; pass one row of mu"
        )
    check_samples("code", code[None], beside=("mu", mu))
    _checks.positive("reach", reach, "3 covers the prior")
    if rows < 1 or steps < 2:
        raise ValueError(f"rows must be at least 1 and steps at least 2, got {rows} and {steps}")
    checked, code = check_decoder(decoder, code[None], "mean")
    spectrum = encoder_variance_spectrum(logvar)
    dimension = spectrum.order[:rows]
    kl = functional.gaussian_kl(mu.double(), logvar.double(), reduction="dims")
    # linspace would miss the 0 in the middle by its rounding
    place = torch.arange(1 - steps, steps, 2, dtype=torch.float64, device=mu.device)
    value = reach * place / (steps - 1)
    z = code.repeat(len(dimension), steps, 1)
    z[torch.arange(len(dimension), device=z.device), :, dimension] = value.to(z.dtype)
    images = _decode(checked, z.flatten(0, 1)).unflatten(0, (len(dimension), steps))
    return LatentTraversals(
        images, dimension, value, spectrum.variance[: len(dimension)], kl[dimension]
    )


def _decode(decoder: Decoder, z: Tensor, chunk: int = CHUNK) -> Tensor:
    with exact_evaluation(decoder.module, z.device):
        return decode(decoder.function, z, chunk=chunk)


def _eigen(logvar: Tensor | None, scale_tril: Tensor | None) -> tuple[Tensor, Tensor]:
    """Eigenvalues of Sigma_z ascending [B, d], and its eigenvectors as columns [B, d, d]."""
    if logvar is not None:
        eigenvalue, order = logvar.double().exp().sort(1)
        return eigenvalue, torch.nn.functional.one_hot(order, order.shape[1]).mT.double()
    assert scale_tril is not None  # _checks.latent admits exactly one of the two
    # of L and not of L L^T, whose small eigenvalues would drown in the rounding of large ones
    vectors, values, _ = torch.linalg.svd(scale_tril.double().tril())
    return values.flip(1) ** 2, vectors.flip(2)


def _offsets(
    count: int, draws: str, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Standard normal offsets [count] with mean 0 and variance 1 exactly."""
    if draws == "normal":
        values = torch.randn(count, dtype=torch.float64, device=device, generator=generator)
    else:
        middle = (torch.arange(count, dtype=torch.float64, device=device) + 0.5) / count
        values = torch.special.ndtri(middle)
    return (values - values.mean()) / values.std(correction=0)
