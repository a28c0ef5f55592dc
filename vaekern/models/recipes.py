"""What a VAE was made of, as JSON values: how its networks and its loss can be built again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vaekern.models import networks
from vaekern.models.likelihoods import LIKELIHOODS, Likelihood
from vaekern.nn import GaussianVAELoss

_LOSS_OPTIONS = (
    *("covariance", "estimate", "beta", "eps", "activation", "logvar_clamp"),
    *("reduction", "check_finite"),
)


def network_recipe(
    name: str, sample_shape: tuple[int, ...], latent_dim: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of `build_networks`, as JSON values."""
    return {
        "name": name,
        "sample_shape": list(sample_shape),
        "latent_dim": latent_dim,
        "options": dict(options),
    }


def build_networks(recipe: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
    """(encoder, decoder): a row of `networks.NETWORKS`, or the second stage.

    Raises:
        ValueError, TypeError, KeyError: a recipe that means nothing to this version.
    """
    name, latent_dim, options = recipe["name"], recipe["latent_dim"], recipe["options"]
    if name == "second_stage":
        return networks.second_stage(latent_dim, **options)
    return networks.build(name, tuple(recipe["sample_shape"]), latent_dim, **options)


def builds(recipe: Mapping[str, Any] | None, encoder: nn.Module, decoder: nn.Module) -> bool:
    """Whether the recipe gives these two: a module may have been replaced since it was built."""
    if recipe is None:
        return False
    with torch.device("meta"):  # takes no memory, and no number from torch's generator
        built = build_networks(recipe)
    return all(_outline(a) == _outline(b) for a, b in zip(built, (encoder, decoder), strict=True))


def _outline(module: nn.Module) -> tuple[str, dict[str, torch.Size]]:
    return repr(module), {name: value.shape for name, value in module.state_dict().items()}


def loss_recipe(loss: GaussianVAELoss | Likelihood) -> dict[str, Any]:
    """The options of a loss; its variance is a tensor and kept with the weights."""
    if isinstance(loss, Likelihood):
        return {"likelihood": loss.name} | loss.options()
    recipe = {name: getattr(loss, name) for name in _LOSS_OPTIONS}
    return recipe | {"x_shape": None if loss.x_shape is None else list(loss.x_shape)}


def build_loss(
    recipe: Mapping[str, Any], state: Mapping[str, Tensor]
) -> GaussianVAELoss | Likelihood:
    """The loss that fits a recipe and its own saved state.

    Raises:
        ValueError, TypeError, KeyError: a recipe that means nothing to this version.
    """
    options = dict(recipe)
    clamp = options["logvar_clamp"]
    options["logvar_clamp"] = None if clamp is None else tuple(clamp)
    if "likelihood" in options:
        return LIKELIHOODS[options.pop("likelihood")](**options)
    shape = options["x_shape"]
    if options["covariance"] == "diag-i" and shape is None and "last_variance" in state:
        shape = state["last_variance"].shape  # it was taken from the first batch
    options["x_shape"] = None if shape is None else tuple(shape)
    if options["estimate"] == "fixed" and "x_logvar" in state:
        options["variance"] = torch.ones(state["x_logvar"].shape)
    return GaussianVAELoss(options.pop("covariance"), options.pop("estimate"), **options)
