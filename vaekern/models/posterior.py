"""q(z|x): what an encoder's output means, and draws from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaekern import functional
from vaekern.models.flows import FLOWS, Flow, flow_parameters


class Posterior(NamedTuple):
    """q(z|x) of N samples: what stage 2 learns from, with fresh z in every epoch.

    N(mu, diag exp logvar), or N(mu, L L^T) where there is a scale_tril, whose marginal variances
    logvar then holds; and where there is a flow, its image of that. A deterministic encoder has
    logvar = -inf: every draw is mu.

    Example:
        >>> q = Posterior(torch.zeros(3, 2), torch.zeros(3, 2))
        >>> q.sample().shape, q.sample(samples=5).shape
        (torch.Size([3, 2]), torch.Size([5, 3, 2]))
    """

    mu: Tensor  # [N, d]
    logvar: Tensor  # [N, d]
    scale_tril: Tensor | None = None  # [N, d, d]
    flow: Flow | None = None

    @property
    def diagonal(self) -> Tensor | None:
        """logvar where it says all of the covariance, as `vaekern.functional` takes it."""
        return self.logvar if self.scale_tril is None else None

    @property
    def center(self) -> Tensor:
        """mu [N, d], or the flow's image of it: the code that stands for x."""
        return self.mu if self.flow is None else self.flow(self.mu)[0]

    def sample(
        self,
        *,
        samples: int | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """One z for each row, [N, d], or several, [samples, N, d]; of noise where it is given."""
        z = functional.reparameterize(
            self.mu,
            self.diagonal,
            scale_tril=self.scale_tril,
            samples=samples,
            generator=generator,
            noise=noise,
        )
        return z if self.flow is None else self.flow(z)[0]

    def sample_and_ratio(
        self,
        *,
        samples: int | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""(z, log q(z|x) - log p(z)) with p = N(0, I): a draw and its part of the KL, in nats.

        .. math:: \tfrac12 \sum_j (z_j^2 - \epsilon_j^2) - \tfrac12 \log\det\Sigma
                  - \log\Big|\det\frac{\partial z}{\partial z_0}\Big|,
                  \quad z_0 = \mu + \Sigma^{1/2} \epsilon

        Its expectation is KL(q(z|x) || p(z)), also where a flow leaves no closed form.

        Returns:
            z [N, d] and [N], or [samples, N, d] and [samples, N].

        Source: Rezende & Mohamed 2015, Variational Inference with Normalizing Flows, equation 15.
        """
        shape = self.mu.shape if samples is None else (samples, *self.mu.shape)
        wide = torch.float64 if self.mu.dtype == torch.float64 else torch.float32
        if noise is None:
            noise = torch.randn(shape, generator=generator, dtype=wide, device=self.mu.device)
        z = functional.reparameterize(
            self.mu, self.diagonal, scale_tril=self.scale_tril, samples=samples, noise=noise
        )
        if self.scale_tril is None:
            log_det = 0.5 * self.logvar.sum(-1)
        else:
            log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if self.flow is not None:
            z, change = self.flow(z)
            log_det = log_det + change
        return z, 0.5 * (z.square() - noise.square()).sum(-1) - log_det

    def take(self, rows: Any) -> Posterior:
        """The given rows."""
        return self.map(lambda tensor: tensor[rows])

    def to(self, *target: Any) -> Posterior:
        """In another dtype, or on another device."""
        return self.map(lambda tensor: tensor.to(*target))

    def pack(self) -> Tensor:
        """All numbers of a row side by side, [N, P]."""
        return torch.cat([tensor.flatten(1) for tensor in self._tensors()], dim=1)

    def unpack(self, numbers: Tensor) -> Posterior:
        """The posterior of this one's kind whose `pack` is numbers [M, P]."""
        shapes = [each.shape[1:] for each in self._tensors()]
        pieces = numbers.split([shape.numel() for shape in shapes], dim=1)
        whole = iter(
            piece if len(shape) == 1 else piece.unflatten(1, shape)
            for piece, shape in zip(pieces, shapes, strict=True)
        )
        return self.map(lambda _: next(whole))

    @staticmethod
    def join(parts: Sequence[Posterior]) -> Posterior:
        """One after the other."""
        columns = zip(*(each._tensors() for each in parts), strict=True)
        joined = iter([torch.cat(column) for column in columns])
        return parts[0].map(lambda tensor: next(joined))

    def _tensors(self) -> list[Tensor]:
        parameters = None if self.flow is None else self.flow.parameters
        every = (self.mu, self.logvar, self.scale_tril, parameters)
        return [each for each in every if each is not None]

    def map(self, change: Callable[[Tensor], Tensor]) -> Posterior:
        """Of the same kind, with other tensors; asked for in the order of `_tensors`."""
        mu, logvar = change(self.mu), change(self.logvar)
        scale_tril = None if self.scale_tril is None else change(self.scale_tril)
        flow = self.flow
        if flow is not None:
            flow = flow._replace(parameters=change(flow.parameters))
        return Posterior(mu, logvar, scale_tril, flow)


class Family(nn.Module):
    """A family of posteriors: turns what the encoder returns into a `Posterior`."""

    #: Whether the KL to N(0, I) is finite, and whether it has a closed form.
    stochastic = True
    closed_form = True

    def extra_outputs(self, latent_dim: int) -> int:
        """How many numbers the encoder has to return beside mu and logvar."""
        return 0

    def start(self, layer: nn.Linear, latent_dim: int) -> None:
        """Set the layer that makes these numbers to where training starts."""
        nn.init.zeros_(layer.bias)

    def forward(self, mu: Tensor, logvar: Tensor, extra: Tensor | None) -> Posterior:
        """q(z|x) from the encoder's mu [B, d], logvar [B, d] and extra outputs [B, k]."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """The arguments of `build_family`."""
        raise NotImplementedError


class Diagonal(Family):
    """N(mu(x), diag exp logvar(x)), of every VAE unless told otherwise."""

    def forward(self, mu: Tensor, logvar: Tensor, extra: Tensor | None) -> Posterior:
        return Posterior(mu, logvar)

    def describe(self) -> dict[str, Any]:
        return {"name": "diagonal"}


class Full(Family):
    """N(mu(x), L(x) L(x)^T), L lower triangular with the diagonal exp(logvar(x) / 2).

    The d (d - 1) / 2 numbers below the diagonal are the encoder's extra outputs, row by row.

    Example:
        >>> q = Full()(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[3.0]]))
        >>> q.scale_tril.tolist(), q.logvar.exp().tolist()
        ([[[1.0, 0.0], [3.0, 1.0]]], [[1.0, 10.0]])

    Source: Rolinek et al. 2019, section 5.1 and supplement B.3 (beta-VAE with full covariance).
    """

    def extra_outputs(self, latent_dim: int) -> int:
        return latent_dim * (latent_dim - 1) // 2

    def forward(self, mu: Tensor, logvar: Tensor, extra: Tensor | None) -> Posterior:
        if extra is None:
            raise _missing(self, mu, extra)
        d = mu.shape[-1]
        rows, columns = torch.tril_indices(d, d, -1, device=mu.device)
        scale_tril = torch.diag_embed(torch.exp(0.5 * logvar))
        scale_tril[:, rows, columns] = extra.to(scale_tril.dtype)
        return Posterior(mu, scale_tril.square().sum(-1).log(), scale_tril)

    def describe(self) -> dict[str, Any]:
        return {"name": "full"}


class Isotropic(Family):
    """N(mu(x), sigma_z^2 I) with one variance for all inputs and dimensions.

    The encoder's own logvar is not used.

    Args:
        variance: sigma_z^2, its start where it is learned.
        learned: whether log sigma_z^2 is a parameter.

    Source: Takida et al. 2022, section 4.2 (learned) and appendix E (fixed).
    """

    z_logvar: Tensor

    def __init__(self, variance: float, learned: bool):
        super().__init__()
        if not 0 < variance < math.inf:
            raise ValueError(
                f"posterior_variance must be positive and finite, got {variance}; for a variance "
                "of 0 use the deterministic posterior"
            )
        value = torch.tensor([math.log(variance)])
        self.learned = learned
        if learned:
            self.z_logvar = nn.Parameter(value)
        else:
            self.register_buffer("z_logvar", value)

    def forward(self, mu: Tensor, logvar: Tensor, extra: Tensor | None) -> Posterior:
        return Posterior(mu, torch.zeros_like(mu) + self.z_logvar.to(mu.dtype))

    def describe(self) -> dict[str, Any]:
        # The variance itself is kept with the weights.
        return {"name": "isotropic" if self.learned else "fixed"}


class Deterministic(Family):
    """z = mu(x): an autoencoder. The encoder's own logvar is not used."""

    stochastic = False

    def forward(self, mu: Tensor, logvar: Tensor, extra: Tensor | None) -> Posterior:
        return Posterior(mu, torch.full_like(mu, -math.inf))

    def describe(self) -> dict[str, Any]:
        return {"name": "deterministic"}


