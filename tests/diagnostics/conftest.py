"""Probabilistic PCA as a VAE: everything about it is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vaekern import GaussianVAELoss
from vaekern.models import VAE


class LinearEncoder(nn.Module):
    """x -> (linear mean, a variance that is the same for every x)."""

    def __init__(self, weight: Tensor, bias: Tensor, variance: Tensor):
        super().__init__()
        self.mean = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        self.mean.weight.data, self.mean.bias.data = weight, bias
        self.register_buffer("variance", variance)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = self.mean(x)
        return mu, self.variance.log().expand_as(mu)


class LinearVAE:
    """x = W z + b + sigma n with orthogonal columns of W, whose posterior is diagonal."""

    def __init__(self, columns: tuple[float, ...], dims: int, sigma: float, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)
        rotation = torch.linalg.qr(self.draw(dims, len(columns)))[0]
        self.weight = rotation * torch.tensor(columns, dtype=torch.float64)
        self.bias, self.sigma = self.draw(dims), sigma
        precision = 1 + self.weight.square().sum(0) / sigma**2
        gain = self.weight.T / sigma**2 / precision[:, None]
        self.encoder = LinearEncoder(gain, -gain @ self.bias, 1 / precision)
        self.decoder = nn.Linear(len(columns), dims, dtype=torch.float64)
        self.decoder.weight.data, self.decoder.bias.data = self.weight, self.bias

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).double()

    def data(self, count: int) -> Tensor:
        z, noise = self.draw(count, self.weight.shape[1]), self.draw(count, self.weight.shape[0])
        return z @ self.weight.T + self.bias + self.sigma * noise

    def nll(self, x: Tensor) -> Tensor:
        """-log p(x), exactly."""
        noise = self.sigma**2 * torch.eye(len(self.bias), dtype=torch.float64)
        covariance = self.weight @ self.weight.T + noise
        marginal = torch.distributions.MultivariateNormal(self.bias, covariance)
        return -marginal.log_prob(x)

    def vae(self, encoder: nn.Module | None = None) -> VAE:
        loss = GaussianVAELoss("iso-i", "fixed", variance=self.sigma**2).double()
        loss.x_logvar.fill_(2 * math.log(self.sigma))  # the module stores it in float32 first
        return VAE(encoder or self.encoder, self.decoder, loss, self.weight.shape[1])


@pytest.fixture
def linear_vae() -> type[LinearVAE]:
    return LinearVAE
