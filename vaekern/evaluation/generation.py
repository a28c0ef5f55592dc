"""Scores of what a trained model generates and reconstructs, each with the words that label it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vaekern.data import Dataset, Samples
from vaekern.evaluation.extractors import Extractor, classifier_extractor
from vaekern.evaluation.features import fit_feature_classifier
from vaekern.evaluation.frechet import frechet_distance
from vaekern.evaluation.kernel_distance import SUBSET_SIZE, SUBSETS, kernel_distance
from vaekern.evaluation.precision_recall import NEIGHBOURS, precision_recall
from vaekern.models import SAMPLERS, VAE, TwoStageVAE, latent_sampler
from vaekern.models.modes import evaluation_mode
from vaekern.models.vae import CHUNK

IMAGES = 10_000  # as in the papers
RECONSTRUCTIONS = "reconstructions"
OTHERS = "other_images"  # real ones, of the split that is not the reference: for scale

SOURCES = (RECONSTRUCTIONS, *SAMPLERS, OTHERS)


@dataclass(frozen=True)
class GenerationFeatures:
    """Features of real images and of several sets of made ones.

    Attributes:
        real: [n, d] of the reference images.
        made: [n, d] of each set, by the name of its sampler, "reconstructions" or "other_images".
        skipped: why other sets could not be made.
        extractor: where they come from.
        reference: "test" or "train", the split that `real` is of.
        stretched: whether generated and reconstructed images were stretched.
    """

    real: Tensor
    made: dict[str, Tensor]
    skipped: dict[str, str]
    extractor: Extractor
    reference: str
    stretched: bool

    def label(self) -> dict[str, Any]:
        """What must stand beside every number made of them."""
        preprocessing = self.extractor.preprocessing
        if self.stretched:
            stretched = "made images stretched to [0, 1] one by one and not rounded"
            preprocessing = (
                stretched if preprocessing == "none" else f"{preprocessing}; {stretched}"
            )
        return {
            "extractor": self.extractor.name,
            "dimensions": self.real.shape[1],
            "reference": self.reference,
            "reference_samples": len(self.real),
            "samples": {name: len(features) for name, features in self.made.items()},
            "dtype": str(self.real.dtype).removeprefix("torch."),
            "preprocessing": preprocessing,
        }


@torch.no_grad()
def generation_features(
    model: VAE | TwoStageVAE,
    data: Dataset,
    extractor: Extractor | None = None,
    *,
    sources: Iterable[str] | None = None,
    reference: str | None = None,
    n: int = IMAGES,
    stretch: bool = False,
    seed: int = 0,
) -> GenerationFeatures:
    """Features of reference images, their reconstructions, and as many images of each sampler.

    Reconstructions are of the reference images, through one draw of z each. Samples are the
    decoder's means.

    Args:
        model: on its device; it is put into evaluation mode meanwhile.
        data: images; with labels where there is no extractor.
        extractor: None trains the small classifier on the data.
        sources: names in `vaekern.models.SAMPLERS`, "reconstructions" and "other_images" (as many
            real ones of the other split, for scale); all by default.
        reference: "test" or "train"; by default the test split where it holds `n` images (as in
            Dai & Wipf), else the training split.
        n: images in each set, or as many as the split holds.
        stretch: stretch generated and reconstructed images, not real ones, as the code of Dai &
            Wipf does: see `stretch_images`.
        seed: of the choice of images and of all noise.

    Raises:
        ValueError: no images, no labels to train a classifier on, an unknown source, or an option
            outside its range. A source that this model or data cannot serve is listed in
            `skipped`.
    """
    chosen = SOURCES if sources is None else tuple(sources)
    for name in chosen:
        if name not in SOURCES:
            raise ValueError(f"sources must be among {', '.join(SOURCES)}, got {name!r}")
    if reference not in (None, "test", "train"):
        raise ValueError(f'reference must be "test", "train" or None, got {reference!r}')
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    if data.kind != "image":
        raise ValueError(
            f"data must hold images, got {data.kind}s; compare vectors with frechet_distance"
        )
    if extractor is None:
        with torch.enable_grad():
            extractor = classifier_extractor(fit_feature_classifier(data, seed=seed))
    split = reference or ("test" if len(data.test) >= n else "train")
    vae = model.stage1 if isinstance(model, TwoStageVAE) else model
    device = next(vae.parameters()).device
    generator = torch.Generator(device)
    images = _pick(getattr(data, split), n, seed)

    def features(batches: Iterable[Tensor], stretched: bool = stretch) -> Tensor:
        return torch.cat([extractor(batch.cpu(), stretch=stretched) for batch in batches])

    def made(name: str) -> Iterator[Tensor]:
        generator.manual_seed(seed)
        if name == RECONSTRUCTIONS:
            for batch in images.split(CHUNK):
                yield vae.reconstruct(batch.to(device), generator=generator)
            return
        codes = SAMPLERS[name].codes
        x = None if codes is None else getattr(data, codes)
        sampler = latent_sampler(name, model, x, seed=seed)
        for z in sampler.latents(len(images), generator=generator).split(CHUNK):
            yield vae.decode(z)

    results: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    with evaluation_mode(model):
        for name in chosen:
            if name == OTHERS:
                other = "train" if split == "test" else "test"
                others = _pick(getattr(data, other), n, seed)
                if len(others) < 2:
                    skipped[name] = f"the {other} set holds one image"
                else:
                    results[name] = features(others.split(CHUNK), False)
                continue
            try:
                results[name] = features(made(name))
            except ValueError as error:  # no second stage, or too few codes for so many components
                skipped[name] = str(error)
    real = features(images.split(CHUNK), False)
    return GenerationFeatures(real, results, skipped, extractor, split, stretch)


def _pick(images: Samples, n: int, seed: int) -> Tensor:
    """n of the images, or all."""
    rows = torch.arange(len(images))
    if n < len(images):
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:n]
    return images[rows]


def frechet_scores(found: GenerationFeatures) -> dict[str, float]:
    """The Frechet distance of every set to the reference images, by the set's name.

    Warns:
        UserWarning: fewer samples than a covariance in so many dimensions takes.
    """
    dims = found.real.shape[1]
    sets = {"the reference": found.real, **found.made}
    few = {name: len(features) for name, features in sets.items() if len(features) <= dims}
    if few:
        named = ", ".join(f"{count} in {name}" for name, count in few.items())
        warnings.warn(
            f"covariances of {dims} features take more than {dims} images, got {named}, so their "
            "Frechet distances are too large; use more, or compare at this number only",
            stacklevel=2,
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="features_. holds")
        return {
            name: float(frechet_distance(found.real, features))
            for name, features in found.made.items()
        }


def kernel_scores(
    found: GenerationFeatures,
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> dict[str, float]:
    """The kernel distance of every set to the reference images, and NAME_std over the subsets.

    There is no NAME_std where every subset holds all images of both sets.
    """
    values: dict[str, float] = {}
    for name, features in found.made.items():
        distance = kernel_distance(
            found.real, features, subsets=subsets, subset_size=subset_size, seed=seed
        )
        values[name] = float(distance.mean)
        if max(len(found.real), len(features)) > subset_size:
            values[f"{name}_std"] = float(distance.std)
    return values


def precision_recall_scores(
    found: GenerationFeatures, *, neighbours: int = NEIGHBOURS
) -> dict[str, float]:
    """NAME_precision and NAME_recall of every set against the reference images."""
    values: dict[str, float] = {}
    for name, features in found.made.items():
        result = precision_recall(found.real, features, neighbours=neighbours)
        values |= {
            f"{name}_precision": float(result.precision),
            f"{name}_recall": float(result.recall),
        }
    return values


#: What `generation_scores` computes, by name.
SCORES = {
    "frechet": frechet_scores,
    "kernel": kernel_scores,
    "precision_recall": precision_recall_scores,
}


def generation_scores(
    model: VAE | TwoStageVAE,
    data: Dataset,
    extractor: Extractor | None = None,
    *,
    scores: Sequence[str] = ("frechet",),
    **options: Any,
) -> dict[str, Any]:
    """Scores of samples and reconstructions, beside what labels them.

    Args:
        model: on its device.
        data: what it was trained on.
        extractor: None trains the small classifier on the data.
        scores: "frechet", "kernel" and "precision_recall".
        **options: of `generation_features`.

    Returns:
        ``SCORE`` with the numbers of `frechet_scores` and the others, by the name of the score;
        ``names`` with what the distances are called; ``label``; and ``skipped``.

    Warns:
        UserWarning: see `frechet_scores`.

    Raises:
        ValueError: see `generation_features`, and an unknown score.

    Example:
        >>> from vaekern.data import load
        >>> from vaekern.models import ModelConfig
        >>> digits = load("digits")
        >>> model = TwoStageVAE.from_config(ModelConfig(), digits.sample_shape, (0.0, 1.0)).eval()
        >>> found = generation_scores(model, digits, sources=["prior", "other_images"])
        >>> found["names"], found["label"]["reference_samples"]
        ({'frechet': 'FD-digits', 'kernel': 'KD-digits'}, 1617)
        >>> found["frechet"]["prior"] > 10 * found["frechet"]["other_images"]
        True
    """
    for name in scores:
        if name not in SCORES:
            raise ValueError(f"scores must be among {', '.join(SCORES)}, got {name!r}")
    found = generation_features(model, data, extractor, **options)
    values: Mapping[str, Any] = {name: SCORES[name](found) for name in scores}
    return {
        **values,
        "names": {"frechet": found.extractor.frechet, "kernel": found.extractor.kernel},
        "label": found.label(),
        "skipped": found.skipped,
    }
