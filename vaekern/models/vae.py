"""A VAE: an encoder, a posterior, a decoder and a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeGuard

import torch
from torch import Tensor, nn

from vaekern import _checks, functional
from vaekern.functional import LossComponents
from vaekern.models import networks
from vaekern.models.config import ModelConfig
from vaekern.models.latent_terms import LATENT_TERMS
from vaekern.models.likelihoods import (
    LIKELIHOODS,
    Likelihood,
    LogisticMixture,
    SquaredError,
    share_of_batch,
)
from vaekern.models.networks.heads import Encoder
from vaekern.models.penalties import PENALTIES, DecoderPenalty
from vaekern.models.posterior import Diagonal, Family, Posterior, build_family
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


class Scored(NamedTuple):
    """What `VAE.score` returns."""

    nll: Tensor  # [B]: -log p(x|z) in nats
    squared_error: Tensor  # [B]: |x - E[x|z]|^2
    x_logvar: Tensor | None  # log Sigma_x, broadcasting to x; None for what is no Gaussian


class VAE(Shareable):
    """A VAE, for any encoder, decoder and loss; and the autoencoders it is compared with.

    q(z|x) = N(mu(x), diag exp logvar(x)), p(z) = N(0, I), p(x|z) = N(x_hat(z), Sigma_x), where the
    loss decides what Sigma_x is and how it is found. What is minimised is

        -log p(x|z) + beta T + penalty,    T = KL(q(z|x) || p(z)),

    each part of which may be another: q by `posterior`, p(x|z) by `loss`, T by `latent_term`.

    Args:
        encoder: a module, x [B, *sample_shape] -> (mu [B, d], logvar [B, d]), and a third tensor
            [B, k] where the posterior has extra outputs.
        decoder: a module, z [B, d] -> x_hat [B, *sample_shape]; or -> (x_hat, x_logvar) where the
            loss is learned iso-d ([B]) or learned diag-d (x's shape). Where the loss has an
            activation, the decoder returns what stands before it.
        loss: a `GaussianVAELoss`, or another of `vaekern.models.likelihoods`.
        latent_dim: d.
        posterior_samples: L, draws of z for each input and step.
        posterior: the family of q(z|x); None is the diagonal Gaussian.
        latent_term: T, a row of `vaekern.models.latent_terms.LATENT_TERMS`.
        penalty: what is charged for the decoder.

    Raises:
        ValueError: posterior_samples below 1, or above 1 with a decoder that predicts its variance,
            an unknown latent_term or penalty, the KL of a deterministic posterior, or a loss whose
            reduction is "sum" or "none" in a system whose loss is put together from parts.

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
        loss: GaussianVAELoss | Likelihood,
        latent_dim: int,
        *,
        posterior_samples: int = 1,
        posterior: Family | None = None,
        latent_term: str = "kl",
        penalty: DecoderPenalty | None = None,
    ):
        super().__init__()
        if posterior_samples < 1:
            raise ValueError(f"posterior_samples must be at least 1, got {posterior_samples}")
        if posterior_samples > 1 and _predicts_variance(loss):
            raise ValueError(
                f"posterior_samples must be 1 for the learned {loss.covariance!r} variance, which "
                f"the decoder predicts from one z, got {posterior_samples}; "
                "use estimate='mle', or one sample"
            )
        family = posterior or Diagonal()
        _checks.option("latent_term", latent_term, LATENT_TERMS)
        if latent_term == "kl" and not family.stochastic:
            raise ValueError(
                "latent_term must not be 'kl' with a deterministic posterior, whose KL is infinite;"
                " use 'squared-norm', 'mmd' or 'none'"
            )
        if penalty is not None:
            _checks.option("penalty", penalty.kind, PENALTIES)
        self.encoder = encoder
        self.decoder = decoder
        self.loss = loss
        self.latent_dim = latent_dim
        self.posterior_samples = posterior_samples
        self.family = family
        self.latent_term = latent_term
        self.penalty = penalty
        added = latent_term != "kl" or not family.closed_form or penalty is not None
        if added and loss.reduction not in ("batchmean", "mean"):
            raise ValueError(
                "the loss's reduction must be 'batchmean' or 'mean' where a mean over the batch is "
                f"added to it (a flow's KL, another latent term, a penalty), got "
                f"{loss.reduction!r}; use 'batchmean'"
            )

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
            ValueError: an option outside its range, one that the network does not have, or data
                that the likelihood cannot be of.

        Example:
            >>> vae = VAE.from_config(ModelConfig(), (1, 8, 8), value_range=(0.0, 1.0))
        """
        network, system = config.network, config.system
        shape, d = tuple(sample_shape), network.latent_dim
        loss = _make_loss(config, shape, value_range)
        family = build_family(
            system.posterior, variance=system.posterior_variance, steps=system.flow_steps
        )
        options: dict[str, Any] = dict(network.network_options())
        if _predicts_variance(loss):
            options["variance_head"] = "sample" if loss.covariance == "iso-d" else "element"
            options["initial_variance"] = config.objective.variance
        options["output"] = "linear"
        if family.extra_outputs(d):
            options["extra_outputs"] = family.extra_outputs(d)
        if isinstance(loss, Likelihood) and loss.output_shape(shape) != shape:
            options["decoder_shape"] = list(loss.output_shape(shape))
        if system.spectral_norm:
            options["spectral_norm"] = True
        encoder, decoder = networks.build(network.network, shape, d, **options)
        if isinstance(encoder, Encoder) and encoder.extra is not None:
            family.start(encoder.extra, d)
        penalty = None
        if system.decoder_penalty != "none":
            penalty = DecoderPenalty(system.decoder_penalty, system.penalty_weight)
        vae = cls(
            encoder,
            decoder,
            loss,
            d,
            posterior_samples=config.objective.posterior_samples,
            posterior=family,
            latent_term=system.latent_term,
            penalty=penalty,
        )
        vae.recipe = network_recipe(network.network, shape, d, options)
        return vae

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        loss: GaussianVAELoss | Likelihood | None = None,
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
            "posterior": self.family.describe(),
            "latent_term": self.latent_term,
            "penalty": None if self.penalty is None else self.penalty.describe(),
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
        penalty = description.get("penalty")
        vae = cls(
            encoder,
            decoder,
            loss,
            description["latent_dim"],
            posterior_samples=description["posterior_samples"],
            # Absent where the model was written before there were others.
            posterior=build_family(**description.get("posterior", {"name": "diagonal"})),
            latent_term=description.get("latent_term", "kl"),
            penalty=None if penalty is None else DecoderPenalty(**penalty),
        )
        vae.recipe = description["networks"]
        return vae

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, logvar) of q(z|x), both [B, d], within the loss's logvar_clamp.

        All of q where it is a diagonal Gaussian. Of a full covariance logvar holds the marginal
        variances, of a deterministic posterior -inf; of a flow, mu is the image of the base's mean
        and logvar the base's. `posterior` has the rest.
        """
        q = self.posterior(x)
        return q.center, q.logvar

    def posterior(self, x: Tensor) -> Posterior:
        """q(z|x), within the loss's logvar_clamp.

        Raises:
            TypeError, ValueError: the encoder returns something else than (mu, logvar), each
                [B, d].
        """
        encoded = self.encoder(x)
        self._check_encoded(encoded)
        mu, logvar, *extra = encoded
        if self.loss.logvar_clamp is not None:
            # The noise must be drawn from the distribution whose KL is charged.
            logvar = logvar.clamp(*self.loss.logvar_clamp)
        q: Posterior = self.family(mu, logvar, extra[0] if extra else None)
        return q

    def _check_encoded(self, encoded: Any) -> None:
        wanted = f"(mu, logvar), both [B, {self.latent_dim}]"
        if not isinstance(encoded, (tuple, list)) or len(encoded) < 2:
            got = type(encoded).__name__
            if isinstance(encoded, Tensor):
                got = f"one tensor {list(encoded.shape)}"
            raise TypeError(
                f"encoder must return {wanted}, got {got}; split it, as in "
                "output.chunk(2, dim=-1), in the encoder's forward"
            )
        shapes = [list(part.shape) for part in encoded[:2]]
        if shapes[0] != shapes[1] or shapes[0][-1:] != [self.latent_dim]:
            raise ValueError(
                f"encoder must return {wanted}, got {shapes[0]} and {shapes[1]}; change its last "
                "layer or latent_dim"
            )

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x|z) [B, *sample_shape], the loss's activation applied."""
        return self._mean(self._decoder_output(z)[0])

    def _mean(self, output: Tensor) -> Tensor:
        """E[x|z] from the decoder's output."""
        if isinstance(self.loss, Likelihood):
            return self.loss.mean(output)
        mean: Tensor = _ACTIVATIONS[self.loss.activation](output)
        return mean

    def reconstruct(
        self, x: Tensor, sample_z: bool = True, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The decoder's mean at one draw of z ~ q(z|x), or at its mean where sample_z is False."""
        q = self.posterior(x)
        return self.decode(q.sample(generator=generator) if sample_z else q.center)

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
        .kl, .kl_per_dim, .x_logvar and .mse are detached. They mean, by system:

        - loss: reconstruction + beta kl + penalty;
        - reconstruction: -log p(x|z) in nats; the cross-entropy for a Bernoulli decoder, the
          squared error |x - x_hat|^2 where the loss is that;
        - kl: the latent term T before beta: the KL in nats (estimated by its draws for a flow),
          |z|^2 / 2, MMD^2, or 0;
        - kl_per_dim: its parts, NaN where it is no sum over dimensions (a flow, MMD);
        - x_logvar: log Sigma_x, NaN where there is none;
        - mse: |x - E[x|z]|^2, summed over the features, in every system.
        """
        q = self.posterior(x)
        return self.components(x, q, beta=beta, generator=generator, noise=noise)

    def components(
        self,
        x: Tensor,
        q: Posterior | Tensor,
        logvar: Tensor | None = None,
        *,
        beta: float | Tensor | None = None,
        eps: float | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        per_dim: bool = True,
    ) -> LossComponents:
        """`forward` for a batch that is encoded already, for callers who look at q(z|x) too.

        Args:
            x: [B, *sample_shape].
            q: what `posterior` returned for x; or its mu, with
            logvar: beside it, where q is a diagonal Gaussian.
            beta: in the place of the loss's own.
            eps: likewise, where the loss is a `GaussianVAELoss`.
            generator: of all noise, that of the prior and of probes too.
            noise: of z, as in `forward`; generator then makes the rest.
            per_dim: False leaves kl_per_dim empty.
        """
        if isinstance(q, Tensor):
            assert logvar is not None
            q = Posterior(q, logvar)
        moved: dict[str, Any] = {} if eps is None else {"eps": eps}
        samples = None if self.posterior_samples == 1 else self.posterior_samples
        of_z = generator if noise is None else None
        ratio: Tensor | None = None
        if self.latent_term == "kl" and not self._closed_kl:
            z, ratio = q.sample_and_ratio(samples=samples, generator=of_z, noise=noise)
        else:
            z = q.sample(samples=samples, generator=of_z, noise=noise)
        flat = z if samples is None else z.flatten(0, 1)
        output, x_logvar = self._decoder_output(flat)
        x_hat = output if samples is None else output.unflatten(0, z.shape[:2])
        if self._closed_kl:
            found = self.loss.components(
                x_hat,
                x,
                q.mu,
                q.diagonal,
                x_logvar=x_logvar,
                scale_tril=q.scale_tril,
                beta=beta,
                per_dim=per_dim,
                **moved,
            )
        else:
            nothing = torch.zeros_like(q.mu)
            found = self.loss.components(
                x_hat, x, nothing, nothing, x_logvar=x_logvar, beta=0.0, per_dim=False, **moved
            )
            weight = self.loss.beta if beta is None else beta
            value, parts = LATENT_TERMS[self.latent_term](q, z, ratio, generator)
            share = self._share(x, value)
            reduced = self._reduced(share * value, x)
            found = found._replace(
                loss=found.loss + weight * reduced,
                kl=reduced.detach(),
                kl_per_dim=(share * parts).detach() if per_dim else found.kl_per_dim,
            )
        if self.penalty is not None:
            penalty = self.penalty(self.decode, self.decoder, flat, self._mean(output), generator)
            if self.penalty.kind != "l2":  # which is no mean over samples
                penalty = penalty * self._share(x, penalty)
            found = found._replace(loss=found.loss + self._reduced(penalty, x))
        return found

    def _reduced(self, batchmean: Tensor, x: Tensor) -> Tensor:
        """A mean over the batch as the loss reduces it."""
        return batchmean / x.shape[1:].numel() if self.loss.reduction == "mean" else batchmean

    def _share(self, x: Tensor, like: Tensor) -> Tensor | float:
        return share_of_batch(
            len(x), like, training=self.training, process_group=self.loss.process_group
        )

    @property
    def _closed_kl(self) -> bool:
        return self.latent_term == "kl" and self.family.closed_form

    @property
    def fused(self) -> bool:
        """Whether the whole loss is the one operator of `GaussianVAELoss`."""
        return not isinstance(self.loss, Likelihood) and self._closed_kl and self.penalty is None

    @property
    def loss_in_nats(self) -> bool:
        """Whether the reconstruction term is counted in nats."""
        return not isinstance(self.loss, Likelihood) or self.loss.nats

    @property
    def bounds_likelihood(self) -> bool:
        """Whether reconstruction + kl is a bound on -log p(x), constants included.

        It is where p(x|z) is a distribution of x and T the KL of a posterior that has a density.
        """
        proper = not isinstance(self.loss, Likelihood) or self.loss.proper
        return proper and self.latent_term == "kl"

    def variances(self) -> list[nn.Parameter]:
        """The variances that are learned as such: of the decoder, and of q(z|x)."""
        return [*self.loss.parameters(), *self.family.parameters()]

    def score(self, x: Tensor, z: Tensor) -> Scored:
        """How well z explains x [B, *sample_shape], with the variance found in training.

        For mle iso-d and diag-d that is one variance for all inputs; one that was fitted to the
        scored x itself would give no likelihood. Computed in the dtype of x.

        Raises:
            ValueError: as `decoder_distribution`.
        """
        output, x_logvar = self._decoder_output(z)
        output = output.to(x.dtype)
        squares = (self._mean(output) - x).square().flatten(1).sum(1)
        if isinstance(self.loss, Likelihood):
            return Scored(self.loss.nll(output, x), squares, None)
        x_logvar = self._known_logvar(x_logvar, x).to(x.dtype)
        nll = functional.gaussian_nll(
            output, x, x_logvar, activation=self.loss.activation, reduction="none"
        )
        return Scored(nll, squares, x_logvar)

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
            ValueError: there is none yet (mle diag-i without x_shape, before the first batch), or
                p(x|z) is no Gaussian.
        """
        if isinstance(self.loss, Likelihood):
            raise ValueError(
                f"loss must be a GaussianVAELoss to have a variance, got {self.loss.name!r}; use "
                "decode for the mean, or score"
            )
        x_hat, x_logvar = self._decoder_output(z)
        return x_hat, self._known_logvar(x_logvar, x_hat)

    def _known_logvar(self, x_logvar: Tensor | None, like: Tensor) -> Tensor:
        """log Sigma_x that broadcasts to x: the decoder's own, or the one found in training."""
        if x_logvar is None:
            x_logvar = self.x_logvar
            if x_logvar is None:
                raise ValueError(
                    "the loss must have seen a batch in training mode before its variance can be "
                    "used, got none; train a step, or give GaussianVAELoss an x_shape"
                )
            return x_logvar
        if x_logvar.shape == like.shape[:1]:  # learned iso-d: one per sample
            x_logvar = x_logvar.view(-1, *[1] * (like.dim() - 1))
        return x_logvar.clamp(min=X_LOGVAR_MIN)  # as the loss bounds it

    def _decoder_output(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """x_hat before the loss's activation, and x_logvar where the decoder predicts it."""
        output = self.decoder(z)
        return output if isinstance(output, tuple) else (output, None)

    @property
    def x_logvar(self) -> Tensor | None:
        """log Sigma_x as far as it is the same for every input, detached: [1] or x's shape.

        The learned or fixed variance, or the running estimate of mle (its mean over the inputs
        for iso-d and diag-d); None for learned iso-d and diag-d, where it is a function of z, and
        for decoders that are no Gaussian.
        """
        loss = self.loss
        if isinstance(loss, Likelihood) or _predicts_variance(loss):
            return None
        if loss.estimate == "mle":
            if loss.running_variance is None:  # diag-i without x_shape, before the first batch
                return None
            # eps as in the objective: the pixels that never change have a variance of zero.
            eps = torch.finfo(torch.float32).tiny if loss.covariance == "iso-i" else loss.eps
            return torch.log(loss.running_variance + eps)
        return loss.x_logvar.detach()


def _predicts_variance(loss: GaussianVAELoss | Likelihood) -> TypeGuard[GaussianVAELoss]:
    """Whether the decoder has to return x_logvar: the variance differs from input to input."""
    if isinstance(loss, Likelihood):
        return False
    return loss.estimate == "learned" and loss.covariance in ("iso-d", "diag-d")


def _make_loss(
    config: ModelConfig, sample_shape: tuple[int, ...], value_range: tuple[float, float] | None
) -> GaussianVAELoss | Likelihood:
    objective, system = config.objective, config.system
    options: dict[str, Any] = {"beta": objective.beta, "logvar_clamp": objective.logvar_clamp}
    activation: str | None = objective.activation
    if activation == "auto":
        activation = "sigmoid" if value_range == (0.0, 1.0) else None
    elif activation == "none":
        activation = None
    if system.likelihood == "gaussian":
        return GaussianVAELoss(
            objective.covariance,
            objective.estimate,
            variance=objective.variance,
            x_shape=sample_shape,
            eps=objective.eps,
            activation=activation,
            **options,
        )
    kind = LIKELIHOODS[system.likelihood]
    if kind is SquaredError:
        options["activation"] = activation
    elif objective.activation != "auto":
        raise ValueError(
            f"activation must be auto for the likelihood {system.likelihood}, which has its own, "
            f"got {objective.activation}; leave it out"
        )
    if kind is LogisticMixture:
        options |= {"components": system.mixture_components, "levels": system.levels or 256}
    loss = kind(**options)
    loss.check_data(sample_shape, value_range)
    return loss
