"""What every network shares: the checks of its options and the ends of encoder and decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Output = Literal["sigmoid", "linear"]
VarianceHead = Literal["sample", "element"]

DecoderOutput = Tensor | tuple[Tensor, Tensor]
"""x_hat, or (x_hat, x_logvar) where the decoder also predicts its log-variance."""

# The encoder's standard deviation never falls below this, as in the two-stage code of Dai & Wipf.
MINIMUM_STD = 1e-6


class DecoderOptions(TypedDict, total=False):
    """The options that every network has.

    output: "sigmoid" (the default) for data in [0, 1]; "linear" otherwise, or where the loss
        applies the activation itself.
    variance_head: None; "sample" for one x_logvar per sample, [B] (learned iso-d), a linear layer
        on the decoder's last features, averaged over their positions; "element" for one per
        element, x's shape (learned diag-d), a second layer of the kind that makes x_hat, on the
        same features. The variance depends on z, never on x itself.
    initial_variance: 1.0 by default, the variance that the head returns before it is trained.
    """

    output: Output
    variance_head: VarianceHead | None
    initial_variance: float


class Encoder(nn.Module):
    """x [B, *sample_shape] -> (mu [B, d], logvar [B, d]), or (mu, logvar, extra [B, k]).

    Args:
        body: x to features [B, units].
        head: features to [B, 2 d]: mu, and what `spread` turns into logvar.
        spread: `softplus_logvar`, `log_std_logvar` or `same_logvar`.
    """

    def __init__(self, body: nn.Module, head: nn.Module, spread: Callable[[Tensor], Tensor]):
        super().__init__()
        self.body = body
        self.head = head
        self.spread = spread
        self.extra: nn.Linear | None = None

    def add_extra(self, outputs: int) -> None:
        """Return so many more numbers, linear in the features: what some posteriors need."""
        assert isinstance(self.head, nn.Linear)
        self.extra = nn.Linear(self.head.in_features, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.body(x)
        mu, raw = self.head(features).chunk(2, dim=1)
        if self.extra is None:
            return mu, self.spread(raw)
        return mu, self.spread(raw), self.extra(features)


class Decoder(nn.Module):
    """z [B, d] -> x_hat [B, *sample_shape], and x_logvar where a variance head was asked for.

    Args:
        sample_shape: of x.
        body: z to the features under the last layer, [B, units] or [B, units, H, W].
        make_head: makes that last layer, which returns as many numbers as x has; called a second
            time for the variance of each element.
        units: of the features.
        options: those of every network, see `DecoderOptions`.
    """

    def __init__(
        self,
        sample_shape: Sequence[int],
        body: nn.Module,
        make_head: Callable[[], nn.Linear | nn.Conv2d | nn.ConvTranspose2d],
        units: int,
        options: DecoderOptions,
    ):
        super().__init__()
        self.sample_shape = tuple(sample_shape)
        self.output = options.get("output", "sigmoid")
        self.variance_head = options.get("variance_head")
        self.body = body
        self.head = make_head()
        if self.variance_head is not None:
            self.x_logvar = nn.Linear(units, 1) if self.variance_head == "sample" else make_head()
            start_constant(self.x_logvar, math.log(options.get("initial_variance", 1.0)))

    def forward(self, z: Tensor) -> DecoderOutput:
        features = self.body(z)
        logits = self.head(features).reshape(-1, *self.sample_shape)
        x_hat = torch.sigmoid(logits) if self.output == "sigmoid" else logits
        if self.variance_head is None:
            return x_hat
        if self.variance_head == "element":
            return x_hat, self.x_logvar(features).reshape(-1, *self.sample_shape)
        pooled = features.flatten(2).mean(2) if features.dim() > 2 else features
        return x_hat, self.x_logvar(pooled).squeeze(1)


def check_options(sample_shape: Sequence[int], latent_dim: int, options: DecoderOptions) -> None:
    """Raise one clear ValueError for an option that no network accepts."""
    if not sample_shape or any(size < 1 for size in sample_shape):
        raise ValueError(
            f"sample_shape must hold at least one positive size, got {tuple(sample_shape)}; "
            "give the shape of one sample without the batch axis, e.g. (1, 28, 28)"
        )
    if latent_dim < 1:
        raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
    _choice("output", options.get("output", "sigmoid"), ("sigmoid", "linear"))
    _choice("variance_head", options.get("variance_head"), (None, "sample", "element"))
    initial_variance = options.get("initial_variance", 1.0)
    if not (initial_variance > 0 and math.isfinite(initial_variance)):
        raise ValueError(f"initial_variance must be positive and finite, got {initial_variance}")


def _choice(name: str, given: Any, known: Sequence[str | None]) -> None:
    if given not in known:
        *first, last = (f'"{each}"' if isinstance(each, str) else str(each) for each in known)
        raise ValueError(f"{name} must be {', '.join(first)} or {last}, got {given!r}")


def check_sides(network: str, sample_shape: Sequence[int], divisor: int) -> None:
    """Raise one clear ValueError for anything but images whose sides the divisor divides."""
    _check_image(
        f"network {network!r} needs sample_shape (C, H, W) with H and W divisible by {divisor}",
        sample_shape,
        lambda height, width: (-(-height // divisor) * divisor, -(-width // divisor) * divisor),
    )


def check_power_of_two(network: str, sample_shape: Sequence[int], least: int) -> None:
    """Raise one clear ValueError for anything but square images, their side a power of two."""

    def nearest(height: int, width: int) -> tuple[int, int]:
        side = max(2 ** (max(height, width) - 1).bit_length(), least)
        return side, side

    wanted = f"(C, H, H) with H a power of two, at least {least}"
    _check_image(f"network {network!r} needs sample_shape {wanted}", sample_shape, nearest)


def _check_image(
    wanted: str, sample_shape: Sequence[int], nearest: Callable[[int, int], tuple[int, int]]
) -> None:
    """`nearest` gives the sides that an image has to be padded to: its own where they are right."""
    shape = tuple(sample_shape)
    if len(shape) != 3:
        raise ValueError(f"{wanted}, got {shape}; use the network 'mlp'")
    height, width = nearest(shape[1], shape[2])
    if (height, width) != shape[1:]:
        resize = f" or resize (--image-size {height})" if height == width else ""
        raise ValueError(
            f"{wanted}, got {shape}; pad the images to {height} x {width}{resize}, "
            "or use the network 'mlp'"
        )


def softplus_logvar(raw: Tensor) -> Tensor:
    """logvar = 2 log(1e-6 + softplus(raw)): the encoder's log-variance of Dai & Wipf.

    A softplus grows linearly where an exponential would overflow, and the floor keeps the
    logarithm finite when softplus underflows to zero.
    """
    return 2.0 * torch.log(MINIMUM_STD + F.softplus(raw))


def log_std_logvar(raw: Tensor) -> Tensor:
    """logvar = 2 raw: the network returns log sigma."""
    return 2.0 * raw


def same_logvar(raw: Tensor) -> Tensor:
    """logvar = raw: the network returns log sigma^2."""
    return raw


def start_constant(head: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, value: float) -> None:
    """Make a head return `value` for every input until it is trained.

    A learned log-variance then starts exactly where the `variance` option says. The weights start
    at zero, which leaves their own gradient alone: it is the (non-zero) features that multiply it.
    """
    nn.init.zeros_(head.weight)
    assert head.bias is not None
    nn.init.constant_(head.bias, value)
