"""How good a model is: distances in feature space, and pictures."""

from vaekern.evaluation.features import FeatureClassifier, fit_feature_classifier
from vaekern.evaluation.figures import (
    encoder_variance_figure,
    reconstruction_grid,
    sample_grid,
    training_curves,
)
from vaekern.evaluation.frechet import frechet_distance

__all__ = [
    "FeatureClassifier",
    "encoder_variance_figure",
    "fit_feature_classifier",
    "frechet_distance",
    "reconstruction_grid",
    "sample_grid",
    "training_curves",
]
