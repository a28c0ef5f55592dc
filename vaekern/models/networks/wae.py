"""The network of Wasserstein autoencoders, in its authors' form and in that of Dai & Wipf."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Unpack

from torch import Tensor, nn

from vaekern.models.networks.heads import (
    Decoder,
    DecoderOptions,
    Encoder,
    check_options,
    check_sides,
    log_std_logvar,
    same_logvar,
)
from vaekern.models.networks.layers import (
    convolution,
    stack,
    start_glorot,
    start_narrow,
    transposed,
)

Form = Literal["dai-wipf", "tolstikhin"]

WIDTHS = (128, 256, 512, 1024)
KERNEL = 5


class _Form(NamedTuple):
    row: str  # of `NETWORKS`
    first_stride: int  # of the encoder's four convolutions; the others have 2
    spread: Callable[[Tensor], Tensor]
    start: Callable[[nn.Module], None]
    momentum: float  # of batch norm: one minus TensorFlow's decay


FORMS: dict[str, _Form] = {
    "dai-wipf": _Form("wae", 1, log_std_logvar, start_glorot, 1e-3),
    "tolstikhin": _Form("wae-original", 2, same_logvar, start_narrow, 0.1),
}


def wae(
    sample_shape: Sequence[int],
    latent_dim: int,
    *,
    form: Form = "dai-wipf",
    **options: Unpack[DecoderOptions],
) -> tuple[Encoder, Decoder]:
    """The 5x5 convolutional network of Wasserstein autoencoders, for 64x64 images.

    Encoder: 5x5 convolutions to 128, 256, 512 and 1024 channels, each with batch norm and ReLU;
    linear 2d: mu, and the log standard deviation ("dai-wipf") or log variance ("tolstikhin").
    Decoder: linear 1024 (H/8) (W/8), ReLU; 5x5 transposed convolutions with stride 2 to 512, 256
    and 128 channels, each with batch norm and ReLU; 5x5 transposed convolution to C channels;
    sigmoid.

    The two forms are not the same network, although the two-stage paper calls them so:

    - "tolstikhin", of the original code: four convolutions of stride 2, so that the encoder ends at
      4x4 for 64x64 pixels. Weights start from N(0, 0.01^2), batch norm has momentum 0.1. There the
      encoder is deterministic; a VAE's has the second head.
    - "dai-wipf", of the two-stage code: the first convolution has stride 1, so that the encoder
      ends at 8x8. Glorot-uniform weights, batch norm with momentum 0.001.

    For 3x64x64 and d = 64 that is 25,607,296 parameters in the encoder of "dai-wipf", 19,315,840
    in that of "tolstikhin", and 21,475,331 in either decoder.

    Args:
        sample_shape: (C, H, W) with H and W divisible by eight, by sixteen for "tolstikhin".
        latent_dim: d, the number of latent dimensions (both papers: 64).
        form: "dai-wipf" or "tolstikhin".
        **options: see `DecoderOptions`.

    Returns:
        (encoder, decoder).

    Raises:
        ValueError: a shape that does not fit, or an option outside its range.

    Example:
        >>> import torch
        >>> encoder, decoder = wae((3, 16, 16), 8)
        >>> mu, logvar = encoder(torch.rand(2, 3, 16, 16))
        >>> decoder(mu).shape
        torch.Size([2, 3, 16, 16])

    Source:
        Tolstikhin et al. 2018, Wasserstein Auto-Encoders, and its code (dcgan); Dai & Wipf 2019,
        Diagnosing and Enhancing VAE Models, table 3, and its code.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    check_options(sample_shape, latent_dim, options)
    row, first_stride, spread, start, momentum = FORMS[form]
    reduced = 8 * first_stride
    check_sides(row, sample_shape, reduced)
    channels, height, width = sample_shape
    strides = (first_stride, 2, 2, 2)
    convolutions = [
        convolution(old, new, KERNEL, stride)
        for (old, new), stride in zip(itertools.pairwise((channels, *WIDTHS)), strides, strict=True)
    ]
    encoder = Encoder(
        nn.Sequential(stack(convolutions, [True] * 4, momentum), nn.Flatten()),
        nn.Linear(WIDTHS[-1] * (height // reduced) * (width // reduced), 2 * latent_dim),
        spread,
    ).apply(start)
    units = WIDTHS[-1] * (height // 8) * (width // 8)
    ups = [transposed(old, new, KERNEL, 2) for old, new in itertools.pairwise(WIDTHS[::-1])]
    decoder = Decoder(
        sample_shape,
        nn.Sequential(
            nn.Linear(latent_dim, units),
            nn.ReLU(),
            nn.Unflatten(1, (WIDTHS[-1], height // 8, width // 8)),
            stack(ups, [True] * 3, momentum),
        ).apply(start),
        lambda: transposed(WIDTHS[0], channels, KERNEL).apply(start),
        WIDTHS[0],
        options,
    )
    return encoder, decoder
