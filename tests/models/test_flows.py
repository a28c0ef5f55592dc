"""Flows: their log-determinants against the Jacobian, and where training starts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vaekern.models.flows import FLOWS, Flow, flow_parameters
from vaekern.models.posterior import Flowed

B, D = 7, 4


def _parameters(kind: str, steps: int, scale: float) -> Tensor:
    count = flow_parameters(kind, steps, D) // steps
    return scale * torch.randn(B, steps, count, dtype=torch.float64)


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_log_determinant_is_that_of_the_jacobian(kind: str, scale: float) -> None:
    flow = Flow(kind, _parameters(kind, 5, scale))
    z = torch.randn(B, D, dtype=torch.float64)
    moved, log_det = flow(z)
    jacobian = torch.autograd.functional.jacobian(lambda each: flow(each)[0], z)
    for b in range(B):
        sign, expected = torch.linalg.slogdet(jacobian[b, :, b])
        assert sign == 1.0  # invertible, whatever the parameters
        torch.testing.assert_close(log_det[b], expected, rtol=1e-9, atol=1e-9)
        others = [c for c in range(B) if c != b]
        assert (jacobian[b][:, others] == 0).all()
    assert (moved - z).abs().max() > 0.1


def test_planar_step_by_hand() -> None:
    z, u, w = torch.tensor([[0.5, -1.0], [0.3, 2.0], [1.5, -0.5]], dtype=torch.float64)
    b = torch.tensor([0.25], dtype=torch.float64)
    inner = u @ w
    u_hat = u + (-1 + torch.log1p(torch.exp(inner)) - inner) * w / (w @ w)
    expected = z + u_hat * torch.tanh(w @ z + b)
    found, _ = Flow("planar", torch.cat([u, w, b]).view(1, 1, -1))(z[None])
    torch.testing.assert_close(found[0], expected)


def test_radial_step_by_hand() -> None:
    z = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    c, a, b = torch.tensor([0.1, 0.2], dtype=torch.float64), 0.7, -0.4
    softplus = nn.functional.softplus(torch.tensor([a, b], dtype=torch.float64))
    alpha, beta = softplus[0], softplus[1] - softplus[0]
    expected = z + beta / (alpha + (z - c).norm()) * (z - c)
    parameters = torch.cat([c, torch.tensor([a, b], dtype=torch.float64)])
    found, _ = Flow("radial", parameters.view(1, 1, -1))(z)
    torch.testing.assert_close(found, expected)


def test_steps_that_lose_almost_all_volume_keep_their_digits() -> None:
    # w^T u = -30: 1 + w^T u_hat is softplus(-30) = 9.4e-14, and at the hyperplane so is the volume
    planar = torch.tensor([[[-30.0, 0.0, 1.0, 0.0, 0.0]]], requires_grad=True)
    _, log_det = Flow("planar", planar)(torch.zeros(1, 2))
    assert float(log_det.detach()) == pytest.approx(-30.0, rel=1e-6)
    log_det.backward()
    assert planar.grad is not None
    assert planar.grad[0, 0, 0] == pytest.approx(1.0)  # of -30 = w^T u
    # at the centre both directions are stretched by softplus(b) / softplus(a)
    _, log_det = Flow("radial", torch.tensor([[[0.0, 0.0, 1.0, -30.0]]]))(torch.zeros(1, 2))
    alpha = math.log1p(math.e)
    assert float(log_det) == pytest.approx(2 * (-30.0 - math.log(alpha)), rel=1e-6)


def test_a_planar_step_without_a_direction_is_a_shift() -> None:
    parameters = torch.tensor([[[0.5, -1.0, 0.0, 0.0, 2.0]]])
    z, log_det = Flow("planar", parameters)(torch.zeros(1, 2))
    torch.testing.assert_close(z, math.tanh(2.0) * torch.tensor([[0.5, -1.0]]))
    assert float(log_det) == 0.0


@pytest.mark.parametrize("kind", FLOWS)
def test_several_draws_go_through_the_flow_of_their_sample(kind: str) -> None:
    flow = Flow(kind, _parameters(kind, 3, 1.0))
    z = torch.randn(2, B, D, dtype=torch.float64)
    moved, log_det = flow(z)
    for draw in range(2):
        alone = flow(z[draw])
        torch.testing.assert_close(moved[draw], alone[0])
        torch.testing.assert_close(log_det[draw], alone[1])


@pytest.mark.parametrize("kind", FLOWS)
def test_training_starts_at_the_identity(kind: str) -> None:
    family = Flowed(kind, 10)
    layer = nn.Linear(3, family.extra_outputs(D))
    family.start(layer, D)
    nn.init.zeros_(layer.weight)  # features move it from there
    mu = torch.randn(B, D)
    q = family(mu, torch.zeros(B, D), layer(torch.randn(B, 3)))
    assert q.flow is not None
    z, log_det = q.flow(mu)
    # ten steps, each with a rounding of w (w^T u_hat) = 0 that float32 leaves at 1e-7
    torch.testing.assert_close(z, mu, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_det, torch.zeros(B), rtol=0, atol=1e-5)
    if kind == "planar":  # the directions differ from step to step
        w = layer.bias.view(10, -1)[:, D : 2 * D]
        assert torch.linalg.matrix_rank(w) == D
