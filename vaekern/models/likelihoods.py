"""Decoders that are not Gaussian: losses with the call of `vaekern.GaussianVAELoss`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaekern import functional, joined
from vaekern.functional import LossComponents

# Up to here the mean of a pixel adds up its levels; of more it is an integral.
SUMMED_LEVELS = 32
# Of a level's step: what rounding to float32 may move a pixel by.
OFF_LEVEL = 1e-3


def share_of_batch(
    batch: int, like: Tensor, *, training: bool, process_group: Any = None
) -> Tensor | float:
    """What the mean over this process's samples is multiplied by, in training.

    The mean over the processes of the products is then the mean over the joined batch, also where
    its parts are uneven or empty: W B / N, as in `vaekern.GaussianVAELoss`.
    """
    group = functional.world(process_group) if training else None
    if group is None:
        return 1.0
    count = torch.tensor([0.0, batch], dtype=torch.float64, device=like.device)
    return joined.samples_share(joined.join(count, group), batch).to(like.dtype)


class Likelihood(nn.Module):
    """-log p(x|z) + beta KL for a decoder whose p(x|z) is no Gaussian with a variance.

    The call is that of `vaekern.GaussianVAELoss`, reduced as "batchmean".

    Args:
        beta: weight of the KL; a call may override it.
        logvar_clamp: (lo, hi) for the encoder's logvar.
        process_group: as for `vaekern.GaussianVAELoss`.
    """

    #: As a recipe names it.
    name: str
    #: Whether exp(-nll) is a distribution of x, so that values can be compared as likelihoods.
    proper = True
    #: Whether it is a probability of x's grey levels, no density of a number.
    discrete = False
    nats = True
    reduction = "batchmean"
    activation: str | None = None

    def __init__(
        self,
        *,
        beta: float = 1.0,
        logvar_clamp: tuple[float, float] | None = None,
        process_group: Any = None,
    ):
        super().__init__()
        self.beta = beta
        self.logvar_clamp = logvar_clamp
        self.process_group = process_group

    def nll(self, output: Tensor, x: Tensor) -> Tensor:
        """-log p(x|z) [..., B] in nats, for the decoder's output [..., B, *outputs] and x."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """E[x|z] [..., B, *sample_shape]."""
        raise NotImplementedError

    def output_shape(self, sample_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the decoder's output for one sample."""
        return tuple(sample_shape)

    def check_data(
        self, sample_shape: Sequence[int], value_range: tuple[float, float] | None
    ) -> None:
        """Raise one clear ValueError for data that this likelihood has no word for."""

    def check_pixels(self, x: Tensor) -> None:
        """The same for the values themselves, x [N, *sample_shape]."""

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        clamp = self.logvar_clamp
        return {"beta": self.beta, "logvar_clamp": None if clamp is None else list(clamp)}

    def forward(self, *args: Any, **options: Any) -> Tensor:
        """`components(...).loss`."""
        return self.components(*args, **options).loss

    def components(
        self,
        x_hat: Tensor,
        x: Tensor,
        mu: Tensor,
        logvar: Tensor | None = None,
        *,
        x_logvar: Tensor | None = None,
        scale_tril: Tensor | None = None,
        beta: float | Tensor | None = None,
        per_dim: bool = True,
    ) -> LossComponents:
        """The fields of `vaekern.GaussianVAELoss.components`; x_logvar is NaN, for there is none.

        Args:
            x_hat: the decoder's output, [B, ...] or [L, B, ...].
            x, mu, logvar, scale_tril, beta, per_dim: as there.
            x_logvar: None.

        Raises:
            ValueError: an x_logvar, or an x_hat that does not fit.
        """
        wanted = (len(x), *self.output_shape(x.shape[1:]))
        if x_hat.shape[-len(wanted) :] != wanted or x_hat.dim() > len(wanted) + 1:
            raise ValueError(
                f"x_hat must be {list(wanted)}, with one more axis in front for several draws of z,"
                f" got {list(x_hat.shape)}; give the decoder the output shape "
                f"{self.output_shape(x.shape[1:])}"
            )
        if x_logvar is not None:
            raise ValueError(
                f"x_logvar must be left out, got {list(x_logvar.shape)}, since the likelihood "
                f"{self.name!r} has no variance; use a decoder that returns one tensor"
            )
        wide = torch.promote_types(x_hat.dtype, torch.float32)
        x_hat, x = x_hat.to(wide), x.to(wide)
        share = share_of_batch(
            len(x), x_hat, training=self.training, process_group=self.process_group
        )
        count = max(len(x), 1)
        nll = self.nll(x_hat, x)
        reconstruction = (nll.mean(0) if nll.dim() > 1 else nll).sum() / count * share
        if scale_tril is None:
            assert logvar is not None
            parts = functional.gaussian_kl(mu, logvar, reduction="dims") * share
        else:
            parts = functional.full_gaussian_kl(mu, scale_tril, reduction="dims") * share
        kl = parts.sum()
        weight = self.beta if beta is None else beta
        with torch.no_grad():
            squares = (self.mean(x_hat) - x).square().flatten(x_hat.dim() - x.dim() + 1).sum(-1)
            mse = (squares.mean(0) if squares.dim() > 1 else squares).sum() / count * share
        return LossComponents(
            reconstruction + weight * kl,
            reconstruction.detach(),
            kl.detach(),
            parts.detach() if per_dim else parts.new_empty(0),
            x.new_full((1,), math.nan),
            mse,
        )


class Bernoulli(Likelihood):
    r"""Cross-entropy of pixels between 0 and 1, which need not be binary.

    .. math:: -\sum_i \big[ x_i \log \hat x_i + (1 - x_i) \log(1 - \hat x_i) \big],
              \quad \hat x = \mathrm{sigmoid}(\text{output})

    For pixels that are not binary this is no likelihood: it does not integrate to one over x.

    Example:
        >>> loss = Bernoulli()
        >>> mu = logvar = torch.zeros(1, 2)
        >>> round(float(loss(torch.zeros(1, 4), torch.rand(1, 4), mu, logvar)), 4)  # 4 log 2
        2.7726

    Source: Dai & Wipf 2019, table 1 (cross-entropy) and its code; Takida et al. 2022, table 4.
    """

    name = "bernoulli"
    proper = False
    activation = "sigmoid"

    def nll(self, output: Tensor, x: Tensor) -> Tensor:
        # softplus(l) - x l is that cross-entropy in terms of the logit, for any x.
        each = F.softplus(output) - x * output
        return each.flatten(output.dim() - x.dim() + 1).sum(-1)

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)

    def check_data(
        self, sample_shape: Sequence[int], value_range: tuple[float, float] | None
    ) -> None:
        if value_range != (0.0, 1.0):
            raise ValueError(
                "likelihood 'bernoulli' (cross-entropy) needs images with values between 0 and 1, "
                "got vectors of any value; choose a Gaussian preset such as mle-iso-i"
            )

    def check_pixels(self, x: Tensor) -> None:
        low, high = x.aminmax()
        if low < 0 or high > 1:
            raise ValueError(
                "likelihood 'bernoulli' (cross-entropy) needs pixels between 0 and 1, got "
                f"{low:.3g} to {high:.3g}, where it has no lower bound; choose a Gaussian preset "
                "such as mle-iso-i"
            )


