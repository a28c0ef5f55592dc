"""Gaussian VAEs, two-stage models, the networks they are made of and the samplers over them."""

from vaekern.models import networks
from vaekern.models.batch_norm import fit_batch_norm
from vaekern.models.config import ModelConfig, NetworkConfig, ObjectiveConfig, SystemConfig
from vaekern.models.posterior import Posterior
from vaekern.models.samplers import (
    SAMPLERS,
    GaussianMixtureSampler,
    InterpolationSampler,
    LatentSampler,
    PriorSampler,
    SecondStageSampler,
    interpolation_strips,
    latent_sampler,
    spherical_interpolation,
)
from vaekern.models.two_stage import TwoStageVAE
from vaekern.models.vae import VAE

__all__ = [
    "SAMPLERS",
    "VAE",
    "GaussianMixtureSampler",
    "InterpolationSampler",
    "LatentSampler",
    "ModelConfig",
    "NetworkConfig",
    "ObjectiveConfig",
    "Posterior",
    "PriorSampler",
    "SecondStageSampler",
    "SystemConfig",
    "TwoStageVAE",
    "fit_batch_norm",
    "interpolation_strips",
    "latent_sampler",
    "networks",
    "spherical_interpolation",
]
