"""Encoders and decoders, by name.

An encoder maps x [B, *sample_shape] to (mu, logvar), both [B, d], with logvar = log sigma^2. A
decoder maps z [B, d] to x_hat [B, *sample_shape], or to (x_hat, x_logvar) where it also predicts
its own log-variance. `NETWORKS` is the one table; a new network is a new row:
name -> builder(sample_shape, latent_dim, **options) -> (encoder, decoder).

A network of your own needs no row: any two modules with these signatures work in `vaekern.models`,
`VAE(encoder, decoder, loss, latent_dim)`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from vaekern.models.networks.heads import DecoderOptions
from vaekern.models.networks.infogan import infogan
from vaekern.models.networks.mlp import mlp
from vaekern.models.networks.resnet import resnet
from vaekern.models.networks.rolinek import rolinek_conv
from vaekern.models.networks.second_stage import second_stage
from vaekern.models.networks.takida import takida_faces, takida_mnist
from vaekern.models.networks.wae import wae

Builder = Callable[..., tuple[nn.Module, nn.Module]]

NETWORKS: dict[str, Builder] = {
    "mlp": mlp,
    "infogan": infogan,
    "wae": wae,
    "wae-original": functools.partial(wae, form="tolstikhin"),
    "resnet": resnet,
    "takida-mnist": takida_mnist,
    "takida-smoothness": functools.partial(takida_mnist, kernel=4, batch_norm=False),
    "takida-faces": takida_faces,
    "rolinek-dsprites": functools.partial(
        mlp,
        encoder_widths=(1200, 1200),
        decoder_widths=(1200, 1200, 1200),
        decoder_activation="tanh",
    ),
    "rolinek-mnist": functools.partial(
        mlp, encoder_widths=(400,), decoder_widths=(500, 500), decoder_activation="tanh"
    ),
    "rolinek-synth-nonlin": functools.partial(
        mlp,
        encoder_widths=(60, 40, 20),
        decoder_widths=(60, 40, 20),
        encoder_activation="tanh",
        decoder_activation="tanh",
    ),
    "rolinek-conv": rolinek_conv,
    "linear": functools.partial(mlp, encoder_widths=(), decoder_widths=()),
}


def build(
    name: str, sample_shape: Sequence[int], latent_dim: int, **options: Any
) -> tuple[nn.Module, nn.Module]:
    """Build the encoder and decoder that `NETWORKS` lists under `name`.

    Raises:
        ValueError: an unknown name, an option that this network does not have, or a value outside
            its range.

    Example:
        >>> encoder, decoder = build("mlp", (64,), 8, width=32, output="linear")
    """
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
    builder = NETWORKS[name]
    known = [
        parameter.name
        for parameter in inspect.signature(builder).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ] + list(DecoderOptions.__annotations__)
    for option in options:
        if option not in known:
            raise ValueError(
                f"network {name!r} has no option {option!r}; its options are {', '.join(known)}"
            )
    return builder(sample_shape, latent_dim, **options)


__all__ = [
    "NETWORKS",
    "build",
    "infogan",
    "mlp",
    "resnet",
    "rolinek_conv",
    "second_stage",
    "takida_faces",
    "takida_mnist",
    "wae",
]