class SquaredError(Likelihood):
    r"""The squared error of autoencoders, summed over a sample: no likelihood, and no nats.

    .. math:: \|x - \hat x\|^2

    which is the negative log-likelihood of a Gaussian with variance 1/2 without its constant.

    Args:
        activation: None, "sigmoid" or "tanh", applied to the decoder's output.

    Example:
        >>> loss = SquaredError()
        >>> mu = logvar = torch.zeros(1, 2)
        >>> float(loss(torch.full((1, 4), 3.0), torch.ones(1, 4), mu, logvar))
        16.0

    Source: Ghosh et al. 2020, From Variational to Deterministic Autoencoders, equation 5.
    """

    name = "squared-error"
    proper = nats = False

    def __init__(self, *, activation: str | None = None, **options: Any):
        super().__init__(**options)
        self.activation = activation

    def nll(self, output: Tensor, x: Tensor) -> Tensor:
        return (self.mean(output) - x).square().flatten(output.dim() - x.dim() + 1).sum(-1)

    def mean(self, output: Tensor) -> Tensor:
        if self.activation is None:
            return output
        return torch.sigmoid(output) if self.activation == "sigmoid" else torch.tanh(output)

    def options(self) -> dict[str, Any]:
        return super().options() | {"activation": self.activation}


