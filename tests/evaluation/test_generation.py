"""Scores of what a model makes: which images are compared, and what is said of them."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch import Tensor, nn

import vaekern
from vaekern.data import Dataset
from vaekern.evaluation import (
    Extractor,
    frechet_distance,
    frechet_scores,
    generation_features,
    generation_scores,
    kernel_distance,
    module_extractor,
    precision_recall,
    stretch_images,
)
from vaekern.evaluation.generation import kernel_scores
from vaekern.models import SAMPLERS, VAE, latent_sampler

PIXELS = module_extractor(nn.Flatten(), "pixels")


@pytest.fixture(scope="module")
def data() -> Dataset:
    """300 and 60 images of 2x2 pixels."""
    images = torch.rand(360, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return Dataset("noise", "image", images[:300], images[300:], value_range=(0.0, 1.0))


@pytest.fixture(scope="module")
def vae() -> VAE:
    torch.manual_seed(0)
    encoder, decoder = vaekern.models.networks.mlp((1, 2, 2), 2, width=8)
    return VAE(encoder, decoder, vaekern.GaussianVAELoss(), latent_dim=2).eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_set_holds_what_its_name_says(vae: VAE, data: Dataset) -> None:
    found = generation_features(vae, data, PIXELS, n=1000, seed=3)
    assert found.reference == "train"  # the test split does not hold a thousand
    assert found.real.equal(data.train.flatten(1))
    assert found.made["other_images"].equal(data.test.flatten(1))
    with torch.no_grad():
        again = vae.reconstruct(data.train, generator=seeded(3)).flatten(1)
    torch.testing.assert_close(found.made["reconstructions"], again)
    for name in set(SAMPLERS) - set(found.skipped):
        rows = {"train": data.train, "test": data.test, None: None}[SAMPLERS[name].codes]
        expected = latent_sampler(name, vae, rows, seed=3).sample(300, generator=seeded(3))
        torch.testing.assert_close(found.made[name], expected.flatten(1))
    assert list(found.skipped) == ["second-stage"]
    assert "needs a TwoStageVAE" in found.skipped["second-stage"]


def test_the_test_split_is_the_reference_where_it_is_large_enough(vae: VAE, data: Dataset) -> None:
    found = generation_features(vae, data, PIXELS, n=60, sources=["prior", "other_images"])
    assert found.reference == "test"
    assert found.real.equal(data.test.flatten(1))
    assert [len(each) for each in found.made.values()] == [60, 60]
    few = generation_features(vae, data, PIXELS, n=40, reference="train", sources=["prior"])
    assert few.reference == "train"
    assert len(few.real) == 40
    assert len(few.real.unique(dim=0)) == 40
    assert (few.real[:, None] == data.train.flatten(1)).all(2).any(1).all()


def test_scores_are_the_distances_of_the_sets(vae: VAE, data: Dataset) -> None:
    names = ["reconstructions", "other_images"]
    found = generation_features(vae, data, PIXELS, sources=names)
    scores = generation_scores(
        vae, data, PIXELS, sources=names, scores=("frechet", "kernel", "precision_recall")
    )
    subsets = kernel_scores(found, subset_size=50)
    for name in names:
        made = found.made[name]
        assert scores["frechet"][name] == float(frechet_distance(found.real, made))
        distance = kernel_distance(found.real, made)
        assert scores["kernel"][name] == float(distance.mean)
        # 300 images are one subset
        assert f"{name}_std" not in scores["kernel"]
        assert subsets[f"{name}_std"] == float(
            kernel_distance(found.real, made, subset_size=50).std
        )
        both = precision_recall(found.real, made)
        assert scores["precision_recall"][f"{name}_precision"] == float(both.precision)
        assert scores["precision_recall"][f"{name}_recall"] == float(both.recall)
    assert scores["frechet"]["other_images"] < 0.1 < scores["frechet"]["reconstructions"]
    assert scores["names"] == {"frechet": "FD-pixels", "kernel": "KD-pixels"}
    assert scores["skipped"] == {}
    assert scores["label"] == {
        "extractor": "features of pixels",
        "dimensions": 4,
        "reference": "train",
        "reference_samples": 300,
        "samples": {"reconstructions": 300, "other_images": 60},
        "dtype": "float32",
        "preprocessing": "none",
    }


def test_stretching_is_for_what_is_made_and_takes_the_place_of_rounding(
    vae: VAE, data: Dataset
) -> None:
    images = torch.tensor([[[[0.2, 0.4], [0.3, 0.6]]], [[[0.5, 0.5], [0.5, 0.5]]]])
    expected = torch.tensor([[[[0.0, 0.5], [0.25, 1.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    torch.testing.assert_close(stretch_images(images), expected)

    eight_bits = Extractor(nn.Flatten(), "FD", "KD", "pixels", "8 bits", rounded=True)
    rounded = eight_bits(images)
    torch.testing.assert_close(rounded * 255, (images * 255).round().flatten(1))
    torch.testing.assert_close(eight_bits(images, stretch=True), expected.flatten(1))

    names = ["prior", "reconstructions", "other_images"]
    plain = generation_features(vae, data, eight_bits, sources=names)
    stretched = generation_features(vae, data, eight_bits, sources=names, stretch=True)
    assert stretched.real.equal(plain.real)
    assert stretched.made["other_images"].equal(plain.made["other_images"])
    for name in ("prior", "reconstructions"):
        made = stretched.made[name]
        assert (made.amin(1) == 0).all()
        assert (made.amax(1) == 1).all()
    assert plain.label()["preprocessing"] == "8 bits"
    assert "8 bits; made images stretched" in stretched.label()["preprocessing"]


def test_batches_do_not_matter(vae: VAE, data: Dataset) -> None:
    seen = []

    def features(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images.flatten(1)

    small = Extractor(features, "FD", "KD", "pixels", batch=70)
    found = generation_features(vae, data, small, sources=["prior"])
    assert max(seen) == 70
    whole = generation_features(vae, data, PIXELS, sources=["prior"])
    assert found.real.equal(whole.real)
    assert found.made["prior"].equal(whole.made["prior"])


def test_too_few_images_for_a_covariance_is_one_warning(vae: VAE, data: Dataset) -> None:
    names = ["prior", "reconstructions"]
    few = generation_features(vae, data, PIXELS, n=4, sources=names)
    with pytest.warns(UserWarning, match="than 4 images, got 4 in the reference, 4 in") as w:
        frechet_scores(few)
    assert len(w) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_scores(generation_features(vae, data, PIXELS, n=5, sources=names))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": ["noise"]}, "sources must be among reconstructions, prior, .*, got 'noise'"),
        ({"reference": "all"}, 'reference must be "test", "train" or None'),
        ({"n": 1}, "n must be at least 2, got 1"),
        ({"scores": ["fid"]}, "scores must be among frechet, kernel, precision_recall, got 'fid'"),
        ({"extractor": None}, "must have labels to train a feature classifier"),
    ],
)
def test_bad_input(vae: VAE, data: Dataset, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generation_scores(vae, data, **({"extractor": PIXELS} | options))


def test_vectors_are_no_images(vae: VAE, data: Dataset) -> None:
    vectors = dataclasses.replace(
        data, kind="vector", train=data.train.flatten(1), test=data.test.flatten(1)
    )
    with pytest.raises(ValueError, match="must hold images, got vectors; compare vectors"):
        generation_scores(vae, vectors, PIXELS)
