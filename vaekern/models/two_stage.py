"""The two-stage VAE: a second VAE learns what the first one's latents look like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from vaekern.models import networks
from vaekern.models.batch_norm import fit_batch_norm
from vaekern.models.config import ModelConfig
from vaekern.models.modes import evaluation_mode
from vaekern.models.posterior import Posterior
from vaekern.models.recipes import network_recipe
from vaekern.models.sharing import MissingModulesError, Shareable
from vaekern.models.vae import CHUNK, VAE
from vaekern.nn import GaussianVAELoss

if TYPE_CHECKING:
    from vaekern.data import Samples


class TwoStageVAE(Shareable):
    """Stage 1 finds the manifold of the data, stage 2 the distribution of the latents on it.

    A VAE whose decoder variance is learned reconstructs well, but its aggregate posterior
    q(z) = E_x q(z|x) is not N(0, I), so samples from the prior decode to nothing like the data.
    The second VAE is trained on z ~ q(z), where data and latents have the same dimension and
    nothing has to be left out; its samples replace those of the prior:

        u ~ N(0, I),   z = z_hat(u) + gamma n,   n ~ N(0, I),   x = x_hat(z).

    gamma is the standard deviation that stage 2 learned; x is stage 1's mean, with no pixel noise.

    Args:
        stage1: a VAE of the data, with any objective.
        stage2: a VAE of stage 1's latents, with one variance for all of them (iso-i, diag-i).

    Raises:
        ValueError: stage 2's variance depends on its input.

    Example:
        >>> import torch
        >>> from vaekern.models.config import ModelConfig, NetworkConfig
        >>> config = ModelConfig(network=NetworkConfig(latent_dim=4, width=32, second_width=32))
        >>> model = TwoStageVAE.from_config(config, (1, 8, 8), value_range=(0.0, 1.0))
        >>> images = torch.rand(16, 1, 8, 8)
        >>> model.stage1(images).loss.backward()  # stage 1 trains on images
        >>> z = model.posterior(images).sample()
        >>> model.stage2(z).loss.backward()  # stage 2 trains on its latents
        >>> model.sample(5).shape
        torch.Size([5, 1, 8, 8])

    Source:
        Dai & Wipf 2019, Diagnosing and Enhancing VAE Models, section 4.
    """

    _kind = "TwoStageVAE"

    def __init__(self, stage1: VAE, stage2: VAE):
        super().__init__()
        covariance = getattr(stage2.loss, "covariance", "none")
        if covariance not in ("iso-i", "diag-i"):
            raise ValueError(
                "stage2 must have one variance for all inputs (covariance 'iso-i' or 'diag-i'), "
                f"because sampling adds its noise, got {covariance!r}"
            )
        self.stage1 = stage1
        self.stage2 = stage2

    @classmethod
    def from_config(
        cls,
        config: ModelConfig,
        sample_shape: Sequence[int],
        value_range: tuple[float, float] | None = None,
    ) -> TwoStageVAE:
        """Stage 1 as `VAE.from_config` builds it, and the paper's second stage (learned iso-i).

        Raises:
            ValueError: an option outside its range, or one that the network does not have.
        """
        network = config.network
        size = network.latent_dim
        options = {"width": network.second_width, "layers": network.second_layers}
        encoder, decoder = networks.second_stage(size, **options)
        stage2 = VAE(encoder, decoder, GaussianVAELoss("iso-i", "learned"), size)
        stage2.recipe = network_recipe("second_stage", (size,), size, options)
        return cls(VAE.from_config(config, sample_shape, value_range), stage2)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        stage1: VAE | None = None,
        stage2: VAE | None = None,
        revision: str | None = None,
    ) -> Self:
        """Load what `save_pretrained` or `vaekern train` wrote: evaluation mode, on the CPU.

        Args:
            source: a directory, such as a run's, or "user/name" on the Hugging Face Hub.
            stage1: a VAE to load into, needed where vaekern did not build the saved networks.
            stage2: likewise.
            revision: of a repository on the hub.

        Raises:
            RunError: no such directory, or a file that is missing, damaged, foreign, of a newer
                version or of another model.
            ValueError: modules that only you can give are missing.
            ModuleNotFoundError: safetensors or huggingface_hub is not installed.

        Example:
            >>> model = TwoStageVAE.from_pretrained("runs/digits-iso-i-mle")  # doctest: +SKIP
            >>> model.sample(64).shape  # doctest: +SKIP
            torch.Size([64, 1, 8, 8])
        """
        return cls._load(source, revision, {"stage1": stage1, "stage2": stage2})

    def _describe(self) -> dict[str, Any]:
        return {"stage1": self.stage1._describe(), "stage2": self.stage2._describe()}

    def _load_hint(self) -> str | None:
        return _hint(
            [name for name, stage in self._describe().items() if stage["networks"] is None]
        )

    @classmethod
    def _from_description(
        cls, description: Mapping[str, Any], state: Mapping[str, Tensor], given: Mapping[str, Any]
    ) -> Self:
        names = ("stage1", "stage2")
        hint = _hint([n for n in names if given[n] is None and description[n]["networks"] is None])
        if hint is not None:
            raise MissingModulesError(f"its networks were not built by vaekern; use {hint}")
        stages = dict(given)
        for name in names:
            if stages[name] is None:
                own = {k.removeprefix(f"{name}."): v for k, v in state.items()}
                nothing = dict.fromkeys(("encoder", "decoder", "loss"))
                stages[name] = VAE._from_description(description[name], own, nothing)
        return cls(**stages)

    @torch.no_grad()
    def fit_batch_norm(
        self,
        x: Samples,
        *,
        batch_size: int = 100,
        generator: torch.Generator | None = None,
    ) -> None:
        """Estimate stage 1's batch-norm statistics over x, the training set [N, *sample_shape].

        The encoder sees x and the decoder z ~ q(z|x), as in training. Call it before `posterior`
        and before any evaluation; it leaves stage 1 in evaluation mode. See
        `vaekern.models.batch_norm.fit_batch_norm`.
        """
        device = next(self.parameters()).device
        # Pieces of nearly equal size: a last batch of one sample cannot be normalised by itself.
        pieces = x.tensor_split(math.ceil(len(x) / batch_size))
        fit_batch_norm(
            self.stage1,
            (piece.to(device) for piece in pieces),
            lambda piece: self.stage1.reconstruct(piece, generator=generator),
        )

    @torch.no_grad()
    def posterior(self, x: Samples) -> Posterior:
        """Stage 1's q(z|x) for every sample of x, its encoder run once, in evaluation mode."""
        device = next(self.parameters()).device
        with evaluation_mode(self.stage1):
            parts = [self.stage1.posterior(piece.to(device)) for piece in x.split(CHUNK)]
        return Posterior.join(parts)

    @torch.no_grad()
    def sample_latents(
        self, n: int, *, stage: int = 2, generator: torch.Generator | None = None
    ) -> Tensor:
        """n latents z [n, d]: from the prior (stage 1), or z_hat(u) + gamma n (stage 2).

        Raises:
            ValueError: a stage that is neither 1 nor 2.
        """
        if stage not in (1, 2):
            raise ValueError(f"stage must be 1 (the prior) or 2 (the second stage), got {stage!r}")
        if stage == 1:
            return self.stage1.sample_prior(n, generator=generator)
        z_hat = self.stage2.sample(n, generator=generator)
        x_logvar = self.stage2.x_logvar
        assert x_logvar is not None  # __init__ admits only variances that all inputs share
        noise = torch.randn(
            z_hat.shape, generator=generator, device=z_hat.device, dtype=z_hat.dtype
        )
        return z_hat + torch.exp(0.5 * x_logvar) * noise

    def sample(self, n: int, *, stage: int = 2, generator: torch.Generator | None = None) -> Tensor:
        """n samples [n, *sample_shape]: decoder means at `sample_latents`.

        Put the model in evaluation mode first where its networks have batch norm.

        Raises:
            ValueError: a stage that is neither 1 nor 2.
        """
        return self.stage1.decode_in_chunks(
            self.sample_latents(n, stage=stage, generator=generator)
        )

    def reconstruct(
        self, x: Tensor, sample_z: bool = True, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Stage 1's reconstruction of x, at one draw of z, or at its mean."""
        return self.stage1.reconstruct(x, sample_z, generator=generator)


def _hint(missing: list[str]) -> str | None:
    """How a model is loaded whose `missing` stages hold networks that vaekern did not build."""
    if not missing:
        return None
    arguments = ", ".join(f"{name}=VAE(...)" for name in missing)
    return f"TwoStageVAE.from_pretrained(directory, {arguments})"
