"""The networks of Takida et al., for MNIST and for faces."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Unpack

from torch import nn

from vaekern.models.networks.heads import (
    Decoder,
    DecoderOptions,
    Encoder,
    check_options,
    check_sides,
    same_logvar,
)
from vaekern.models.networks.layers import convolution, stack, transposed

WIDTH = 1024
FACE_WIDTHS = (128, 256, 512, 1024)


def takida_mnist(
    sample_shape: Sequence[int],
    latent_dim: int,
    *,
    kernel: int = 5,
    batch_norm: bool = True,
    **options: Unpack[DecoderOptions],
) -> tuple[Encoder, Decoder]:
    """The MNIST networks of Takida et al.: appendix I.1, and D.1 without batch norm.

    Encoder: convolutions with stride 2 to 64 and 128 channels, each with ReLU; linear 1024, batch
    norm, ReLU; linear 2d: mu and logvar. Decoder: linear 1024 and linear 128 (H/4) (W/4), each with
    batch norm and ReLU; transposed convolution with stride 2 to 64 channels, batch norm, ReLU; the
    same to C channels; sigmoid. Weights start as torch's do.

    D.1, "takida-smoothness" in `networks.NETWORKS`, has 4x4 kernels and no batch norm. The paper
    prints 5x5 for I.1 and says that batch norm is its only difference from D.1: the number is
    taken. It prints FC_16 as the last layer of D.1's encoder while its tables use d = 8.

    Args:
        sample_shape: (C, H, W) with H and W divisible by four.
        latent_dim: d (the paper: 16, in D.1 8).
        kernel: side of all convolutions.
        batch_norm: False leaves it out.
        **options: see `DecoderOptions`.

    Returns:
        (encoder, decoder).

    Raises:
        ValueError: a shape that does not fit, or an option outside its range.

    Example:
        >>> import torch
        >>> encoder, decoder = takida_mnist((1, 28, 28), 16)
        >>> mu, logvar = encoder(torch.rand(2, 1, 28, 28))
        >>> decoder(mu).shape
        torch.Size([2, 1, 28, 28])

    Source:
        Takida et al. 2022, Preventing Oversmoothing in VAE via Generalized Variance
        Parameterization, appendices D.1 and I.1.
    """
    check_options(sample_shape, latent_dim, options)
    if kernel < 2:
        raise ValueError(f"kernel must be at least 2, the convolutions' stride, got {kernel}")
    check_sides("takida-mnist" if batch_norm else "takida-smoothness", sample_shape, 4)
    channels, height, width = sample_shape
    features = 128 * (height // 4) * (width // 4)
    encoder = Encoder(
        nn.Sequential(
            stack(
                [convolution(channels, 64, kernel, 2), convolution(64, 128, kernel, 2)],
                norm=[False, False],
            ),
            nn.Flatten(),
            stack([nn.Linear(features, WIDTH)], norm=[batch_norm]),
        ),
        nn.Linear(WIDTH, 2 * latent_dim),
        same_logvar,
    )
    decoder = Decoder(
        sample_shape,
        nn.Sequential(
            stack(
                [nn.Linear(latent_dim, WIDTH), nn.Linear(WIDTH, features)], norm=[batch_norm] * 2
            ),
            nn.Unflatten(1, (128, height // 4, width // 4)),
            stack([transposed(128, 64, kernel, 2)], norm=[batch_norm]),
        ),
        lambda: transposed(64, channels, kernel, 2),
        64,
        options,
    )
    return encoder, decoder


def takida_faces(
    sample_shape: Sequence[int], latent_dim: int, **options: Unpack[DecoderOptions]
) -> tuple[Encoder, Decoder]:
    """The CelebA network of Takida et al. (64x64, appendix I.2), and CelebA-HQ's (128x128, I.3).

    Encoder: 5x5 convolutions with stride 2 to 128, 256, 512 and 1024 channels, each with ReLU and
    all but the first with batch norm; linear 2d: mu and logvar. Decoder: linear 1024 (H/8) (W/8),
    without activation; 5x5 transposed convolutions with stride 2 to 512, 256 and 128 channels, each
    with ReLU and all but the first with batch norm; 5x5 transposed convolution to C channels;
    sigmoid. Weights start as torch's do.

    Args:
        sample_shape: (C, H, W) with H and W divisible by sixteen. I.3 prints 64x64 as its input,
            but the sizes of its layers are those of 128x128.
        latent_dim: d (the paper: 64, for CelebA-HQ 256).
        **options: see `DecoderOptions`.

    Returns:
        (encoder, decoder).

    Raises:
        ValueError: a shape that does not fit, or an option outside its range.

    Example:
        >>> import torch
        >>> encoder, decoder = takida_faces((3, 16, 16), 8)
        >>> mu, logvar = encoder(torch.rand(2, 3, 16, 16))
        >>> decoder(mu).shape
        torch.Size([2, 3, 16, 16])

    Source:
        Takida et al. 2022, Preventing Oversmoothing in VAE via Generalized Variance
        Parameterization, appendices I.2 and I.3.
    """
    check_options(sample_shape, latent_dim, options)
    check_sides("takida-faces", sample_shape, 16)
    channels, height, width = sample_shape
    last = FACE_WIDTHS[-1]
    downs = [convolution(a, b, 5, 2) for a, b in itertools.pairwise((channels, *FACE_WIDTHS))]
    encoder = Encoder(
        nn.Sequential(stack(downs, norm=[False, True, True, True]), nn.Flatten()),
        nn.Linear(last * (height // 16) * (width // 16), 2 * latent_dim),
        same_logvar,
    )
    ups = [transposed(a, b, 5, 2) for a, b in itertools.pairwise(FACE_WIDTHS[::-1])]
    decoder = Decoder(
        sample_shape,
        nn.Sequential(
            nn.Linear(latent_dim, last * (height // 8) * (width // 8)),
            nn.Unflatten(1, (last, height // 8, width // 8)),
            stack(ups, norm=[False, True, True]),
        ),
        lambda: transposed(FACE_WIDTHS[0], channels, 5),
        FACE_WIDTHS[0],
        options,
    )
    return encoder, decoder
