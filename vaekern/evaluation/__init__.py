"""How good a model is: distances in feature space, and pictures."""

from vaekern.evaluation.decoder_figures import (
    directional_variance_figure,
    interpolation_figure,
    latent_traversals_figure,
    perturbed_codes_figure,
)
from vaekern.evaluation.extractors import (
    Extractor,
    classifier_extractor,
    inception_extractor,
    module_extractor,
    stretch_images,
)
from vaekern.evaluation.features import FeatureClassifier, fit_feature_classifier
from vaekern.evaluation.figures import (
    encoder_variance_figure,
    reconstruction_grid,
    sample_grid,
    training_curves,
)
from vaekern.evaluation.frechet import frechet_distance
from vaekern.evaluation.generation import (
    GenerationFeatures,
    frechet_scores,
    generation_features,
    generation_scores,
    kernel_scores,
    precision_recall_scores,
)
from vaekern.evaluation.inception import Inception, load_inception
from vaekern.evaluation.kernel_distance import KernelDistance, kernel_distance
from vaekern.evaluation.latent_figures import (
    codes_tsne,
    encoder_variance_histogram_figure,
    latent_spectrum_figure,
)
from vaekern.evaluation.orthogonality_figures import (
    orthogonality_figure,
    singular_value_gaps_figure,
)
from vaekern.evaluation.precision_recall import PrecisionRecall, precision_recall

__all__ = [
    "Extractor",
    "FeatureClassifier",
    "GenerationFeatures",
    "Inception",
    "KernelDistance",
    "PrecisionRecall",
    "classifier_extractor",
    "codes_tsne",
    "directional_variance_figure",
    "encoder_variance_figure",
    "encoder_variance_histogram_figure",
    "fit_feature_classifier",
    "frechet_distance",
    "frechet_scores",
    "generation_features",
    "generation_scores",
    "inception_extractor",
    "interpolation_figure",
    "kernel_distance",
    "kernel_scores",
    "latent_spectrum_figure",
    "latent_traversals_figure",
    "load_inception",
    "module_extractor",
    "orthogonality_figure",
    "perturbed_codes_figure",
    "precision_recall",
    "precision_recall_scores",
    "reconstruction_grid",
    "sample_grid",
    "singular_value_gaps_figure",
    "stretch_images",
    "training_curves",
]