class LogisticMixture(Likelihood):
    r"""A mixture of discretised logistic distributions for each pixel.

    A pixel x in [0, 1] is one of `levels` equally spaced values, each the middle of a bin; with
    y = 2 x - 1 and the half-width h = 1 / (levels - 1) of a bin,

    .. math:: P(x) = \sum_k \pi_k \Big[ \sigma\Big(\frac{y + h - m_k}{s_k}\Big)
                      - \sigma\Big(\frac{y - h - m_k}{s_k}\Big) \Big]

    where the lowest bin reaches down to -inf and the highest up to inf. In colour images the three
    channels share k, and m_k of green and blue moves with the channels before it: by c_0 red, and
    by c_1 red + c_2 green, |c| < 1.

    `mean` is E[x|z]; in colour images it takes green and blue of a component at the mean of the
    channels before them, as its edges make them depend on more than that.

    The decoder returns, for each pixel, the components' log pi_k up to a constant, then for each
    channel their m_k and log s_k, then for colour images the three c before their tanh.

    Args:
        components: how many.
        levels: 256 for 8-bit images; `grey_levels` counts them.

    Example:
        >>> loss = LogisticMixture(components=2)
        >>> loss.output_shape((1, 8, 8)), loss.output_shape((3, 8, 8))
        ((6, 8, 8), (20, 8, 8))

    Source: Salimans et al. 2017, PixelCNN++, section 2.1 and equations 2 and 3; Takida et al. 2022,
    table 4. The code of the former replaces bins of mass below 1e-5 by the density in the middle;
    here log(sigma(a) - sigma(b)) = log sigma(a) + log sigma(-b) + log(1 - exp(b - a)) is exact.
    """

    name = "logistic-mixture"
    discrete = True

    def __init__(self, *, components: int = 10, levels: int = 256, **options: Any):
        super().__init__(**options)
        if components < 1:
            raise ValueError(f"mixture_components must be at least 1, got {components}")
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.mixture_components = components
        self.levels = levels

    def options(self) -> dict[str, Any]:
        return super().options() | {"components": self.mixture_components, "levels": self.levels}

    def output_shape(self, sample_shape: Sequence[int]) -> tuple[int, ...]:
        channels, *sides = sample_shape
        numbers = 1 + 2 * channels + (3 if channels == 3 else 0)
        return (numbers * self.mixture_components, *sides)

    def check_data(
        self, sample_shape: Sequence[int], value_range: tuple[float, float] | None
    ) -> None:
        if value_range != (0.0, 1.0) or len(sample_shape) != 3 or sample_shape[0] not in (1, 3):
            raise ValueError(
                "likelihood 'logistic-mixture' needs grey or colour images with values between 0 "
                f"and 1, got samples of {tuple(sample_shape)}; choose a Gaussian preset such as "
                "mle-iso-i"
            )

    def check_pixels(self, x: Tensor) -> None:
        wrong = x[(_off_levels(x, self.levels) > OFF_LEVEL) | (x < 0) | (x > 1)]
        if len(wrong):
            raise ValueError(
                f"likelihood 'logistic-mixture' needs pixels that are one of {self.levels} levels "
                f"0, 1/{self.levels - 1}, ..., 1, got {float(wrong[0]):.4g}; "
                "give --levels as the images have them (2 to 256 are found by themselves), or "
                "choose a Gaussian preset such as mle-iso-i"
            )

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """log pi [..., K, H, W]; m and log s [..., C, K, H, W]; c [..., 3, K, H, W]."""
        per_pixel = output.unflatten(-3, (-1, self.mixture_components))  # [..., P, K, H, W]
        channels = (per_pixel.shape[-4] - 1) // 2
        channels = 3 if channels > 3 else channels  # 1 + 2 C, and 3 more where C = 3
        log_weight = torch.log_softmax(per_pixel[..., 0, :, :, :], dim=-3)
        m = per_pixel[..., 1 : 1 + channels, :, :, :]
        # At a scale of e^-7 a bin holds all of the mass around it: narrower ones cannot do better.
        log_s = per_pixel[..., 1 + channels : 1 + 2 * channels, :, :, :].clamp(min=-7.0)
        if channels == 1:
            return log_weight, m, log_s, None
        return log_weight, m, log_s, torch.tanh(per_pixel[..., 1 + 2 * channels :, :, :, :])

    def nll(self, output: Tensor, x: Tensor) -> Tensor:
        log_weight, m, log_s, c = self._split(output)
        y = (2.0 * x - 1.0).unsqueeze(-3)  # [B, C, 1, H, W]
        if c is not None:
            m = torch.stack([*_moved(m, c, y[:, 0], y[:, 1])], dim=-4)
        h = 1.0 / (self.levels - 1)
        scale = torch.exp(-log_s)
        above, below = (y + h - m) * scale, (y - h - m) * scale
        inner = (
            F.logsigmoid(above)
            + F.logsigmoid(-below)
            # log(1 - e^-w) for the bin's width w > 0 in units of s
            + torch.log(-torch.expm1(-2.0 * h * scale))
        )
        log_mass = torch.where(
            y < -1.0 + 0.5 * h,
            F.logsigmoid(above),
            torch.where(y > 1.0 - 0.5 * h, F.logsigmoid(-below), inner),
        )
        per_pixel = torch.logsumexp(log_weight + log_mass.sum(-4), dim=-3)  # [..., H, W]
        return -per_pixel.flatten(-2).sum(-1)

    def mean(self, output: Tensor) -> Tensor:
        log_weight, m, log_s, c = self._split(output)
        if c is None:
            y = self._level(m, log_s)
        else:
            s_red, s_green, s_blue = log_s.unbind(-4)
            red = self._level(m[..., 0, :, :, :], s_red)
            green = self._level(_moved(m, c, red, red)[1], s_green)
            blue = self._level(_moved(m, c, red, green)[2], s_blue)
            y = torch.stack([red, green, blue], dim=-4)
        return (0.5 * ((log_weight.exp().unsqueeze(-4) * y).sum(-3) + 1.0)).clamp(0.0, 1.0)

    def _level(self, m: Tensor, log_s: Tensor) -> Tensor:
        """E[y] of components, the mass beyond the ends at the ends.

        With the bins' edges e_j it is -1 + 2 h sum_j sigmoid((m - e_j) / s), each term the mass
        above an edge. Many levels make the sum an integral,

            -1 + s [softplus((m + 1) / s) - softplus((m - 1) / s)],

        which is off by less than half a level, where s is far below one.
        """
        scale, h = torch.exp(-log_s), 1.0 / (self.levels - 1)
        if self.levels > SUMMED_LEVELS:
            return (F.softplus((m + 1.0) * scale) - F.softplus((m - 1.0) * scale)) / scale - 1.0
        y = torch.full_like(m, -1.0)
        for j in range(1, self.levels):
            y = y + 2.0 * h * torch.sigmoid((m - (2 * j - 1) * h + 1.0) * scale)
        return y


