"""The convolutional network of Rolinek et al.; their fully connected ones are rows of `mlp`."""

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
    softplus_logvar,
)
from vaekern.models.networks.layers import convolution, stack, transposed


def rolinek_conv(
    sample_shape: Sequence[int], latent_dim: int, **options: Unpack[DecoderOptions]
) -> tuple[Encoder, Decoder]:
    """The convolutional network of Rolinek et al., for CelebA.

    Encoder: 4x4 convolutions with stride 2 to 32, 32, 64 and 64 channels, each with ReLU; linear
    2d. Decoder: linear 64 and linear 64 (H/16) (W/16), each with ReLU; 4x4 transposed convolutions
    with stride 2 to 64, 32 and 32 channels, each with ReLU; the same to C channels; sigmoid.

    The paper leaves the encoder's standard deviation and the layer that leads from the "connecting"
    64 units to the first feature map open: they are 1e-6 + softplus(.), as in `mlp`, and the second
    linear layer. Weights start as torch's do.

    Args:
        sample_shape: (C, H, W) with H and W divisible by sixteen.
        latent_dim: d (the paper: 32).
        **options: see `DecoderOptions`.

    Returns:
        (encoder, decoder).

    Raises:
        ValueError: a shape that does not fit, or an option outside its range.

    Example:
        >>> import torch
        >>> encoder, decoder = rolinek_conv((3, 64, 64), 32)
        >>> mu, logvar = encoder(torch.rand(2, 3, 64, 64))
        >>> decoder(mu).shape
        torch.Size([2, 3, 64, 64])

    Source:
        Rolinek, Zietlow & Martius 2019, Variational Autoencoders Pursue PCA Directions (by
        Accident), supplement B.
    """
    check_options(sample_shape, latent_dim, options)
    check_sides("rolinek-conv", sample_shape, 16)
    channels, height, width = sample_shape
    grid = (64, height // 16, width // 16)
    features = 64 * grid[1] * grid[2]
    downs = [convolution(a, b, 4, 2) for a, b in itertools.pairwise((channels, 32, 32, 64, 64))]
    encoder = Encoder(
        nn.Sequential(stack(downs, norm=[False] * 4), nn.Flatten()),
        nn.Linear(features, 2 * latent_dim),
        softplus_logvar,
    )
    ups = [transposed(a, b, 4, 2) for a, b in itertools.pairwise((64, 64, 32, 32))]
    decoder = Decoder(
        sample_shape,
        nn.Sequential(
            stack([nn.Linear(latent_dim, 64), nn.Linear(64, features)], norm=[False] * 2),
            nn.Unflatten(1, grid),
            stack(ups, norm=[False] * 3),
        ),
        lambda: transposed(32, channels, 4, 2),
        32,
        options,
    )
    return encoder, decoder
