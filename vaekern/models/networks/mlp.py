"""The fully connected network, for vectors and small images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Unpack

from torch import nn

from vaekern.models.networks.heads import (
    Decoder,
    DecoderOptions,
    Encoder,
    check_options,
    softplus_logvar,
)
from vaekern.models.networks.hidden import rectified_layers

Activation = Literal["relu", "tanh"]
ACTIVATIONS = ("relu", "tanh")


def hidden_layers(
    features: int, widths: Sequence[int], activation: Activation = "relu"
) -> nn.Sequential:
    """Linear layers of these widths, each with its activation, on `features` inputs."""
    if activation == "relu":
        return rectified_layers(features, widths)
    modules: list[nn.Module] = []
    for width in widths:
        modules += [nn.Linear(features, width), nn.Tanh()]
        features = width
    return nn.Sequential(*modules)


def mlp(
    sample_shape: Sequence[int],
    latent_dim: int,
    *,
    width: int = 256,
    layers: int = 2,
    encoder_widths: Sequence[int] | None = None,
    decoder_widths: Sequence[int] | None = None,
    encoder_activation: Activation = "relu",
    decoder_activation: Activation = "relu",
    **options: Unpack[DecoderOptions],
) -> tuple[Encoder, Decoder]:
    """A fully connected encoder and decoder, for any `sample_shape`.

    The encoder's standard deviation is 1e-6 + softplus(.), as in `infogan`.

    `networks.NETWORKS` lists those of Rolinek et al., whose encoders and decoders differ:

    - "rolinek-dsprites": encoder 1200-1200 with ReLU, decoder 1200-1200-1200 with tanh;
    - "rolinek-mnist": encoder 400 with ReLU, decoder 500-500 with tanh;
    - "rolinek-synth-nonlin": 60-40-20 with tanh, in both;
    - "linear": no hidden layer.

    Their paper leaves the encoder's standard deviation open; it is `mlp`'s.

    Args:
        sample_shape: shape of one sample, without the batch axis.
        latent_dim: d, the number of latent dimensions.
        width: units of each hidden layer.
        layers: hidden layers in the encoder and in the decoder.
        encoder_widths: instead of both, the encoder's hidden layers from x on; () for none.
        decoder_widths: instead of both, the decoder's hidden layers from z on; () for none.
        encoder_activation: "relu" or "tanh".
        decoder_activation: "relu" or "tanh".
        **options: see `DecoderOptions`.

    Returns:
        (encoder, decoder).

    Raises:
        ValueError: an option outside its range.

    Example:
        >>> import torch
        >>> encoder, decoder = mlp((1, 8, 8), 4, width=32)
        >>> mu, logvar = encoder(torch.rand(5, 1, 8, 8))
        >>> decoder(mu).shape
        torch.Size([5, 1, 8, 8])

    Source:
        Rolinek, Zietlow & Martius 2019, Variational Autoencoders Pursue PCA Directions (by
        Accident), supplement B, for the rows named after them.
    """
    check_options(sample_shape, latent_dim, options)
    if width < 1 or layers < 1:
        raise ValueError(f"width and layers must be at least 1, got width={width}, layers={layers}")
    both = (width,) * layers
    ways = {
        "encoder": (both if encoder_widths is None else tuple(encoder_widths), encoder_activation),
        "decoder": (both if decoder_widths is None else tuple(decoder_widths), decoder_activation),
    }
    for name, (widths, activation) in ways.items():
        if any(each < 1 for each in widths):
            raise ValueError(f"{name}_widths must hold sizes of at least 1, got {widths}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"{name}_activation must be relu or tanh, got {activation!r}")
    features = math.prod(sample_shape)
    widths, activation = ways["encoder"]
    encoder = Encoder(
        nn.Sequential(nn.Flatten(), *hidden_layers(features, widths, activation)),
        nn.Linear((features, *widths)[-1], 2 * latent_dim),
        softplus_logvar,
    )
    widths, activation = ways["decoder"]
    units = (latent_dim, *widths)[-1]
    decoder = Decoder(
        sample_shape,
        hidden_layers(latent_dim, widths, activation),
        lambda: nn.Linear(units, features),
        units,
        options,
    )
    return encoder, decoder
