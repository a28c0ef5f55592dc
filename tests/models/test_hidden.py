"""Hidden layers as one node of the graph: the bits of the plain ones, wherever they are used."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from vaekern.models.networks import hidden
from vaekern.models.networks.hidden import HiddenLayers


def pair(
    dtype: torch.dtype = torch.float32, sizes: tuple[int, ...] = (5, 7, 6)
) -> tuple[HiddenLayers, nn.Sequential]:
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for features, width in itertools.pairwise(sizes):
        modules += [nn.Linear(features, width, dtype=dtype), nn.ReLU()]
    return HiddenLayers(*modules), nn.Sequential(*copy.deepcopy(modules))


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever the layers run as one node."""
    calls: list[int] = []
    apply = hidden._Hidden.apply

    def counted(*args: Tensor) -> Tensor:
        calls.append(len(args))
        return apply(*args)

    monkeypatch.setattr(hidden._Hidden, "apply", counted)
    return calls


@pytest.mark.parametrize("sizes", [(5, 7), (5, 7, 6), (16, 64, 32, 48)])
@pytest.mark.parametrize("input_gradient", [False, True])
def test_value_and_gradients_have_the_same_bits(
    sizes: tuple[int, ...], input_gradient: bool, fused: list[int]
) -> None:
    ours, plain = pair(sizes=sizes)
    found = []
    for layers in (ours, plain):
        x = torch.randn(9, sizes[0], generator=torch.Generator().manual_seed(1))
        x.requires_grad_(input_gradient)
        out = layers(x)
        (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
        found.append([out, x.grad, *(p.grad for p in layers.parameters())])
    assert len(fused) == 1
    for a, b in zip(*found, strict=True):
        assert (a is None and b is None) or a.equal(b)
    assert found[0][0].min() == 0 < found[0][0].max()  # some units are off, some on


def heads(layers: HiddenLayers, count: int, dtype: torch.dtype = torch.float32) -> list[nn.Linear]:
    torch.manual_seed(3)
    features = layers[0].in_features + layers[-2].out_features
    return [nn.Linear(features, 4, dtype=dtype) for _ in range(count)]


def plain_heads(layers: nn.Sequential, x: Tensor, made: list[nn.Linear]) -> tuple[Tensor, ...]:
    features = torch.cat([x, layers(x)], dim=1)
    return tuple(head(features) for head in made)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("input_gradient", [False, True])
def test_heads_of_the_input_and_the_layers_have_the_same_bits(
    count: int, input_gradient: bool, fused: list[int]
) -> None:
    ours, plain = pair(sizes=(5, 7, 6))
    found = []
    for layers in (ours, plain):
        made = heads(ours, count)
        x = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
        x.requires_grad_(input_gradient)
        fuse = layers is ours
        out = ours.with_heads(x, *made) if fuse else plain_heads(plain, x, made)
        weights = torch.Generator().manual_seed(2)
        sum((o * torch.randn(o.shape, generator=weights)).sum() for o in out).backward()
        parameters = [*layers.parameters(), *(p for head in made for p in head.parameters())]
        found.append([*out, x.grad, *(p.grad for p in parameters)])
    assert len(fused) == 1
    for a, b in zip(*found, strict=True):
        assert (a is None and b is None) or a.equal(b)


def test_heads_without_a_gradient_frozen_and_twice_differentiable(fused: list[int]) -> None:
    ours, plain = pair(torch.float64)
    made = heads(ours, 2, torch.float64)
    made[1].weight.requires_grad_(False)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    # the second head is not used
    ours.with_heads(x, *made)[0].sum().backward()
    assert made[1].bias.grad.eq(0).all()
    assert made[1].weight.grad is None
    found = []
    for fuse in (True, False):
        out = ours.with_heads(x, *made) if fuse else plain_heads(plain, x, made)
        (slope,) = torch.autograd.grad((out[0] * out[1]).sum(), x, create_graph=True)
        layers = ours if fuse else plain
        found.append(torch.autograd.grad(slope.square().sum(), [x, *layers.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    assert len(fused) == 2


def test_a_head_that_is_not_plain_runs_by_itself(fused: list[int]) -> None:
    ours, plain = pair()
    made = heads(ours, 2)
    made[1].register_forward_hook(lambda module, inputs, output: output * 2)
    x = torch.ones(3, 5)
    for a, b in zip(ours.with_heads(x, *made), plain_heads(plain, x, made), strict=True):
        assert a.equal(b)
    assert len(fused) == 1  # the layers alone


def test_a_frozen_layer_gets_no_gradient_and_the_others_theirs(fused: list[int]) -> None:
    ours, plain = pair()
    for layers in (ours, plain):
        layers[0].weight.requires_grad_(False)
        layers[2].bias.requires_grad_(False)
        layers(torch.ones(3, 5)).sum().backward()
    assert fused
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or a.grad.equal(b.grad)


def test_second_backward_and_second_derivative(fused: list[int]) -> None:
    ours, plain = pair(torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    out = ours(x).square().sum()
    out.backward(retain_graph=True)
    first = x.grad.clone()
    out.backward()
    assert x.grad.equal(2 * first)
    found = []
    for layers in (ours, plain):
        # the gradient penalty of a decoder: a function of all weights
        (slope,) = torch.autograd.grad(layers(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [x, *layers.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    assert len(fused) == 2
    inputs = (x, *ours.parameters())
    assert torch.autograd.gradgradcheck(
        lambda x, *_: ours(x), inputs, atol=1e-6, nondet_tol=0.0, raise_exception=True
    )


def hooked(layers: nn.Sequential) -> None:
    layers[0].register_forward_hook(lambda module, inputs, output: output * 2)


def normalized(layers: nn.Sequential) -> None:
    parametrizations.weight_norm(layers[2])


def without_bias(layers: nn.Sequential) -> None:
    layers[2].bias = None


@pytest.mark.parametrize("change", [hooked, normalized, without_bias])
def test_layers_that_are_not_plain_run_one_by_one(
    change: Callable[[nn.Sequential], None], fused: list[int]
) -> None:
    ours, plain = pair()
    for layers in (ours, plain):
        change(layers)
    x = torch.ones(3, 5)
    assert ours(x).equal(plain(x))
    assert not fused


def test_transforms_and_autocast_see_the_operators(fused: list[int]) -> None:
    ours, plain = pair()
    x = torch.randn(5)
    jacobians = [torch.func.jacrev(layers)(x) for layers in (ours, plain)]
    assert jacobians[0].equal(jacobians[1])
    batch = torch.randn(3, 5)
    assert torch.func.vmap(ours)(batch).equal(torch.func.vmap(plain)(batch))
    assert torch.func.jvp(ours, (batch,), (batch,))[1].equal(
        torch.func.jvp(plain, (batch,), (batch,))[1]
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(batch).equal(plain(batch))
    with torch.no_grad():
        assert ours(batch).equal(plain(batch))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(batch, batch)
        assert torch.autograd.forward_ad.unpack_dual(ours(dual)).tangent is not None
    assert not fused


def test_a_slice_is_what_it_is_of_any_sequence(fused: list[int]) -> None:
    ours, plain = pair()
    x = torch.randn(3, 7)
    assert ours[1:](x).equal(plain[1:](x))
    assert ours[:0](x) is x
    assert not fused
