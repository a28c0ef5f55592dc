"""Gaussian VAEs, two-stage models and the networks they are made of."""

from vaekern.models import networks
from vaekern.models.batch_norm import fit_batch_norm
from vaekern.models.config import ModelConfig, NetworkConfig, ObjectiveConfig
from vaekern.models.two_stage import Posterior, TwoStageVAE
from vaekern.models.vae import VAE

__all__ = [
    "VAE",
    "ModelConfig",
    "NetworkConfig",
    "ObjectiveConfig",
    "Posterior",
    "TwoStageVAE",
    "fit_batch_norm",
    "networks",
]
