"""The InfoGAN network: the neutral architecture on which Dai & Wipf compare VAEs with GANs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from vaekern.models.networks.heads import (
    Decoder,
    DecoderOptions,
    Encoder,
    check_options,
    check_sides,
    softplus_logvar,
)
from vaekern.models.networks.layers import convolution, transposed

WIDTH = 1024
KERNEL = 4
# TensorFlow's decay of 0.999 is torch's momentum of 0.001. Statistics are far behind after a short
# run, which is why `fit_batch_norm` estimates them again before they are used.
BATCH_NORM: dict[str, Any] = {"eps": 1e-5, "momentum": 1e-3}


def _convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    layer = convolution(in_channels, out_channels, KERNEL, 2)
    # TensorFlow's truncated normal cuts at two standard deviations.
    nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _linear(in_features: int, out_features: int) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def _deconvolution(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    layer = transposed(in_channels, out_channels, KERNEL, 2)
    nn.init.normal_(layer.weight, std=0.02)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def infogan(
    sample_shape: Sequence[int],
    latent_dim: int,
    *,
    normalize: bool = True,
    **options: Unpack[DecoderOptions],
) -> tuple[Encoder, Decoder]:
    """The InfoGAN encoder and decoder of the two-stage paper.

    Encoder: 4x4 convolution with stride 2 to 64 channels, leaky ReLU (slope 0.2); 4x4 with stride 2
    to 128, batch norm, leaky ReLU; linear 1024, batch norm, leaky ReLU; linear 2d: mu and, through
    1e-6 + softplus(.), the standard deviation. All four layers are spectrally normalised: each
    training forward takes one power iteration from the stored vectors, through which no gradient
    flows; evaluation takes none. For 28x28x1 and d = 64: 6,689,344 parameters.

    Decoder: linear 1024 and linear 128 (H/4) (W/4), each with batch norm and ReLU; 4x4 transposed
    convolution with stride 2 to 64 channels, batch norm, ReLU; the same to C channels; sigmoid.
    For 28x28x1 and d = 64: 6,642,241 parameters.

    Weights start as TensorFlow's do there: truncated normal 0.02 (convolutions), normal 0.02
    (linear and transposed), biases zero; batch norm has eps 1e-5 and momentum 0.001.

    Args:
        sample_shape: (C, H, W) with H and W divisible by four, e.g. 28, 32 or 64 pixels.
        latent_dim: d, the number of latent dimensions (the paper: 64).
        normalize: False leaves the spectral norm out.
        **options: see `DecoderOptions`.

    Returns:
        (encoder, decoder).

    Raises:
        ValueError: a shape that is not (C, H, W) with sides divisible by four, or another option
            outside its range.

    Example:
        >>> import torch
        >>> encoder, decoder = infogan((1, 28, 28), 16)
        >>> mu, logvar = encoder(torch.rand(2, 1, 28, 28))
        >>> decoder(mu).shape
        torch.Size([2, 1, 28, 28])

    Source:
        Dai & Wipf 2019, Diagnosing and Enhancing VAE Models, section 5.1, and the network of
        Chen et al. 2016 (InfoGAN) as Lucic et al. 2018 use it. `torch.nn.utils.parametrizations`
        iterates on the same matrix [cout, cin kh kw] as the original code; it stores the right
        vector of the pair where that code stores the left one (half an iteration apart), and
        starts from fifteen iterations at construction where that code starts from noise.
    """
    check_options(sample_shape, latent_dim, options)
    check_sides("infogan", sample_shape, 4)
    channels, height, width = sample_shape
    features = 128 * (height // 4) * (width // 4)
    norm = spectral_norm if normalize else (lambda layer: layer)
    encoder = Encoder(
        nn.Sequential(
            norm(_convolution(channels, 64)),
            nn.LeakyReLU(0.2),
            norm(_convolution(64, 128)),
            nn.BatchNorm2d(128, **BATCH_NORM),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            norm(_linear(features, WIDTH)),
            nn.BatchNorm1d(WIDTH, **BATCH_NORM),
            nn.LeakyReLU(0.2),
        ),
        norm(_linear(WIDTH, 2 * latent_dim)),
        softplus_logvar,
    )
    decoder = Decoder(
        sample_shape,
        nn.Sequential(
            _linear(latent_dim, WIDTH),
            nn.BatchNorm1d(WIDTH, **BATCH_NORM),
            nn.ReLU(),
            _linear(WIDTH, features),
            nn.BatchNorm1d(features, **BATCH_NORM),
            nn.ReLU(),
            nn.Unflatten(1, (128, height // 4, width // 4)),
            _deconvolution(128, 64),
            nn.BatchNorm2d(64, **BATCH_NORM),
            nn.ReLU(),
        ),
        lambda: _deconvolution(64, channels),
        64,
        options,
    )
    return encoder, decoder
