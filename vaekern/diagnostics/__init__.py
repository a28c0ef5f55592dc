"""Numbers that tell what a Gaussian VAE has learned. Nothing here takes gradients."""

from vaekern.diagnostics.discrepancy import maximum_mean_discrepancy
from vaekern.diagnostics.latents import (
    ActiveUnits,
    EncoderVarianceSpectrum,
    active_units,
    encoder_variance_spectrum,
)

__all__ = [
    "ActiveUnits",
    "EncoderVarianceSpectrum",
    "active_units",
    "encoder_variance_spectrum",
    "maximum_mean_discrepancy",
]