class Flowed(Family):
    """A flow's image of N(mu(x), diag exp logvar(x)); its parameters are the encoder's too.

    Args:
        kind: of its steps, a row of `vaekern.models.flows.FLOWS`.
        steps: how many follow one another.

    Source: Rezende & Mohamed 2015, Variational Inference with Normalizing Flows, algorithm 1.
    """

    closed_form = False

    def __init__(self, kind: str, steps: int):
        super().__init__()
        if steps < 1:
            raise ValueError(f"flow_steps must be at least 1, got {steps}")
        self.kind = kind
        self.steps = steps

    def extra_outputs(self, latent_dim: int) -> int:
        return flow_parameters(self.kind, self.steps, latent_dim)

    @torch.no_grad()
    def start(self, layer: nn.Linear, latent_dim: int) -> None:
        super().start(layer, latent_dim)  # 0 is the identity of the radial flow
        layer.weight *= 0.1
        if self.kind == "planar":
            # u along w, so long that u_hat is 0, around random directions w: the identity too.
            # (At w = 0 the constraint on u_hat would move everything, and without bound.)
            steps = layer.bias.view(self.steps, -1)
            w = nn.functional.normalize(torch.randn_like(steps[:, :latent_dim]), dim=1)
            steps[:, latent_dim : 2 * latent_dim] = w
            steps[:, :latent_dim] = math.log(math.e - 1) * w

    def forward(self, mu: Tensor, logvar: Tensor, extra: Tensor | None) -> Posterior:
        if extra is None:
            raise _missing(self, mu, extra)
        return Posterior(mu, logvar, flow=Flow(self.kind, extra.unflatten(1, (self.steps, -1))))

    def describe(self) -> dict[str, Any]:
        return {"name": self.kind, "steps": self.steps}


