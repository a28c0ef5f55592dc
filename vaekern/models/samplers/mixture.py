"""A mixture of Gaussians fitted to the codes of the training set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from vaekern._optional import require
from vaekern.models.samplers.base import LatentSampler
from vaekern.models.vae import VAE

# The settings of Ghosh et al., which Takida et al. take over.
MAX_ITERATIONS = 2000
TOLERANCE = 1e-3


class GaussianMixtureSampler(LatentSampler):
    r"""z from a mixture of Gaussians, fitted to the encoder's means of the training set.

    .. math:: p(z) = \sum_k w_k \, N(z; m_k, S_k)

    Any encoder gets a distribution of codes in this way, one without a prior as well.

    Args:
        vae: stage 1.
        weights: [K], w.
        means: [K, d], m.
        covariances: [K, d, d], S.

    Example:
        >>> import vaekern
        >>> encoder, decoder = vaekern.models.networks.mlp((6,), 2, width=8, output="linear")
        >>> vae = VAE(encoder, decoder, vaekern.GaussianVAELoss(), latent_dim=2)
        >>> codes = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> sampler = GaussianMixtureSampler.fit(vae, codes + 3, components=2)
        >>> sampler.sample(5).shape, bool(sampler.latents(100).mean() > 2)
        (torch.Size([5, 6]), True)

    Source:
        Ghosh et al. 2020, From Variational to Deterministic Autoencoders, section 4, and its code;
        Takida et al. 2022, section 6, with 10 and 100 components.
    """

    def __init__(self, vae: VAE, weights: Tensor, means: Tensor, covariances: Tensor):
        super().__init__(vae)
        device = next(vae.parameters()).device
        self.weights, self.means, self.covariances = (
            each.detach().double().to(device) for each in (weights, means, covariances)
        )
        self._roots = torch.linalg.cholesky(self.covariances)

    @classmethod
    def fit(cls, vae: VAE, codes: Tensor, *, components: int = 10, seed: int = 0) -> Self:
        """Fit the mixture to codes [N, d], by scikit-learn's expectation maximisation.

        Full covariances, at most 2000 iterations, tolerance 1e-3, started by k-means; everything
        else is scikit-learn's default. In float64, on the CPU.

        Args:
            vae: stage 1.
            codes: [N, d], the encoder's means.
            components: K.
            seed: of the k-means start.

        Warns:
            UserWarning: fewer codes than K (d + 1), which K covariances in d dimensions take.

        Raises:
            ValueError: fewer codes than components, or codes that are not finite.
            ModuleNotFoundError: scikit-learn is not installed.
        """
        mixture = require("sklearn.mixture", "fitting a mixture", package="scikit-learn")
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        if codes.ndim != 2 or codes.shape[1] != vae.latent_dim:
            raise ValueError(
                f"codes must have shape [N, {vae.latent_dim}], got {list(codes.shape)}; "
                "give the encoder's means"
            )
        count, dims = codes.shape
        if count < components:
            raise ValueError(
                f"codes must hold at least one sample for each of {components} components, got "
                f"{count}; use more samples or fewer components"
            )
        if not bool(codes.isfinite().all()):
            raise ValueError("codes must be finite, got infinite or NaN values; train again")
        if count < components * (dims + 1):
            warnings.warn(
                f"{components} covariances in {dims} dimensions take at least "
                f"{components * (dims + 1)} samples, got {count}, so some are nearly singular; "
                "use more samples or fewer components",
                stacklevel=2,
            )
        fitted = mixture.GaussianMixture(
            components,
            covariance_type="full",
            max_iter=MAX_ITERATIONS,
            tol=TOLERANCE,
            random_state=seed % 2**32,
        ).fit(codes.detach().double().cpu().numpy())
        return cls(
            vae,
            torch.from_numpy(fitted.weights_),
            torch.from_numpy(fitted.means_),
            torch.from_numpy(fitted.covariances_),
        )

    def latents(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        like = next(self.vae.parameters())
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(
            n, self.means.shape[1], generator=generator, device=like.device, dtype=torch.float64
        )
        for k in chosen.unique().tolist():  # a root for each sample would take n d^2 numbers
            rows = chosen == k
            z[rows] = self.means[k] + z[rows] @ self._roots[k].T
        return z.to(like.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """What `from_tensors` takes: the whole mixture, for a file."""
        return {"weights": self.weights, "means": self.means, "covariances": self.covariances}

    @classmethod
    def from_tensors(cls, vae: VAE, tensors: Mapping[str, Tensor]) -> Self:
        """The mixture that `tensors` gave.

        Raises:
            KeyError: a tensor is missing.
            ValueError: shapes that do not fit one another or the VAE.
        """
        weights, means, covariances = (
            tensors[name] for name in ("weights", "means", "covariances")
        )
        count, dims = len(weights), vae.latent_dim
        if means.shape != (count, dims) or covariances.shape != (count, dims, dims):
            raise ValueError(
                f"a mixture of {count} Gaussians in {dims} dimensions must have means "
                f"[{count}, {dims}] and covariances [{count}, {dims}, {dims}], got "
                f"{list(means.shape)} and {list(covariances.shape)}"
            )
        return cls(vae, weights, means, covariances)