def _moved(m: Tensor, c: Tensor, red: Tensor, green: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The m_k of red, green and blue, the channels before them given."""
    first, second, third = m.unbind(-4)
    to_green, to_blue, across = c.unbind(-4)
    return first, second + to_green * red, third + to_blue * red + across * green


def _off_levels(x: Tensor, levels: int) -> Tensor:
    """How far each pixel is from the nearest of so many equal levels, as a share of their step."""
    places = x.double() * (levels - 1)
    return (places - places.round()).abs()


def grey_levels(x: Tensor) -> int:
    """The least number of equal steps from 0 to 1 that every pixel is on; 256 where none fits.

    Example:
        >>> grey_levels(torch.arange(17) / 16), grey_levels(torch.tensor([0.0, 1.0]))
        (17, 2)
    """
    values = torch.unique(x)
    for levels in range(2, 256):
        if float(_off_levels(values, levels).max()) <= OFF_LEVEL:
            return levels
    return 256


#: Every likelihood but the Gaussian one, which is `vaekern.GaussianVAELoss`; a new one is a row
#: here and a name in `vaekern.models.config.LikelihoodKind`.
LIKELIHOODS: dict[str, type[Likelihood]] = {
    each.name: each for each in (Bernoulli, LogisticMixture, SquaredError)
}
