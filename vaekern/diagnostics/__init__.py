"""Numbers that tell what a Gaussian VAE has learned. Nothing here takes gradients."""

from vaekern.diagnostics.discrepancy import maximum_mean_discrepancy
from vaekern.diagnostics.disentanglement import DisentanglementScore, disentanglement_score
from vaekern.diagnostics.information import MutualInformation, mutual_information
from vaekern.diagnostics.latents import (
    ActiveUnits,
    EncoderVarianceHistogram,
    EncoderVarianceSpectrum,
    active_units,
    encoder_variance_histogram,
    encoder_variance_spectrum,
)
from vaekern.diagnostics.perturbations import (
    DirectionalVariance,
    LatentTraversals,
    directional_variance,
    latent_traversals,
    perturbed_codes,
)
from vaekern.diagnostics.polarization import (
    PolarizedRegime,
    PolarizedRegimeTracker,
    polarized_regime,
)

__all__ = [
    "ActiveUnits",
    "DirectionalVariance",
    "DisentanglementScore",
    "EncoderVarianceHistogram",
    "EncoderVarianceSpectrum",
    "LatentTraversals",
    "MutualInformation",
    "PolarizedRegime",
    "PolarizedRegimeTracker",
    "active_units",
    "directional_variance",
    "disentanglement_score",
    "encoder_variance_histogram",
    "encoder_variance_spectrum",
    "latent_traversals",
    "maximum_mean_discrepancy",
    "mutual_information",
    "perturbed_codes",
    "polarized_regime",
]
