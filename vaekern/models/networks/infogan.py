"""The InfoGAN network: the neutral architecture on which Dai & Wipf compare VAEs with GANs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vaekern.models.networks.heads import (
    DecoderOutput,
    Output,
    VarianceHead,
    check_options,
    softplus_logvar,
    squash,
    start_constant,
)

WIDTH = 1024
# TensorFlow's decay of 0.999 is torch's momentum of 0.001. Statistics are far behind after a short
# run, which is why `fit_batch_norm` estimates them again before they are used.
BATCH_NORM: dict[str, Any] = {"eps": 1e-5, "momentum": 1e-3}


def _convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    # 4x4 with stride 2 on an even side: TensorFlow's SAME pads one pixel on each side.
    layer = nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1)
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
    layer = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
    nn.init.normal_(layer.weight, std=0.02)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class InfoGANEncoder(nn.Module):
    """x [B, C, H, W] -> (mu [B, d], logvar [B, d]); spectral norm on all four layers."""

    def __init__(self, sample_shape: Sequence[int], latent_dim: int, normalize: bool):
        super().__init__()
        channels, height, width = sample_shape
        norm = spectral_norm if normalize else (lambda layer: layer)
        self.layers = nn.Sequential(
            norm(_convolution(channels, 64)),
            nn.LeakyReLU(0.2),
            norm(_convolution(64, 128)),
            nn.BatchNorm2d(128, **BATCH_NORM),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            norm(_linear(128 * (height // 4) * (width // 4), WIDTH)),
            nn.BatchNorm1d(WIDTH, **BATCH_NORM),
            nn.LeakyReLU(0.2),
            norm(_linear(WIDTH, 2 * latent_dim)),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, raw_std = self.layers(x).chunk(2, dim=1)
        return mu, softplus_logvar(raw_std)


class InfoGANDecoder(nn.Module):
    """z [B, d] -> x_hat [B, C, H, W], and x_logvar where a variance head was asked for."""

    def __init__(
        self,
        sample_shape: Sequence[int],
        latent_dim: int,
        output: Output,
        variance_head: VarianceHead | None,
        initial_variance: float,
    ):
        super().__init__()
        channels, height, width = sample_shape
        self.output = output
        self.variance_head = variance_head
        features = 128 * (height // 4) * (width // 4)
        self.dense = nn.Sequential(
            _linear(latent_dim, WIDTH), nn.BatchNorm1d(WIDTH, **BATCH_NORM), nn.ReLU()
        )
        self.upsample = nn.Sequential(
            _linear(WIDTH, features),
            nn.BatchNorm1d(features, **BATCH_NORM),
            nn.ReLU(),
            nn.Unflatten(1, (128, height // 4, width // 4)),
            _deconvolution(128, 64),
            nn.BatchNorm2d(64, **BATCH_NORM),
            nn.ReLU(),
        )
        self.head = _deconvolution(64, channels)
        if variance_head is not None:
            self.x_logvar = (
                _linear(WIDTH, 1) if variance_head == "sample" else _deconvolution(64, channels)
            )
            start_constant(self.x_logvar, math.log(initial_variance))

    def forward(self, z: Tensor) -> DecoderOutput:
        hidden = self.dense(z)
        features = self.upsample(hidden)
        x_hat = squash(self.head(features), self.output)
        if self.variance_head is None:
            return x_hat
        if self.variance_head == "sample":
            return x_hat, self.x_logvar(hidden).squeeze(1)
        return x_hat, self.x_logvar(features)


def infogan(
    sample_shape: Sequence[int],
    latent_dim: int,
    *,
    output: Output = "sigmoid",
    variance_head: VarianceHead | None = None,
    initial_variance: float = 1.0,
    normalize: bool = True,
) -> tuple[InfoGANEncoder, InfoGANDecoder]:
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
        output: "sigmoid" for images in [0, 1]; "linear" otherwise, or where the loss applies the
            activation itself.
        variance_head: None; "sample" for one x_logvar per sample, [B] (learned iso-d), a linear
            layer on the first 1024 hidden units; "element" for one per element, x's shape (learned
            diag-d), a second transposed convolution beside the one that makes x_hat.
        initial_variance: the variance that the head returns before it is trained.
        normalize: False leaves the spectral norm out.

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
    check_options(sample_shape, latent_dim, output, variance_head, initial_variance)
    if len(sample_shape) != 3 or sample_shape[1] % 4 or sample_shape[2] % 4:
        raise ValueError(
            "network 'infogan' needs sample_shape (C, H, W) with H and W divisible by 4, "
            f"got {tuple(sample_shape)}; pad or resize the images (image_size), "
            "or use the network 'mlp'"
        )
    encoder = InfoGANEncoder(sample_shape, latent_dim, normalize)
    return encoder, InfoGANDecoder(
        sample_shape, latent_dim, output, variance_head, initial_variance
    )
