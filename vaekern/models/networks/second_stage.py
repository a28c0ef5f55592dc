"""The second-stage network: a VAE on the latents of another VAE."""

from __future__ import annotations

from torch import Tensor, nn

from vaekern.models.networks.hidden import rectified_layers
from vaekern.models.networks.layers import start_glorot


class SecondStageEncoder(nn.Module):
    """z [B, d] -> (mu_u [B, d], logvar_u [B, d])."""

    def __init__(self, latent_dim: int, width: int, layers: int):
        super().__init__()
        self.hidden = rectified_layers(latent_dim, (width,) * layers)
        self.mu = nn.Linear(latent_dim + width, latent_dim)
        self.log_std = nn.Linear(latent_dim + width, latent_dim)
        self.apply(start_glorot)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # The heads see the input too: where z is already almost normal, the identity is one
        # linear layer away and the hidden layers only correct it.
        mu, log_std = self.hidden.with_heads(z, self.mu, self.log_std)
        return mu, 2.0 * log_std


class SecondStageDecoder(nn.Module):
    """u [B, d] -> z_hat [B, d]."""

    def __init__(self, latent_dim: int, width: int, layers: int):
        super().__init__()
        self.hidden = rectified_layers(latent_dim, (width,) * layers)
        self.z_hat = nn.Linear(latent_dim + width, latent_dim)
        self.apply(start_glorot)

    def forward(self, u: Tensor) -> Tensor:
        (z_hat,) = self.hidden.with_heads(u, self.z_hat)
        return z_hat


def second_stage(
    latent_dim: int, *, width: int = 1024, layers: int = 3
) -> tuple[SecondStageEncoder, SecondStageDecoder]:
    """The second-stage encoder and decoder, both d -> d.

    h = `layers` times (linear `width`, ReLU) of the input; the heads are linear in [input, h]:
    mu_u and log s_u in the encoder (its logvar is 2 log s_u), z_hat in the decoder. No
    normalisation; Glorot-uniform weights, zero biases. For d = 64 and a width of 1024:
    2,305,152 parameters in the encoder and 2,235,456 in the decoder.

    Args:
        latent_dim: d, of z and of u alike.
        width: units of each hidden layer (the paper: 1024).
        layers: hidden layers in each direction (the paper: 3).

    Returns:
        (encoder, decoder).

    Raises:
        ValueError: a size below one.

    Example:
        >>> import torch
        >>> encoder, decoder = second_stage(8, width=32)
        >>> mu_u, logvar_u = encoder(torch.randn(5, 8))
        >>> decoder(mu_u).shape
        torch.Size([5, 8])

    Source:
        Dai & Wipf 2019, Diagnosing and Enhancing VAE Models, appendix D and its code.
    """
    if min(latent_dim, width, layers) < 1:
        raise ValueError(
            "latent_dim, width and layers must be at least 1, "
            f"got latent_dim={latent_dim}, width={width}, layers={layers}"
        )
    return SecondStageEncoder(latent_dim, width, layers), SecondStageDecoder(
        latent_dim, width, layers
    )