def _missing(family: Family, mu: Tensor, extra: Tensor | None) -> ValueError:
    count = family.extra_outputs(mu.shape[-1])
    return ValueError(
        f"encoder must return (mu, logvar, extra) with extra [B, {count}] for the posterior "
        f"{family.describe()['name']!r}, got no third tensor; add a linear layer for it"
    )


#: Every family by name; a new one is a row here and a name in `PosteriorKind`.
FAMILIES: dict[str, Any] = {
    "diagonal": lambda variance, steps: Diagonal(),
    "full": lambda variance, steps: Full(),
    "isotropic": lambda variance, steps: Isotropic(variance, learned=True),
    "fixed": lambda variance, steps: Isotropic(variance, learned=False),
    "deterministic": lambda variance, steps: Deterministic(),
    **{kind: lambda variance, steps, kind=kind: Flowed(kind, steps) for kind in FLOWS},
}


def build_family(name: str, *, variance: float = 1.0, steps: int = 10) -> Family:
    """The row of `FAMILIES` under a name.

    Raises:
        ValueError: an unknown name, or a value outside its range.

    Example:
        >>> build_family("planar", steps=4).extra_outputs(latent_dim=16)
        132
    """
    if name not in FAMILIES:
        raise ValueError(f"posterior must be one of {', '.join(FAMILIES)}, got {name!r}")
    family: Family = FAMILIES[name](variance, steps)
    return family
