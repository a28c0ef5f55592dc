"""The fully connected network, for vectors and small images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from vaekern.models.networks.heads import (
    DecoderOutput,
    Output,
    VarianceHead,
    check_options,
    softplus_logvar,
    squash,
    start_constant,
)


def hidden_layers(features: int, width: int, layers: int) -> nn.Sequential:
    """`layers` times Linear and ReLU, from `features` inputs to `width` outputs."""
    modules: list[nn.Module] = []
    for index in range(layers):
        modules += [nn.Linear(features if index == 0 else width, width), nn.ReLU()]
    return nn.Sequential(*modules)


class MLPEncoder(nn.Module):
    """x [B, *sample_shape] -> (mu [B, d], logvar [B, d])."""

    def __init__(self, sample_shape: Sequence[int], latent_dim: int, width: int, layers: int):
        super().__init__()
        self.hidden = hidden_layers(math.prod(sample_shape), width, layers)
        self.head = nn.Linear(width, 2 * latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, raw_std = self.head(self.hidden(x.flatten(1))).chunk(2, dim=1)
        return mu, softplus_logvar(raw_std)


class MLPDecoder(nn.Module):
    """z [B, d] -> x_hat [B, *sample_shape], and x_logvar where a variance head was asked for."""

    def __init__(
        self,
        sample_shape: Sequence[int],
        latent_dim: int,
        width: int,
        layers: int,
        output: Output,
        variance_head: VarianceHead | None,
        initial_variance: float,
    ):
        super().__init__()
        self.sample_shape = tuple(sample_shape)
        self.output = output
        self.variance_head = variance_head
        features = math.prod(sample_shape)
        self.hidden = hidden_layers(latent_dim, width, layers)
        self.head = nn.Linear(width, features)
        if variance_head is not None:
            self.x_logvar = nn.Linear(width, 1 if variance_head == "sample" else features)
            start_constant(self.x_logvar, math.log(initial_variance))

    def forward(self, z: Tensor) -> DecoderOutput:
        hidden = self.hidden(z)
        x_hat = squash(self.head(hidden), self.output).unflatten(1, self.sample_shape)
        if self.variance_head is None:
            return x_hat
        x_logvar = self.x_logvar(hidden)
        if self.variance_head == "sample":
            return x_hat, x_logvar.squeeze(1)
        return x_hat, x_logvar.unflatten(1, self.sample_shape)


def mlp(
    sample_shape: Sequence[int],
    latent_dim: int,
    *,
    width: int = 256,
    layers: int = 2,
    output: Output = "sigmoid",
    variance_head: VarianceHead | None = None,
    initial_variance: float = 1.0,
) -> tuple[MLPEncoder, MLPDecoder]:
    """A fully connected encoder and decoder with ReLU, for any `sample_shape`.

    The encoder's standard deviation is 1e-6 + softplus(.), as in `infogan`.

    Args:
        sample_shape: shape of one sample, without the batch axis.
        latent_dim: d, the number of latent dimensions.
        width: units of each hidden layer.
        layers: hidden layers in the encoder and in the decoder.
        output: "sigmoid" for data in [0, 1]; "linear" otherwise, or where the loss applies the
            activation itself.
        variance_head: None; "sample" for one x_logvar per sample, [B] (learned iso-d); "element"
            for one per element, x's shape (learned diag-d). The head is one linear layer on the
            decoder's last hidden layer, so the variance depends on z and never on x itself.
        initial_variance: the variance that the head returns before it is trained.

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
    """
    check_options(sample_shape, latent_dim, output, variance_head, initial_variance)
    if width < 1 or layers < 1:
        raise ValueError(f"width and layers must be at least 1, got width={width}, layers={layers}")
    encoder = MLPEncoder(sample_shape, latent_dim, width, layers)
    decoder = MLPDecoder(
        sample_shape, latent_dim, width, layers, output, variance_head, initial_variance
    )
    return encoder, decoder
