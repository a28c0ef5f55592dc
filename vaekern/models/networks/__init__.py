"""Encoders and decoders, by name.

An encoder maps x [B, *sample_shape] to (mu, logvar), both [B, d], with logvar = log sigma^2, and to
a third tensor [B, k] where the posterior (`vaekern.models.posterior`) needs more than these. A
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
from torch.nn.utils import parametrizations

from vaekern.models.networks.heads import DecoderOptions, Encoder
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
    name: str,
    sample_shape: Sequence[int],
    latent_dim: int,
    *,
    extra_outputs: int = 0,
    decoder_shape: Sequence[int] | None = None,
    spectral_norm: bool = False,
    **options: Any,
) -> tuple[nn.Module, nn.Module]:
    """Build the encoder and decoder that `NETWORKS` lists under `name`.

    Args:
        name: a row.
        sample_shape: of x.
        latent_dim: d.
        extra_outputs: k, numbers that the encoder returns beside mu and logvar.
        decoder_shape: what the decoder returns for one sample, where that is not sample_shape.
        spectral_norm: divide each linear and convolutional weight of the decoder by its largest
            singular value (`torch.nn.utils.parametrizations.spectral_norm`), but not those of a
            variance head, which start at zero.
        **options: the network's own.

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
    encoder, decoder = builder(sample_shape, latent_dim, **options)
    if decoder_shape is not None and tuple(decoder_shape) != tuple(sample_shape):
        _, decoder = builder(tuple(decoder_shape), latent_dim, **options)
    if extra_outputs:
        assert isinstance(encoder, Encoder)
        encoder.add_extra(extra_outputs)
    if spectral_norm:
        head = getattr(decoder, "x_logvar", None)
        for layer in list(decoder.modules()):
            if layer is not head and isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                parametrizations.spectral_norm(layer)
    return encoder, decoder


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
