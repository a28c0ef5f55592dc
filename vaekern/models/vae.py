"""A Gaussian VAE: an encoder, a decoder and a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from vaekern import functional
from vaekern.functional import LossComponents
from vaekern.models import networks
from vaekern.models.config import ModelConfig
from vaekern.models.recipes import (
    build_loss,
    build_networks,
    builds,
    loss_recipe,
    network_recipe,
)
from vaekern.models.sharing import MissingModulesError, Shareable
from vaekern.nn import X_LOGVAR_MIN, GaussianVAELoss

# Samples decoded at once where a caller asks for many: enough to fill a machine, and 64-pixel
# images of this many samples still take only some hundred megabytes of activations.
CHUNK = 512

_ACTIVATIONS = {None: nn.Identity(), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh()}


class VAE(Shareable):
    """A Gaussian VAE, for any encoder, decoder and `GaussianVAELoss`.

    q(z|x) = N(mu(x), diag exp logvar(x)), p(z) = N(0, I), p(x|z) = N(x_hat(z), Sigma_x), where the
    loss decides what Sigma_x is and how it is found.

    Args:
        encoder: a module, x [B, *sample_shape] -> (mu [B, d], logvar [B, d]).
        decoder: a module, z [B, d] -> x_hat [B, *sample_shape]; or -> (x_hat, x_logvar) where the
            loss is learned iso-d ([B]) or learned diag-d (x's shape). Where the loss has an
            activation, the decoder returns what stands before it.
        loss: the objective.
        latent_dim: d.
        posterior_samples: L, draws of z for each input and step.

    Raises:
        ValueError: posterior_samples below 1, or above 1 with a decoder that predicts its variance.

    Example:
        >>> import torch, vaekern
        >>> encoder, decoder = vaekern.models.networks.mlp((64,), 4, width=32, output="linear")
        >>> vae = VAE(encoder, decoder, vaekern.GaussianVAELoss("iso-i", "mle"), latent_dim=4)
        >>> vae(torch.randn(16, 64)).loss.backward()
        >>> vae.sample(3).shape
        torch.Size([3, 64])

        On several processes wrap the VAE whole: its forward returns the loss, so that the gradient
        of a learned variance is exchanged like any other. Call the wrapper to train, the VAE itself
        to sample. (Here one process stands for them all; torchrun gives rank and world_size.)

        >>> from torch.nn.parallel import DistributedDataParallel
        >>> store = torch.distributed.HashStore()
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> vae.loss = vaekern.GaussianVAELoss("iso-i", "learned")
        >>> parallel = DistributedDataParallel(vae)
        >>> parallel(torch.randn(16, 64)).loss.backward()
        >>> vae.loss.x_logvar.grad is None
        False

        FSDP2 keeps a part of every weight on each process; layers that are sharded by themselves go
        before the whole VAE, and the optimiser comes afterwards.

        >>> from torch.distributed.fsdp import fully_shard
        >>> vae = fully_shard(vae)
        >>> optimizer = torch.optim.Adam(vae.parameters())
        >>> vae(torch.randn(16, 64)).loss.backward()
        >>> optimizer.step()
        >>> torch.distributed.destroy_process_group()

    Source:
        Kingma & Welling 2014, Auto-Encoding Variational Bayes, equation 10.
    """

    _kind = "VAE"
    #: What its networks were built from, where vaekern built them.
    recipe: dict[str, Any] | None = None

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        loss: GaussianVAELoss,
        latent_dim: int,
        *,
        posterior_samples: int = 1,
    ):
        super().__init__()
        if posterior_samples < 1:
            raise ValueError(f"posterior_samples must be at least 1, got {posterior_samples}")
        if posterior_samples > 1 and _predicts_variance(loss.covariance, loss.estimate):
            raise ValueError(
                f"posterior_samples must be 1 for the learned {loss.covariance!r} variance, which "
                f"the decoder predicts from one z, got {posterior_samples}; "
                "use estimate='mle', or one sample"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.loss = loss
        self.latent_dim = latent_dim
        self.posterior_samples = posterior_samples

    @classmethod
    def from_config(
        cls,
        config: ModelConfig,
        sample_shape: Sequence[int],
        value_range: tuple[float, float] | None = None,
    ) -> VAE:
        """Build stage 1 of a configuration, for data of one shape and range.

        The activation "auto" is a sigmoid where value_range is (0, 1) and none elsewhere; it is
        applied inside the loss, so the network's own output stays linear.

        Raises:
            ValueError: an option outside its range, or one that the network does not have.

        Example:
            >>> vae = VAE.from_config(ModelConfig(), (1, 8, 8), value_range=(0.0, 1.0))
        """
        objective, network = config.objective, config.network
        options: dict[str, Any] = dict(network.network_options())
        if _predicts_variance(objective.covariance, objective.estimate):
            options["variance_head"] = "sample" if objective.covariance == "iso-d" else "element"
            options["initial_variance"] = objective.variance
        activation: str | None = objective.activation
        if activation == "auto":
            activation = "sigmoid" if value_range == (0.0, 1.0) else None
        elif activation == "none":
            activation = None
        loss = GaussianVAELoss(
            objective.covariance,
            objective.estimate,
            variance=objective.variance,
            x_shape=tuple(sample_shape),
            beta=objective.beta,
            eps=objective.eps,
            activation=activation,
            logvar_clamp=objective.logvar_clamp,
        )
        options["output"] = "linear"
        vae = cls(
            *networks.build(network.network, sample_shape, network.latent_dim, **options),
            loss,
            network.latent_dim,
            posterior_samples=objective.posterior_samples,
        )
        vae.recipe = network_recipe(
            network.network, tuple(sample_shape), network.latent_dim, options
        )
        return vae

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        loss: GaussianVAELoss | None = None,
        revision: str | None = None,
    ) -> Self:
        """Load what `save_pretrained` wrote: in evaluation mode, on the CPU, in the saved dtypes.

        Args:
            source: a directory, or "user/name" on the Hugging Face Hub.
            encoder: needed where vaekern did not build the saved one; its weights are replaced.
            decoder: likewise.
            loss: instead of the one that config.json describes; its variance is replaced.
            revision: of a repository on the hub.

        Raises:
            RunError: no such directory, or a file that is missing, damaged, foreign, of a newer
                version or of another model.
            ValueError: modules that only you can give are missing.
            ModuleNotFoundError: safetensors or huggingface_hub is not installed.

        Example:
            >>> vae = VAE.from_pretrained("models/digits")  # doctest: +SKIP
            >>> vae = VAE.from_pretrained("ada/own", encoder=e, decoder=d)  # doctest: +SKIP
        """
        return cls._load(source, revision, {"encoder": encoder, "decoder": decoder, "loss": loss})

    def _describe(self) -> dict[str, Any]:
        known = builds(self.recipe, self.encoder, self.decoder)
        return {
            "networks": self.recipe if known else None,
            "loss": loss_recipe(self.loss),
            "latent_dim": self.latent_dim,
            "posterior_samples": self.posterior_samples,
        }

    def _load_hint(self) -> str | None:
        if self._describe()["networks"] is not None:
            return None
        return "VAE.from_pretrained(directory, encoder=..., decoder=...)"

    @classmethod
    def _from_description(
        cls, description: Mapping[str, Any], state: Mapping[str, Tensor], given: Mapping[str, Any]
    ) -> Self:
        encoder, decoder, loss = given["encoder"], given["decoder"], given["loss"]
        if description["networks"] is not None:
            built = build_networks(description["networks"])
            encoder = built[0] if encoder is None else encoder
            decoder = built[1] if decoder is None else decoder
        elif encoder is None or decoder is None:
            raise MissingModulesError(
                "its networks were not built by vaekern, so encoder and decoder must be given; use "
                "VAE.from_pretrained(directory, encoder=..., decoder=...)"
            )
        if loss is None:
            own = {k.removeprefix("loss."): v for k, v in state.items() if k.startswith("loss.")}
            loss = build_loss(description["loss"], own)
        vae = cls(
            encoder,
            decoder,
            loss,
            description["latent_dim"],
            posterior_samples=description["posterior_samples"],
        )
        vae.recipe = description["networks"]
        return vae

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, logvar) of q(z|x), both [B, d], within the loss's logvar_clamp."""
        mu, logvar = self.encoder(x)
        if self.loss.logvar_clamp is not None:
            # The noise must be drawn from the distribution whose KL is charged.
            logvar = logvar.clamp(*self.loss.logvar_clamp)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x|z) [B, *sample_shape], the loss's activation applied."""
        mean: Tensor = _ACTIVATIONS[self.loss.activation](self._decoder_output(z)[0])
        return mean

    def reconstruct(
        self, x: Tensor, sample_z: bool = True, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The decoder's mean at one draw of z ~ q(z|x), or at its mean where sample_z is False."""
        mu, logvar = self.encode(x)
        z = functional.reparameterize(mu, logvar, generator=generator) if sample_z else mu
        return self.decode(z)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n decoder means [n, *sample_shape] at z ~ N(0, I). No pixel noise is added."""
        return self.decode_in_chunks(self.sample_prior(n, generator=generator))

    def sample_prior(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I), [n, d], on the model's device and in its dtype."""
        like = next(self.parameters())
        return torch.randn(
            n, self.latent_dim, generator=generator, device=like.device, dtype=like.dtype
        )

    def decode_in_chunks(self, z: Tensor) -> Tensor:
        """`decode`, without gradient and a chunk at a time, so that memory stays bounded."""
        with torch.no_grad():
            return torch.cat([self.decode(chunk) for chunk in z.split(CHUNK)])

    def forward(
        self,
        x: Tensor,
        *,
        beta: float | Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> LossComponents:
        """The loss and its components for one batch x [B, *sample_shape].

        z is drawn with `generator`, or made of `noise`, normal numbers [B, d] or [L, B, d]:
        for compiled networks, and for several processes that share a batch.

        Returns what `GaussianVAELoss.components` returns: .loss carries the graph; .reconstruction,
        .kl, .kl_per_dim, .x_logvar and .mse are detached.
        """
        mu, logvar = self.encode(x)
        return self.components(x, mu, logvar, beta=beta, generator=generator, noise=noise)

    def components(
        self,
        x: Tensor,
        mu: Tensor,
        logvar: Tensor,
        *,
        beta: float | Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        per_dim: bool = True,
    ) -> LossComponents:
        """`forward` for a batch that is encoded already, for callers who look at q(z|x) too."""
        if self.posterior_samples == 1:
            z = functional.reparameterize(mu, logvar, generator=generator, noise=noise)
            x_hat, x_logvar = self._decoder_output(z)
        else:
            z = functional.reparameterize(
                mu, logvar, samples=self.posterior_samples, generator=generator, noise=noise
            )
            x_hat, x_logvar = self._decoder_output(z.flatten(0, 1))
            x_hat = x_hat.unflatten(0, z.shape[:2])
        return self.loss.components(
            x_hat, x, mu, logvar, x_logvar=x_logvar, beta=beta, per_dim=per_dim
        )

    def draw_noise(
        self,
        batch: int,
        generator: torch.Generator | None = None,
        *,
        like: Tensor | None = None,
    ) -> Tensor:
        """What `forward` takes as noise for a batch of so many: the numbers it would draw.

        They have the device and precision of `like`, by default of the first parameter.
        """
        like = next(self.parameters()) if like is None else like
        wide = torch.float64 if like.dtype is torch.float64 else torch.float32
        shape = (self.posterior_samples, batch, self.latent_dim)
        draws = torch.randn(shape, generator=generator, device=like.device, dtype=wide)
        return draws[0] if self.posterior_samples == 1 else draws

    def decoder_distribution(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(x_hat, x_logvar) of p(x|z), as `functional.gaussian_nll` takes them beside x.

        x_hat [B, *sample_shape] stands before the loss's activation. x_logvar broadcasts to it: the
        decoder's own where it predicts one, else `x_logvar`, the variance found in training.

        Raises:
            ValueError: there is none yet (mle diag-i without x_shape, before the first batch).
        """
        x_hat, x_logvar = self._decoder_output(z)
        if x_logvar is None:
            x_logvar = self.x_logvar
            if x_logvar is None:
                raise ValueError(
                    "the loss must have seen a batch in training mode before its variance can be "
                    "used, got none; train a step, or give GaussianVAELoss an x_shape"
                )
            return x_hat, x_logvar
        if x_logvar.shape == x_hat.shape[:1]:  # learned iso-d: one per sample
            x_logvar = x_logvar.view(-1, *[1] * (x_hat.dim() - 1))
        return x_hat, x_logvar.clamp(min=X_LOGVAR_MIN)  # as the loss bounds it

    def _decoder_output(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """x_hat before the loss's activation, and x_logvar where the decoder predicts it."""
        output = self.decoder(z)
        return output if isinstance(output, tuple) else (output, None)

    @property
    def x_logvar(self) -> Tensor | None:
        """log Sigma_x as far as it is the same for every input, detached: [1] or x's shape.

        The learned or fixed variance, or the running estimate of mle (its mean over the inputs
        for iso-d and diag-d); None for learned iso-d and diag-d, where it is a function of z.
        """
        loss = self.loss
        if _predicts_variance(loss.covariance, loss.estimate):
            return None
        if loss.estimate == "mle":
            if loss.running_variance is None:  # diag-i without x_shape, before the first batch
                return None
            # eps as in the objective: the pixels that never change have a variance of zero.
            eps = torch.finfo(torch.float32).tiny if loss.covariance == "iso-i" else loss.eps
            return torch.log(loss.running_variance + eps)
        return loss.x_logvar.detach()


def _predicts_variance(covariance: str, estimate: str) -> bool:
    """Whether the decoder has to return x_logvar: the variance differs from input to input."""
    return estimate == "learned" and covariance in ("iso-d", "diag-d")
