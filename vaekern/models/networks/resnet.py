"""The residual network of the two-stage paper."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from vaekern.models.networks.heads import (
    Decoder,
    DecoderOptions,
    Encoder,
    check_options,
    check_power_of_two,
    log_std_logvar,
)
from vaekern.models.networks.layers import convolution, start_glorot, transposed

DENSE_WIDTH = 512
WIDEST = 1024
MOMENTUM = 1e-3  # of batch norm: TensorFlow's decay of 0.999


class ResidualBlock(nn.Module):
    """layers(x) + shortcut(x); the shortcut is a layer too, never the identity."""

    def __init__(self, layers: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.layers = layers
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.layers(x) + self.shortcut(x)
        return total


def _scale_block(channels: int, blocks: int) -> nn.Sequential:
    """Residual blocks of two times batch norm, ReLU and a 3x3 convolution."""
    return nn.Sequential(
        *(
            ResidualBlock(
                nn.Sequential(
                    *(
                        layer
                        for _ in range(2)
                        for layer in (
                            nn.BatchNorm2d(channels, momentum=MOMENTUM),
                            nn.ReLU(),
                            convolution(channels, channels, 3),
                        )
                    )
                ),
                convolution(channels, channels, 3),
            )
            for _ in range(blocks)
        )
    )


def _dense_block(features: int, blocks: int) -> nn.Sequential:
    """The same with linear layers of 512 units and no batch norm."""
    sizes = (features, *(DENSE_WIDTH for _ in range(blocks)))
    return nn.Sequential(
        *(
            ResidualBlock(
                nn.Sequential(nn.ReLU(), nn.Linear(old, new), nn.ReLU(), nn.Linear(new, new)),
                nn.Linear(old, new),
            )
            for old, new in itertools.pairwise(sizes)
        )
    )


def resnet(
    sample_shape: Sequence[int],
    latent_dim: int,
    *,
    base_width: int = 32,
    blocks: int = 2,
    scales: int | None = None,
    pool: bool = False,
    **options: Unpack[DecoderOptions],
) -> tuple[Encoder, Decoder]:
    """The residual network of the two-stage paper, figure 16.

    A scale block is `blocks` residual blocks: two times batch norm, ReLU and 3x3 convolution, plus
    a 3x3 convolution as the shortcut. Encoder: 3x3 convolution to `base_width` channels; `scales`
    scale blocks, between them 3x3 convolutions with stride 2 that double the channels; the feature
    map, flattened; a scale block of linear layers with 512 units, without batch norm; linear 2d: mu
    and log sigma. Decoder: linear to 2 x 2 x C0; 3x3 transposed convolutions with stride 2 that
    halve the channels, each followed by a scale block, until the image has its size; 3x3
    convolution to C channels; sigmoid. C0 is what leaves `base_width` channels at the end, at most
    1024: 4096 units for 64x64, 2048 for 32x32.

    Weights are Glorot-uniform, batch norm has momentum 0.001. The paper's code has base_width=16
    and blocks=1 as its defaults (32 for its CelebA images), and pool=True.

    Args:
        sample_shape: (C, H, H) with H a power of two: images of 28x28 are padded to 32x32.
        latent_dim: d (the paper: 64).
        base_width: channels at full resolution (the paper: 32).
        blocks: residual blocks in each scale block (the paper: 2).
        scales: resolutions in the encoder; None takes the paper's 4 from 64 pixels on, else 3.
        pool: average the feature map over its positions in place of flattening it.
        **options: see `DecoderOptions`.

    Returns:
        (encoder, decoder).

    Raises:
        ValueError: a shape that does not fit, or an option outside its range.

    Example:
        >>> import torch
        >>> encoder, decoder = resnet((1, 32, 32), 8, base_width=4)
        >>> mu, logvar = encoder(torch.rand(2, 1, 32, 32))
        >>> decoder(mu).shape
        torch.Size([2, 1, 32, 32])

    Source:
        Dai & Wipf 2019, Diagnosing and Enhancing VAE Models, figure 16 and its code.
    """
    check_options(sample_shape, latent_dim, options)
    if min(base_width, blocks) < 1 or (scales is not None and scales < 1):
        raise ValueError(
            "base_width, blocks and scales must be at least 1, "
            f"got base_width={base_width}, blocks={blocks}, scales={scales}"
        )
    if scales is None:
        scales = 4 if max(sample_shape) >= 64 else 3
    check_power_of_two("resnet", sample_shape, max(4, 2 ** (scales - 1)))
    channels, side, _ = sample_shape

    widths = [base_width * 2**scale for scale in range(scales)]
    layers: list[nn.Module] = [convolution(channels, base_width, 3)]
    for scale, width in enumerate(widths):
        if scale:
            layers.append(convolution(widths[scale - 1], width, 3, 2))
        layers.append(_scale_block(width, blocks))
    if pool:
        layers.append(nn.AdaptiveAvgPool2d(1))
    features = widths[-1] * (1 if pool else (side // 2 ** (scales - 1)) ** 2)
    encoder = Encoder(
        nn.Sequential(*layers, nn.Flatten(), _dense_block(features, blocks)),
        nn.Linear(DENSE_WIDTH, 2 * latent_dim),
        log_std_logvar,
    ).apply(start_glorot)

    doublings = side.bit_length() - 2  # from 2 to side
    widths = [min(base_width * 2**step, WIDEST) for step in range(doublings + 1)][::-1]
    layers = [nn.Linear(latent_dim, 4 * widths[0]), nn.Unflatten(1, (widths[0], 2, 2))]
    for old, new in itertools.pairwise(widths):
        layers += [transposed(old, new, 3, 2), _scale_block(new, blocks)]
    decoder = Decoder(
        sample_shape,
        nn.Sequential(*layers).apply(start_glorot),
        lambda: convolution(base_width, channels, 3).apply(start_glorot),
        base_width,
        options,
    )
    return encoder, decoder
