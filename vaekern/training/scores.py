"""The numbers of a finished run."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vaekern import diagnostics, functional
from vaekern.data import Dataset, Samples
from vaekern.evaluation.extractors import classifier_extractor
from vaekern.evaluation.features import fit_feature_classifier
from vaekern.evaluation.generation import (
    OTHERS,
    RECONSTRUCTIONS,
    frechet_scores,
    generation_features,
)
from vaekern.models import VAE, Posterior, TwoStageVAE
from vaekern.models.likelihoods import Likelihood
from vaekern.models.vae import CHUNK

# The maximum mean discrepancy compares all pairs, the Frechet distance needs many samples.
MMD_SAMPLES = 5_000
FRECHET_SAMPLES = 10_000
#: What is compared with training images, and what metrics.json calls it.
COMPARED = {
    RECONSTRUCTIONS: "fd_reconstructions",
    "prior": "fd_stage1",
    "second-stage": "fd_stage2",
    OTHERS: "fd_test_images",
}
LABEL = ("extractor", "dimensions", "dtype", "preprocessing")


@torch.no_grad()
def compute_scores(
    model: TwoStageVAE,
    data: Dataset,
    train: Posterior,
    *,
    two_stages: bool,
    seed: int,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Likelihood, active units, discrepancies and Frechet distances of a model in evaluation mode.

    Args:
        model: the model.
        data: what it was trained on.
        train: its posterior of the training set.
        two_stages: whether the second stage was trained too.
        seed: of the feature classifier and of the images for the Frechet distances.
        generator: of all other noise, on the model's device.

    Returns:
        Names and values as metrics.json holds them; what a system does not have is left out. The
        likelihood is the negative ELBO of the test set in nats per dimension, with the variance
        found in training and one z per input. For mle iso-d and diag-d that is one number too: a
        variance that was fitted to the scored input itself would be no likelihood.
    """
    vae = model.stage1
    scores: dict[str, Any] = _likelihood(vae, data.test, generator)
    scores["latent_dim"] = vae.latent_dim
    scores["active_units_std"] = diagnostics.active_units(train.center, definition="std").active
    if vae.family.stochastic and vae.family.closed_form:
        # The definition that the picture of the encoder's variances shows.
        spectrum = diagnostics.encoder_variance_spectrum(
            train.diagonal, scale_tril=train.scale_tril
        )
        scores["active_units"] = spectrum.active
        if train.scale_tril is None:
            regime = diagnostics.polarized_regime(train.mu, train.logvar)
            scores["delta_kl"] = float(regime.delta_kl)
    scores |= _discrepancies(model, train, two_stages, generator)
    return scores | _frechet_distances(model, data, two_stages, seed)


def _likelihood(vae: VAE, x: Samples, generator: torch.Generator) -> dict[str, Any]:
    """The negative ELBO of the test set with the variance fitted in training, one z per input.

    Of a decoder that is no distribution of x, what stands in the place of its likelihood.
    """
    nll = kl = mse = log_sigma = 0.0
    device = generator.device
    for batch in x.split(CHUNK):
        batch = batch.to(device)
        q = vae.posterior(batch)
        if not vae.family.closed_form:
            z, ratio = q.sample_and_ratio(generator=generator)
            kl += float(ratio.double().sum())
        else:
            z = q.sample(generator=generator)
            if q.scale_tril is not None:
                kl += float(functional.full_gaussian_kl(q.mu, q.scale_tril, reduction="sum"))
            elif vae.family.stochastic:
                kl += float(functional.gaussian_kl(q.mu, q.logvar, reduction="sum"))
        found = vae.score(batch, z)
        nll += float(found.nll.double().sum())
        mse += float(found.squared_error.double().sum())
        if found.x_logvar is not None:
            log_sigma += 0.5 * float(found.x_logvar.mean()) * len(batch)
    scores: dict[str, Any] = {"mse": mse / x.numel(), "dimensions": math.prod(x.shape[1:])}
    if not isinstance(vae.loss, Likelihood):
        scores["sigma"] = math.exp(log_sigma / len(x))
    if vae.loss_in_nats:
        scores["reconstruction_nats_per_dim"] = nll / x.numel()
    if vae.latent_term == "kl":
        scores |= {"kl_nats_per_dim": kl / x.numel(), "kl_nats": kl / len(x)}
        if vae.loss_in_nats:
            scores["nll_nats_per_dim"] = (nll + kl) / x.numel()
            scores["nll_name"] = _nll_name(vae)
    return scores


def _nll_name(vae: VAE) -> str:
    if not vae.bounds_likelihood:
        return "cross-entropy + KL"
    discrete = isinstance(vae.loss, Likelihood) and vae.loss.discrete
    return "NLL bound of grey levels" if discrete else "NLL bound"


def _discrepancies(
    model: TwoStageVAE, train: Posterior, two_stages: bool, generator: torch.Generator
) -> dict[str, float]:
    """MMD^2 to N(0, I) of the aggregate posteriors: q(z) of stage 1 and q(u) of stage 2."""
    z = train.sample(generator=generator)
    rows = torch.randperm(len(z), generator=generator, device=z.device)[:MMD_SAMPLES]
    z = z[rows]
    values = {"mmd_stage1": float(_mmd(z, generator))}
    if two_stages:
        u = model.stage2.posterior(z).sample(generator=generator)
        values["mmd_stage2"] = float(_mmd(u, generator))
    return values


def _mmd(latents: Tensor, generator: torch.Generator) -> Tensor:
    return diagnostics.maximum_mean_discrepancy(latents, generator=generator)


def _frechet_distances(
    model: TwoStageVAE, data: Dataset, two_stages: bool, seed: int
) -> dict[str, Any]:
    """Frechet distances to the training images in the features of a classifier trained on them."""
    if data.kind != "image" or data.train_labels is None or data.test_labels is None:
        return {}
    if len(data.train_labels.unique()) < 2:
        return {}  # one class teaches a classifier nothing
    with torch.enable_grad():
        classifier = fit_feature_classifier(data, seed=seed)
    found = generation_features(
        model,
        data,
        classifier_extractor(classifier),
        sources=[name for name in COMPARED if two_stages or name != "second-stage"],
        reference="train",
        n=FRECHET_SAMPLES,
        seed=seed,
    )
    values: dict[str, Any] = {
        COMPARED[name]: value for name, value in frechet_scores(found).items()
    }
    label = found.label()
    if OTHERS in found.made:
        values["fd_test_samples"] = label["samples"][OTHERS]
    return values | {
        "fd_name": found.extractor.frechet,
        "fd_samples": label["reference_samples"],
        **{f"fd_{key}": label[key] for key in LABEL},
        "fd_classifier_accuracy": float(classifier.accuracy),
    }
