"""How good a model is: distances in feature space, and pictures."""

from vaekern.evaluation.decoder_figures import (
    directional_variance_figure,
    interpolation_figure,
    latent_traversals_figure,
    perturbed_codes_figure,
)
from vaekern.evaluation.features import FeatureClassifier, fit_feature_classifier
from vaekern.evaluation.figures import (
    encoder_variance_figure,
    reconstruction_grid,
    sample_grid,
    training_curves,
)
from vaekern.evaluation.frechet import frechet_distance
from vaekern.evaluation.latent_figures import (
    codes_tsne,
    encoder_variance_histogram_figure,
    latent_spectrum_figure,
)
from vaekern.evaluation.orthogonality_figures import (
    orthogonality_figure,
    singular_value_gaps_figure,
)

__all__ = [
    "FeatureClassifier",
    "codes_tsne",
    "directional_variance_figure",
    "encoder_variance_figure",
    "encoder_variance_histogram_figure",
    "fit_feature_classifier",
    "frechet_distance",
    "interpolation_figure",
    "latent_spectrum_figure",
    "latent_traversals_figure",
    "orthogonality_figure",
    "perturbed_codes_figure",
    "reconstruction_grid",
    "sample_grid",
    "singular_value_gaps_figure",
    "training_curves",
]
