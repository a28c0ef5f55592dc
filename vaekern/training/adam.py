"""Adam with less Python around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import optimizer as hooks


class _Bound(NamedTuple):
    """A group's tensors, looked up once."""

    parameters: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    counter: Tensor | None  # whose elements `steps` are

    def advance(self, number: int | Tensor) -> None:
        """Count steps."""
        if self.counter is not None:
            self.counter.add_(number)
            return
        for step in self.steps:
            step.add_(number)

    def used(self, gradients: list[Tensor | None]) -> tuple[_Bound, list[Tensor | None]]:
        """What has a gradient this time."""
        chosen = [i for i, gradient in enumerate(gradients) if gradient is not None]
        parameters, means, squares, steps = ([each[i] for i in chosen] for each in self[:4])
        rest = _Bound(parameters, means, squares, steps, None)
        return rest, [gradients[i] for i in chosen]


class Adam(torch.optim.Adam):
    """`torch.optim.Adam(groups, fused=True)`: the same kernel, state and bits.

    For a small network torch's own spends most of a step on looking up each parameter's state,
    sorting tensors by device and counting steps one by one (here: 270 of 360 µs with 19 parameters
    of 285,000 numbers). All of that is done once.

    Args:
        groups: parameter groups, each on one device and of one dtype; or parameters.
        settings: as torch's, but for `fused` and what does not go with it.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = Adam([weight], lr=0.1)
        >>> weight.sum().backward()
        >>> _ = optimizer.step()
        >>> weight.detach()
        tensor([0.9000, 0.9000])

    Source: Kingma & Ba 2015, Adam: a method for stochastic optimization, algorithm 1.
    """

    def __init__(self, groups: Any, **settings: Any):
        self._groups: list[_Bound] = []
        self._rates: list[Tensor] = []  # of each group, on its device, once they are wanted there
        super().__init__(groups, fused=True, **settings)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update.

        Raises:
            ValueError: a closure is given.
        """
        if closure is not None:
            raise ValueError("closure must be None, got one; take torch.optim.Adam")
        for hook in (*hooks._global_optimizer_pre_hooks.values(), *self._before()):
            hook(self, (), {})
        with torch.no_grad():
            self._update()
        for hook in (*self._after(), *hooks._global_optimizer_post_hooks.values()):
            hook(self, (), {})

    # torch wraps every optimiser's step for its hooks and its profiler, which takes longer than the
    # hooks: this says that it need not, since `step` calls them.
    step.hooked = True  # type: ignore[attr-defined]

    def _before(self) -> Any:
        return self._optimizer_step_pre_hooks.values()

    def _after(self) -> Any:
        return self._optimizer_step_post_hooks.values()

    def _update(self) -> None:
        if not self._groups:
            self._groups = [self._bind(group) for group in self.param_groups]
        rates = self._rates or [group["lr"] for group in self.param_groups]
        for group, rate, bound in zip(self.param_groups, rates, self._groups, strict=True):
            gradients = [parameter.grad for parameter in bound.parameters]
            if any(gradient is None for gradient in gradients):
                bound, gradients = bound.used(gradients)
                if not gradients:
                    continue
            beta1, beta2 = group["betas"]
            # GradScaler's: the gradients' scale, and whether one of them overflowed
            scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
            bound.advance(1)
            torch._fused_adam_(
                bound.parameters,
                gradients,  # type: ignore[arg-type]
                bound.means,
                bound.squares,
                [],
                bound.steps,
                amsgrad=False,
                lr=rate,
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
                grad_scale=scale,
                found_inf=overflow,
            )
            if overflow is not None:
                bound.advance(-overflow)

    def rates_on_device(self) -> None:
        """Read the learning rates from tensors from now on, and bring these up to date.

        For a step that is recorded: call it before each replay.
        """
        if not self._rates:
            self._rates = [_rate(group) for group in self.param_groups]
            self._known = [group["lr"] for group in self.param_groups]
        for i, group in enumerate(self.param_groups):
            if group["lr"] != self._known[i]:
                self._rates[i].fill_(group["lr"])
                self._known[i] = group["lr"]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        if not set_to_none or not self._groups:
            super().zero_grad(set_to_none)
            return
        for bound in self._groups:
            for parameter in bound.parameters:
                parameter.grad = None

    def load_state_dict(self, state_dict: Any) -> None:
        """Go on from what `state_dict` gave, of this class or of torch's."""
        super().load_state_dict(state_dict)
        self._groups = []

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Optimise further parameters."""
        super().add_param_group(param_group)
        self._groups = []

    def _bind(self, group: dict[str, Any]) -> _Bound:
        parameters = group["params"]
        counter = torch.zeros(len(parameters), device=parameters[0].device)
        for step, parameter in zip(counter.unbind(), parameters, strict=True):
            state = self.state[parameter]
            if state:
                step.copy_(state["step"])
            else:
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] = step
        states = [self.state[parameter] for parameter in parameters]
        means, squares, steps = (
            [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        return _Bound(list(parameters), means, squares, steps, counter)


def _rate(group: dict[str, Any]) -> Tensor:
    device = group["params"][0].device
    # the kernel for GPUs reads a float32
    dtype = torch.float32 if device.type == "cuda" else torch.float64
    return torch.full((), group["lr"], dtype=dtype, device=device)
