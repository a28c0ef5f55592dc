"""Numbers that tell what a Gaussian VAE has learned. Nothing here takes gradients."""

from vaekern.diagnostics.column_norms import ColumnNormProduct, column_norm_product
from vaekern.diagnostics.decoders import (
    DecoderOrthogonality,
    OrthogonalitySummary,
    decoder_orthogonality,
)
from vaekern.diagnostics.discrepancy import maximum_mean_discrepancy
from vaekern.diagnostics.disentanglement import DisentanglementScore, disentanglement_score
from vaekern.diagnostics.information import MutualInformation, mutual_information
from vaekern.diagnostics.jacobian import decoder_jacobian, decoder_jacobian_chunks
from vaekern.diagnostics.latents import (
    ActiveUnits,
    EncoderVarianceHistogram,
    EncoderVarianceSpectrum,
    active_units,
    encoder_variance_histogram,
    encoder_variance_spectrum,
)
from vaekern.diagnostics.likelihood import importance_weighted_nll
from vaekern.diagnostics.orthogonality import (
    OrthogonalityDistance,
    distance_to_orthogonality,
    random_rotation_baseline,
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
from vaekern.diagnostics.reconstruction import ReconstructionLosses, reconstruction_losses
from vaekern.diagnostics.smoothness import (
    ExpectedGap,
    LocalSmoothness,
    expected_gap,
    expected_local_smoothness,
)
from vaekern.diagnostics.spectrum import LatentSpectrum, latent_spectrum

__all__ = [
    "ActiveUnits",
    "ColumnNormProduct",
    "DecoderOrthogonality",
    "DirectionalVariance",
    "DisentanglementScore",
    "EncoderVarianceHistogram",
    "EncoderVarianceSpectrum",
    "ExpectedGap",
    "LatentSpectrum",
    "LatentTraversals",
    "LocalSmoothness",
    "MutualInformation",
    "OrthogonalityDistance",
    "OrthogonalitySummary",
    "PolarizedRegime",
    "PolarizedRegimeTracker",
    "ReconstructionLosses",
    "active_units",
    "column_norm_product",
    "decoder_jacobian",
    "decoder_jacobian_chunks",
    "decoder_orthogonality",
    "directional_variance",
    "disentanglement_score",
    "distance_to_orthogonality",
    "encoder_variance_histogram",
    "encoder_variance_spectrum",
    "expected_gap",
    "expected_local_smoothness",
    "importance_weighted_nll",
    "latent_spectrum",
    "latent_traversals",
    "maximum_mean_discrepancy",
    "mutual_information",
    "perturbed_codes",
    "polarized_regime",
    "random_rotation_baseline",
    "reconstruction_losses",
]
