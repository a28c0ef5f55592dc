"""Loss modules: they hold options, parameters and buffers; the work is in vaekern.functional."""

from __future__ import annotations

import copy
import functools
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from . import _checks, functional, joined, ops
from .functional import LossComponents
from .joined import Joined, Parts
from .ops import ACTIVATIONS, COVARIANCES, OBJECTIVES, REDUCTIONS, Options

ESTIMATES = ("mle", "learned", "fixed")
X_LOGVAR_MIN = -20.0  # sigma = 4.5e-5: below it 1 / sigma^2 eats float32's digits
_F32 = torch.float32
MOMENTUM = 0.1  # of the running variance, as torch's BatchNorm
_OPTIONS = ("covariance", "estimate", "reduction", "activation", "logvar_clamp", "x_shape")


class GaussianVAELoss(nn.Module):
    r"""The negative evidence lower bound of a Gaussian VAE, in nats, as one fused operator.

    .. math:: -\log p(x \mid z) + \beta\, \mathrm{KL}(q(z \mid x) \,\|\, N(0, I))

    The decoder's covariance is shared by all data ("-i") or depends on x ("-d"), and is one number
    ("iso") or one per dimension ("diag"):

    - ``estimate="mle"``: its maximum-likelihood value, which turns the reconstruction term into a
      log-MSE (:func:`vaekern.functional.mle_nll`; Takida et al. 2022, section 5).
    - ``estimate="learned"``: trained by gradient.  iso-i and diag-i own the parameter ``x_logvar``
      = log sigma^2 (give ``loss_fn.parameters()`` to the optimiser, with no weight decay); for
      iso-d and diag-d the decoder predicts it and the call takes ``x_logvar=``.  Learned iso-i is
      the objective of Dai & Wipf 2019, with gamma = sigma^2.  Bounded below at -20.
    - ``estimate="fixed"``: ``variance``.

    Args:
        covariance: "iso-i", "iso-d", "diag-i" or "diag-d".
        estimate: "mle", "learned" or "fixed".
        variance: fixed: a number or a tensor broadcasting to x; learned iso-i and diag-i: the
            start.
        x_shape: one sample's shape; needed by learned diag-i, optional for mle diag-i (whose
            buffers otherwise take it from the first batch).
        beta: weight of the KL; a call may override it.
        eps: added inside the log of the MLE objectives (iso-i has none); a call may override it.
            Falling from 0.3, say, it keeps diag-d from collapsing: `vaekern train --eps-start`.
        activation: None, "sigmoid" or "tanh", applied to x_hat inside the kernel.
        logvar_clamp: (lo, hi) for the encoder's logvar; its gradient is zero outside.
        reduction: "batchmean", "sum", "mean" (nats per data dimension) or "none" ([B]).
        check_finite: raise on NaN or infinite inputs; synchronises the device, and is left out by
            torch.compile.
        process_group: the processes whose batches are one batch while training: None = the
            default group when torch.distributed is initialised; False = this process alone. A
            deep copy shares the group; a module that holds one cannot be pickled.

    Call:
        ``loss_fn(x_hat, x, mu, logvar)`` with x_hat [B, ...] or [L, B, ...], x [B, ...], mu and
        logvar [B, ...], or ``scale_tril=L`` [B, d, d] in place of logvar.  Returns a scalar ([B]
        for "none"): float64 for float64 input, else float32.  Any mix of float32, float64,
        bfloat16 and float16 is accepted; each gradient has its input's dtype.

    Buffers of the MLE modes, updated in training mode only: ``last_variance`` and
    ``running_variance`` (iso-i one number; diag-i x's shape; -d modes their mean, one number).
    ``eval()`` does not change the loss; sampling and likelihood estimates read the running one.

    The mle estimates of iso-i and diag-i couple the batch, so that averaging gradients over
    micro-batches optimises something else; :meth:`accumulate` is the exact way.

    Several processes (DistributedDataParallel, fully_shard): while training, their batches are one.
    Each forward all-reduces (sums, count) once, in float64 (mle diag-i: one number per dimension
    and the count; else two numbers), the backward nothing. The batches may differ in size and be
    empty, but every process has to call the loss equally often; in ``eval()`` nobody waits.

    ============ ===============================================================================
    reduction    the value on each of W processes, N samples in all
    ============ ===============================================================================
    "batchmean"  W / N times the sum over its own samples
    "mean"       the same, divided by the data's dimensions
    "sum"        W times the sum over its own samples
    "none"       its own samples' values; no gradient for the mle modes iso-i and diag-i
    ============ ===============================================================================

    So the mean over the processes is the joined batch's value, and the mean of their gradients,
    which both wrappers take, its gradient. That holds for the fields of :meth:`components`, too,
    whereas x_logvar and the buffers are the joined batch's own and the same everywhere (x_logvar
    of the -d modes belongs to the process's samples). A learned variance is exchanged only as part
    of the wrapped model: wrap a module whose forward returns the loss, as
    :class:`vaekern.models.VAE` is; outside, each process would train its own.

    Raises:
        ValueError, TypeError: one sentence naming the argument, before anything is computed.
        RuntimeError: the gradient is differentiated a second time.

    Example:
        >>> import torch, vaekern
        >>> loss_fn = vaekern.GaussianVAELoss("iso-i", "fixed", variance=1.0)
        >>> x = torch.zeros(2, 4)
        >>> mu = logvar = torch.zeros(2, 3)
        >>> round(float(loss_fn(x + 1, x, mu, logvar)), 4)  # 4/2 (1 + log 2 pi)
        5.6758

    Source: Dai & Wipf 2019, section 1; Takida et al. 2022, section 5 and appendix G.
    """

    x_logvar: Tensor
    last_variance: Tensor | None
    running_variance: Tensor | None

    def __init__(
        self,
        covariance: str = "iso-i",
        estimate: str = "mle",
        *,
        variance: float | Tensor = 1.0,
        x_shape: tuple[int, ...] | torch.Size | int | None = None,
        beta: float = 1.0,
        eps: float = 1e-6,
        activation: str | None = None,
        logvar_clamp: tuple[float, float] | None = None,
        reduction: str = "batchmean",
        check_finite: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        _checks.option("covariance", covariance, COVARIANCES)
        _checks.option("estimate", estimate, ESTIMATES)
        _checks.option("activation", activation, ACTIVATIONS)
        _checks.option("reduction", reduction, ("batchmean", "sum", "mean", "none"))
        _checks.process_group(process_group)
        x_shape = _checks.sample_shape("x_shape", x_shape)
        lo, hi = _checks.clamp("logvar_clamp", logvar_clamp, ops.UNBOUNDED)
        self.covariance, self.estimate = covariance, estimate
        self.reduction, self.activation = reduction, activation
        self.x_shape, self.check_finite, self.process_group = x_shape, check_finite, process_group
        self.logvar_clamp = logvar_clamp
        self._options = Options(
            OBJECTIVES[covariance if estimate == "mle" else "gaussian"],
            ACTIVATIONS[activation],
            REDUCTIONS[reduction],
            _checks.beta(beta),
            _checks.eps(eps),
            lo,
            hi,
            X_LOGVAR_MIN if estimate == "learned" else -ops.UNBOUNDED,
        )
        self._takes_x_logvar = estimate == "learned" and covariance in ("iso-d", "diag-d")
        self._estimated = estimate == "mle"
        self._parts: Parts | None = None  # while gradients are accumulated
        self._used = [False]  # since the last optimiser step that was looked at; see _after_step
        if estimate == "mle":
            if isinstance(variance, Tensor) or variance != 1.0:
                raise ValueError(
                    f"variance is estimated by estimate='mle', got variance={variance!r}; drop it, "
                    "or use estimate='fixed' or 'learned'"
                )
            self._make_buffers(x_shape if covariance == "diag-i" else torch.Size((1,)))
        else:
            self._make_x_logvar(_checks.variance(variance))

    @property
    def beta(self) -> float:
        return self._options.beta

    @property
    def eps(self) -> float:
        return self._options.eps

    def _make_buffers(self, shape: torch.Size | None, like: Tensor | None = None) -> None:
        for name in ("last_variance", "running_variance"):
            device = None if like is None else like.device
            with torch.inference_mode(False):  # a buffer outlives the block it was made in
                buffer = None if shape is None else torch.zeros(shape, device=device, dtype=_F32)
            self.register_buffer(name, buffer)

    def _make_x_logvar(self, variance: Tensor) -> None:
        logvar = variance.log().to(torch.get_default_dtype())
        if self.estimate == "fixed":
            self.register_buffer("x_logvar", logvar.reshape(1) if logvar.dim() == 0 else logvar)
            return
        if self._takes_x_logvar:
            return  # the decoder's output
        shape: torch.Size | None = torch.Size((1,))
        if self.covariance == "diag-i":
            shape = self.x_shape
            if shape is None:
                raise ValueError(
                    "x_shape must be given for covariance='diag-i' with estimate='learned', got "
                    "None; pass one sample's shape, e.g. x_shape=x.shape[1:]"
                )
        assert shape is not None
        try:
            start = logvar.expand(shape).clone(memory_format=torch.contiguous_format)
        except RuntimeError:
            raise ValueError(
                f"variance must broadcast to {list(shape)}, got {_checks.shape_text(variance)}; "
                "pass a number or a tensor of one sample's shape"
            ) from None
        self.x_logvar = nn.Parameter(start)
        _watch(self)

    def forward(
        self,
        x_hat: Tensor,
        x: Tensor,
        mu: Tensor,
        logvar: Tensor | None = None,
        *,
        x_logvar: Tensor | None = None,
        scale_tril: Tensor | None = None,
        beta: float | Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:
        options = self._options_of_call(mu, beta, eps)
        return self._evaluate(*options, x_hat, x, mu, logvar, x_logvar, scale_tril, False)[0]

    def components(
        self,
        x_hat: Tensor,
        x: Tensor,
        mu: Tensor,
        logvar: Tensor | None = None,
        *,
        x_logvar: Tensor | None = None,
        scale_tril: Tensor | None = None,
        beta: float | Tensor | None = None,
        eps: float | None = None,
        per_dim: bool = True,
    ) -> LossComponents:
        """The loss with its parts: .loss .reconstruction .kl .kl_per_dim .x_logvar .mse

        ``loss`` is what the call returns, with its graph; the others are detached.  reconstruction,
        kl and mse (E_L |r|^2) are reduced like the loss; kl_per_dim is the mean over the batch
        (empty where per_dim is False, which spares a pass over mu and logvar);
        x_logvar is the decoder's log sigma^2.  While training on several processes all but x_logvar
        are this process's share, whose mean over the processes is the joined batch's.
        """
        options, weight = self._options_of_call(mu, beta, eps)
        loss, statistics, whole = self._evaluate(
            options, weight, x_hat, x, mu, logvar, x_logvar, scale_tril, True
        )
        assert statistics is not None
        if self.estimate != "mle" and x_logvar is None:
            x_logvar = self.x_logvar
        return functional.components(
            options, loss, statistics, x_hat, x, mu, logvar, x_logvar, scale_tril, whole,
            per_dim,
        )  # fmt: skip

    def _options_of_call(
        self, mu: Tensor, beta: float | Tensor | None, eps: float | None
    ) -> tuple[Options, Tensor | None]:
        """The options with what one call replaces; and beta, where it is a tensor."""
        options, weight = self._options, None
        if eps is not None:
            options = options._replace(eps=_checks.eps(eps))
        if beta is not None:
            if not isinstance(mu, Tensor):
                _checks.floating(mu=mu, required=True)
            if isinstance(beta, Tensor):
                weight = _checks.beta_tensor(beta, mu)
            elif torch.compiler.is_compiling():  # a schedule's numbers must not become constants
                wide = torch.float64 if mu.dtype is torch.float64 else torch.float32
                weight = torch.full((), beta, dtype=wide, device=mu.device)
            else:
                options = options._replace(beta=_checks.beta(beta))
        return options, weight

    def _evaluate(
        self,
        options: Options,
        weight: Tensor | None,
        x_hat: Tensor,
        x: Tensor,
        mu: Tensor,
        logvar: Tensor | None,
        x_logvar: Tensor | None,
        scale_tril: Tensor | None,
        want_statistics: bool,
    ) -> tuple[Tensor, Tensor | None, Joined | None]:
        if not (isinstance(x_hat, Tensor) and isinstance(x, Tensor) and isinstance(mu, Tensor)):
            _checks.floating(x_hat=x_hat, x=x, mu=mu, required=True)
        training = self.training
        track, group, known, parts = ops.NO_TRACKING, None, None, self._parts
        if self._estimated:
            if x_logvar is not None:
                self._reject_x_logvar(x_logvar)
            self._fits(x)
            if training:
                track = self._buffers_for(x)
        else:
            x_logvar = self._decoder_logvar(x_logvar, x)
        if training:
            group = functional.world(self.process_group)
        if self.check_finite and not torch.compiler.is_compiling():
            _checks.finite(
                x_hat=x_hat, x=x, mu=mu, logvar=logvar, x_logvar=x_logvar, scale_tril=scale_tril
            )
        if parts is not None:
            known, want_statistics = parts.joined, True
            parts.group, parts.track, group, track = group, track, None, ops.NO_TRACKING
        found = functional.gaussian_vae_loss(
            options, x_hat, x, mu, logvar, x_logvar, scale_tril, weight, group, known,
            want_statistics, "variance" if self.estimate == "fixed" else "x_logvar", track,
        )  # fmt: skip
        if parts is not None:
            assert found[1] is not None
            parts.add(found[1], x.shape[0])
        return found

    def accumulate(
        self,
        step: Callable[[Any], Tensor],
        micro_batches: Iterable[Any],
        *,
        model: nn.Module | None = None,
    ) -> Iterator[Tensor]:
        r"""Accumulate the exact gradient of one large batch over its micro-batches.

        The -i MLE objectives couple the batch: the average of their gradients over micro-batches
        belongs to another objective, and uneven micro-batches are weighted wrongly by any.  Here a
        first pass without gradients finds the whole batch's variance and size, on all processes,
        and a second one evaluates each micro-batch at them:

        .. math:: \nabla \tfrac{D}{2} \log \sum_{b,i} r_{bi}^2
                  = \frac1N \sum_{b,i} \frac{r_{bi} \nabla r_{bi}}{\hat\sigma^2},
                  \quad \hat\sigma^2 = \frac{1}{ND} \sum_{b,i} r_{bi}^2

        and so on for diag-i.  The cost is one more forward pass of the network; layers that follow
        their inputs, such as BatchNorm, see each micro-batch twice.

        Args:
            step: takes one micro-batch, runs the network and this loss, and returns the loss.
            micro_batches: of any sizes, the same number on every process; kept until the end.
            model: the DistributedDataParallel or `fully_shard` model that step runs, for its
                processes to exchange gradients once, with the last micro-batch. Without it the
                gradients are the same and the exchange takes place for each. Any other module
                exchanges nothing.

        Yields:
            Each micro-batch's share of the loss, for you to call ``backward()`` on as it is: they
            add up to the loss of the whole batch (on several processes: their mean does).

        Raises:
            RuntimeError: the second pass did not see what the first one saw. torch's default
                generators are replayed; a generator that step is given has to be reset by it, and
                a compiled network takes its noise as an input.

        Example:
            >>> import torch, vaekern
            >>> encoder, decoder = vaekern.models.networks.mlp((6,), 2, width=8, output="linear")
            >>> loss_fn = vaekern.GaussianVAELoss("iso-i", "mle")
            >>> vae = vaekern.models.VAE(encoder, decoder, loss_fn, latent_dim=2)
            >>> optimizer = torch.optim.Adam(vae.parameters())
            >>> x = torch.randn(32, 6)
            >>> for loss in loss_fn.accumulate(lambda part: vae(part).loss, x.split(8)):
            ...     loss.backward()
            >>> optimizer.step()

        Source: the gradient of the log-MSE is that of the NLL at the detached estimate; Takida et
        al. 2022, appendix G.
        """
        return joined.accumulate(self, step, micro_batches, model)

    def _track(self, whole: Joined, track: tuple[Tensor | None, Tensor | None, float]) -> None:
        last, running, momentum = track
        if last is not None and running is not None:
            with torch.no_grad():
                ops.update(last, running, joined.tracked(whole), momentum)

    def _decoder_logvar(self, x_logvar: Tensor | None, x: Tensor) -> Tensor:
        if not self._takes_x_logvar:
            if x_logvar is not None:
                self._reject_x_logvar(x_logvar)
            if self.estimate == "learned" and self.training and not torch.compiler.is_compiling():
                self._used[0] = True
            self._fits(x)
            return self.x_logvar
        if x_logvar is None:
            raise ValueError(
                f"x_logvar must be given for covariance={self.covariance!r} with "
                "estimate='learned', got None; pass the decoder's log sigma^2 as "
                "loss_fn(..., x_logvar=...)"
            )
        if not isinstance(x_logvar, Tensor):
            _checks.not_floating("x_logvar", x_logvar)
        if self.covariance == "diag-d":
            if x_logvar.shape != x.shape:
                _checks.same_shape("x_logvar", x_logvar, "x", x)
            return x_logvar
        if x.dim() == 0 or x_logvar.numel() != x.shape[0] or x_logvar.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"x_logvar must be [B] or [B, 1, ...] for covariance='iso-d', got "
                f"{_checks.shape_text(x_logvar)} beside x {_checks.shape_text(x)}; give one log "
                "sigma^2 per sample, or use covariance='diag-d'"
            )
        return x_logvar.view(-1, *[1] * (x.dim() - 1))

    def _reject_x_logvar(self, x_logvar: Tensor) -> None:
        raise ValueError(
            f"x_logvar must not be given for covariance={self.covariance!r} with estimate="
            f"{self.estimate!r}, got {_checks.what(x_logvar)}; drop it, or use "
            "estimate='learned' with covariance='iso-d' or 'diag-d'"
        )

    def _buffers_for(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, float]:
        """The buffers to update with this batch; diag-i's take their shape from the first one."""
        buffers = self._buffers
        if buffers["last_variance"] is None:
            self._make_buffers(x.shape[1:], x)
        return buffers["last_variance"], buffers["running_variance"], MOMENTUM

    def _fits(self, x: Tensor) -> None:
        """diag-i has one variance per dimension: the samples' shape may not change."""
        if self.covariance != "diag-i":
            return
        shape = self.x_shape
        if shape is None and (last := self._buffers.get("last_variance")) is not None:
            shape = last.shape
        if shape is not None and x.shape[1:] != shape:
            raise ValueError(
                f"x must have samples of shape {list(shape)}, got x {_checks.shape_text(x)}; "
                "use one loss module per data shape"
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # diag-i buffers whose shape was taken from the data: take it from the checkpoint
        saved = state_dict.get(prefix + "last_variance")
        if saved is not None and self.estimate == "mle" and self.last_variance is None:
            self._make_buffers(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OPTIONS and "_options" in self.__dict__:
            raise AttributeError(
                f"{name} is fixed when the loss is made, got {value!r}; make another "
                "GaussianVAELoss (a call takes beta=)"
            )
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> GaussianVAELoss:
        if self.process_group is not None:
            memo[id(self.process_group)] = self.process_group  # connections have no copies
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group not in (None, False):
            raise TypeError(
                "a loss that holds a process_group must not be pickled, got "
                f"{self.process_group!r}; save its state_dict(), or set process_group = None first"
            )
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "x_logvar" in self._parameters:  # a copy is looked after like the original
            _watch(self)

    def extra_repr(self) -> str:
        text = f"{self.covariance!r}, {self.estimate!r}, reduction={self.reduction!r}"
        if self.beta != 1.0:
            text += f", beta={self.beta:g}"
        if self.activation:
            text += f", activation={self.activation!r}"
        return text


# After every optimiser step, two looks at the losses that own a variance.
#
# The gradient of x_logvar is cut off below its bound: a step that carried the parameter beyond it
# would leave it there for good, so it is put back on the bound.
#
# And a learned variance that no optimiser holds is the commonest silent mistake: it never moves,
# and the loss still falls.
_learned: weakref.WeakSet[GaussianVAELoss] = weakref.WeakSet()
_unheld: weakref.WeakKeyDictionary[GaussianVAELoss, int] = weakref.WeakKeyDictionary()
_STEPS_BEFORE_WARNING = 3  # two optimisers that take turns are none of our business


def _watch(loss: GaussianVAELoss) -> None:
    _hook_optimizers()
    _learned.add(loss)
    _unheld[loss] = 0


@functools.cache  # once per process
def _hook_optimizers() -> None:
    register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for loss in list(_learned):
        loss.x_logvar.data.clamp_(min=X_LOGVAR_MIN)
    for loss, missed in list(_unheld.items()):
        parameter = loss.x_logvar
        if any(p is parameter for group in optimizer.param_groups for p in group["params"]):
            del _unheld[loss]
            continue
        if not loss._used[0]:
            continue  # several optimisers may step for one use of the loss
        loss._used[0] = False
        if missed + 1 < _STEPS_BEFORE_WARNING:
            _unheld[loss] = missed + 1
        else:
            del _unheld[loss]
            warnings.warn(
                "GaussianVAELoss owns a learned variance (x_logvar) that is in no optimiser's "
                "step; add it with optimizer.add_param_group({'params': loss_fn.parameters(), "
                "'weight_decay': 0.0})",
                stacklevel=2,
            )
