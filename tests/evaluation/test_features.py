"""The classifier behind FD-digits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from vaekern.data import Dataset, load
from vaekern.evaluation import (
    FeatureClassifier,
    features,
    fit_feature_classifier,
    frechet_distance,
)
from vaekern.training import RunError


@pytest.fixture(scope="module")
def digits() -> Dataset:
    pytest.importorskip("sklearn")
    return load("digits")


@pytest.fixture(scope="module")
def classifier(digits: Dataset) -> FeatureClassifier:
    return fit_feature_classifier(digits)


def test_it_knows_digits(digits: Dataset, classifier: FeatureClassifier):
    assert classifier.accuracy > 0.95
    assert classifier.metric == "FD-digits"
    right = classifier(digits.test).argmax(1) == digits.test_labels
    assert classifier.accuracy == pytest.approx(float(right.double().mean()))


def test_features_are_alive_and_of_unit_variance(digits: Dataset, classifier: FeatureClassifier):
    values = classifier.features(digits.train)
    assert values.shape == (1617, 64)
    assert not values.requires_grad
    assert float(values.double().var(0).mean()) == pytest.approx(1, rel=1e-4)
    assert values.std(0).min() > 0
    assert torch.allclose(values[:5], classifier.features(digits.train[:5]), atol=1e-5)
    assert classifier.features(digits.train[:0]).shape == (0, 64)


def test_the_distance_orders_samples_by_quality(digits: Dataset, classifier: FeatureClassifier):
    real = classifier.features(digits.train)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(digits.train.shape, generator=generator)

    def distance(images: torch.Tensor) -> float:
        return float(frechet_distance(real, classifier.features(images)))

    steps = [digits.train + amount * noise for amount in (0.0, 0.1, 0.3, 1.0)]
    values = [distance(step.clamp(0, 1)) for step in steps]
    assert values == sorted(values)
    assert values[0] < 1e-9 < 0.1 < values[1]
    # unseen real digits lie far below even a little noise on all pixels
    assert distance(digits.test) < values[2]
    # as do images of one class only, which a collapsed model would give
    assert digits.train_labels is not None
    assert distance(digits.train[digits.train_labels == 3]) > values[2]


def test_a_seed_gives_one_classifier_and_leaves_the_global_state(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(features, "STEPS", 20)
    small = dataclasses.replace(
        digits, train=digits.train[:200], train_labels=digits.train_labels[:200]
    )
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    first, again, other = (fit_feature_classifier(small, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert torch.equal(first.features(small.test), again.features(small.test))
    assert not torch.equal(first.features(small.test), other.features(small.test))


def test_larger_images_are_convolved(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "STEPS", 40)
    # two classes that differ in where a bar stands
    images = 0.1 * torch.rand(40, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 2 * 7 - 3  # any integers: here -3 and 4
    images[labels < 0, :, :, :4] = 1
    images[labels > 0, :, :, -4:] = 1
    dataset = Dataset("bars", "image", images[:30], images[30:], labels[:30], labels[30:], (0, 1))
    classifier = fit_feature_classifier(dataset)
    assert any(isinstance(layer, torch.nn.Conv2d) for layer in classifier.body)
    assert classifier.accuracy == 1.0
    assert classifier.classes == 2
    assert classifier.features(images).shape == (40, 64)


def test_saved_and_loaded_whole(tmp_path: Path, digits: Dataset, classifier: FeatureClassifier):
    path = tmp_path / "classifier.safetensors"
    classifier.save(path)
    loaded = FeatureClassifier.load(path)
    assert (loaded.accuracy, loaded.metric) == (classifier.accuracy, "FD-digits")
    assert torch.equal(loaded.features(digits.test), classifier.features(digits.test))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match="damaged"):
        FeatureClassifier.load(path)
    with pytest.raises(RunError, match="no file"):
        FeatureClassifier.load(tmp_path / "none")


def test_data_it_cannot_learn_from(digits: Dataset, classifier: FeatureClassifier):
    vectors = Dataset("points", "vector", torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"must hold images.*vectors"):
        fit_feature_classifier(vectors)
    with pytest.raises(ValueError, match="must have labels"):
        fit_feature_classifier(dataclasses.replace(digits, test_labels=None))
    with pytest.raises(ValueError, match="at least 2 classes"):
        fit_feature_classifier(
            dataclasses.replace(digits, train_labels=torch.zeros(1617, dtype=torch.int64))
        )
    with pytest.raises(ValueError, match=r"\[N, 1, 8, 8\].*\[2, 1, 9, 8\]"):
        classifier.features(torch.zeros(2, 1, 9, 8))
