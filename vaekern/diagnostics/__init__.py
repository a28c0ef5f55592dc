"""Numbers that tell what a Gaussian VAE has learned. Nothing here takes gradients."""

from vaekern.diagnostics.discrepancy import maximum_mean_discrepancy
from vaekern.diagnostics.disentanglement import DisentanglementScore, disentanglement_score
from vaekern.diagnostics.latents import (
    ActiveUnits,
    EncoderVarianceHistogram,
    EncoderVarianceSpectrum,
    active_units,
    encoder_variance_histogram,
    encoder_variance_spectrum,
)
from vaekern.diagnostics.polarization import (
    PolarizedRegime,
    PolarizedRegimeTracker,
    polarized_regime,
)
from vaekern.diagnostics.perturbations import (
    DirectionalVariance,
    LatentTraversals,
    directional_variance,
    latent_traversals,
    perturbed_codes,
)

__all__ = [
    "ActiveUnits",
    "EncoderVarianceHistogram",
    "EncoderVarianceSpectrum",
    "PolarizedRegime",
    "PolarizedRegimeTracker",
    "active_units",
    "encoder_variance_histogram",
    "encoder_variance_spectrum",
    "maximum_mean_discrepancy",
    "polarized_regime",
]
