"""Where the latents of generated samples come from: what every sampler is, and the two simplest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vaekern.models.modes import evaluation_mode
from vaekern.models.two_stage import TwoStageVAE
from vaekern.models.vae import CHUNK, VAE

if TYPE_CHECKING:
    from vaekern.data import Samples


class LatentSampler(ABC):
    """Draws latents z for a VAE whose decoder turns them into samples.

    Put the VAE into evaluation mode first where its networks have batch norm.

    Args:
        vae: stage 1.
    """

    def __init__(self, vae: VAE):
        self.vae = vae

    @abstractmethod
    def latents(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n latents z [n, d], on the VAE's device and in its dtype.

        `generator` is one of that device; None takes torch's own.
        """

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n samples [n, *sample_shape]: the decoder's means at `latents`, with no pixel noise."""
        with torch.no_grad():
            return self.vae.decode_in_chunks(self.latents(n, generator=generator))


class PriorSampler(LatentSampler):
    """z ~ N(0, I)."""

    def latents(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        return self.vae.sample_prior(n, generator=generator)


class SecondStageSampler(LatentSampler):
    """u ~ N(0, I), z = z_hat(u) + gamma n, n ~ N(0, I).

    Source: Dai & Wipf 2019, Diagnosing and Enhancing VAE Models, section 4.
    """

    def __init__(self, model: TwoStageVAE):
        super().__init__(model.stage1)
        self.model = model

    def latents(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        return self.model.sample_latents(n, stage=2, generator=generator)


@torch.no_grad()
def encode_means(vae: VAE, x: Samples) -> Tensor:
    """The code of every sample of x [N, *sample_shape]: the encoder's mean, [N, d].

    In evaluation mode, a chunk at a time, on the VAE's device.
    """
    device = next(vae.parameters()).device
    with evaluation_mode(vae):
        return torch.cat([vae.encode(piece.to(device))[0] for piece in x.split(CHUNK)])
