"""The optimiser: torch's fused Adam, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from vaekern.training.adam import Adam

LR = (1e-2, 3e-2)


def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    return model, copy.deepcopy(model)


def groups(model: nn.Module) -> list[dict[str, object]]:
    *first, last = model.parameters()
    return [{"params": first, "lr": LR[0]}, {"params": [last], "lr": LR[1]}]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(4, 5, generator=generator)).square().mean().backward()
        optimizer.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(p.equal(q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_it_is_torch_s_fused_adam() -> None:
    ours, theirs = models()
    one, other = Adam(groups(ours)), torch.optim.Adam(groups(theirs), fused=True)
    steps(ours, one, 5)
    steps(theirs, other, 5)
    for optimizer in (one, other):
        optimizer.param_groups[0]["lr"] = 1e-4
    steps(ours, one, 5, seed=1)
    steps(theirs, other, 5, seed=1)
    assert same(ours, theirs)
    states = [optimizer.state_dict()["state"] for optimizer in (one, other)]
    for a, b in zip(states[0].values(), states[1].values(), strict=True):
        assert a.keys() == b.keys()
        assert all(a[key].equal(b[key]) for key in a)


@pytest.mark.parametrize(
    "kinds", [(Adam, Adam), (Adam, torch.optim.Adam), (torch.optim.Adam, Adam)]
)
def test_its_state_can_be_stored_and_exchanged(kinds: tuple[type, type]) -> None:
    ours, theirs = models()
    options = [{} if kind is Adam else {"fused": True} for kind in kinds]
    first = kinds[0](groups(ours), **options[0])
    steps(ours, first, 3)
    theirs.load_state_dict(ours.state_dict())
    second = kinds[1](groups(theirs), **options[1])
    if kinds[1] is Adam:
        steps(theirs, second, 1)  # bound to tensors that are replaced now
        theirs.load_state_dict(ours.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(ours, first, 3, seed=2)
    steps(theirs, second, 3, seed=2)
    assert same(ours, theirs)


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    ours, theirs = models()
    optimizers = Adam(groups(ours)), torch.optim.Adam(groups(theirs), fused=True)
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        steps(model, optimizer, 1)
        optimizer.zero_grad()
        model[0](torch.ones(2, 5)).sum().backward()  # the second layer takes no part
        optimizer.step()
        steps(model, optimizer, 2)
    assert same(ours, theirs)


@pytest.mark.parametrize("overflow", [0.0, 1.0])
def test_a_grad_scaler_s_scale_and_overflow_are_heeded(overflow: float) -> None:
    ours, theirs = models()
    optimizers = Adam(groups(ours)), torch.optim.Adam(groups(theirs), fused=True)
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        steps(model, optimizer, 1)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(overflow)
        steps(model, optimizer, 1, seed=3)
        del optimizer.grad_scale, optimizer.found_inf
        kept = all(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))
        assert kept == bool(overflow)
        steps(model, optimizer, 1, seed=4)
    assert same(ours, theirs)


def test_hooks_run_once_a_step() -> None:
    model, _ = models()
    optimizer, calls = Adam(groups(model)), []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    steps(model, optimizer, 3)
    assert len(calls) == 3


def test_a_closure_is_refused() -> None:
    weight: Tensor = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"^closure must be None, got one; take torch.optim.Adam$"):
        Adam([weight]).step(lambda: 0.0)
