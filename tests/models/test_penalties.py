"""Penalties on decoders, against explicit Jacobians."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vaekern.models.penalties import (
    DecoderPenalty,
    decoder_weights,
    gradient_norm,
    jacobian_norm,
)

B, D = 4, 3


@pytest.fixture
def decoder() -> nn.Module:
    layers = (nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 6), nn.Unflatten(1, (2, 3)), nn.Sigmoid())
    return nn.Sequential(*layers).double()


def _jacobians(decoder: nn.Module, z: Tensor) -> Tensor:
    """[B, 6, d]."""
    return torch.stack(
        [
            torch.autograd.functional.jacobian(lambda each: decoder(each[None])[0].flatten(), row)
            for row in z
        ]
    )


def test_probes_add_up_to_the_frobenius_norm(decoder: nn.Module) -> None:
    z = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    # E v v^T = I: the sum over an orthonormal basis is the expectation, exactly.
    basis = torch.eye(6, dtype=torch.float64).view(6, 1, 2, 3)
    total = sum(jacobian_norm(decoder(z), z, v.expand(B, 2, 3)) for v in basis)
    expected = _jacobians(decoder, z.detach()).square().sum((1, 2))
    torch.testing.assert_close(total, expected)


def test_random_probes_average_to_it(decoder: nn.Module) -> None:
    z = torch.randn(1, D, dtype=torch.float64).expand(5000, D).clone().requires_grad_()
    penalty = DecoderPenalty("jacobian", 2.0)
    found = penalty(decoder, decoder, z, decoder(z), torch.Generator().manual_seed(0))
    J = _jacobians(decoder, z[:1].detach())[0]
    gram = J.T @ J
    # The variance of |J^T v|^2 is 2 |J^T J|_F^2.
    error = math.sqrt(2 * float(gram.square().sum()) / 5000)
    assert abs(float(found.detach()) / 2 - float(gram.trace())) < 4 * error


def test_the_released_form_is_a_vector_jacobian_product(decoder: nn.Module) -> None:
    z = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    x_hat = decoder(z)
    J = _jacobians(decoder, z.detach())
    expected = (2 * x_hat.detach().flatten(1)[:, None] @ J)[:, 0].square().sum(1)
    torch.testing.assert_close(gradient_norm(x_hat, z), expected)
    # which is not the Jacobian's norm
    assert not torch.allclose(expected, J.square().sum((1, 2)), rtol=0.1)


@pytest.mark.parametrize("kind", ["jacobian", "vector-jacobian"])
def test_its_gradient_reaches_the_weights_and_the_code(kind: str, decoder: nn.Module) -> None:
    z = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    penalty = DecoderPenalty(kind, 3.0)

    def value(weight: Tensor) -> Tensor:
        swapped = torch.func.functional_call  # the weight is the first layer's
        x_hat = swapped(decoder, {"0.weight": weight}, (z,))
        return penalty(decoder, decoder, z, x_hat, torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(value, (decoder[0].weight,))  # type: ignore[index]
    (gradient,) = torch.autograd.grad(value(decoder[0].weight), z)  # type: ignore[index]
    assert gradient.abs().max() > 0


def test_it_has_a_value_where_nobody_takes_a_gradient(decoder: nn.Module) -> None:
    z = torch.randn(B, D, dtype=torch.float64)
    penalty = DecoderPenalty("vector-jacobian", 1.0)
    leaf = z.clone().requires_grad_()
    expected = penalty(decoder, decoder, leaf, decoder(leaf))
    with torch.no_grad():
        found = penalty(decoder, decoder, z, decoder(z))
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach())


def test_l2_leaves_biases_and_norms_out() -> None:
    decoder = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))
    expected = decoder[0].weight.square().sum() + decoder[2].weight.square().sum()
    torch.testing.assert_close(decoder_weights(decoder), expected)
    z = torch.randn(2, 2)
    found = DecoderPenalty("l2", 0.5)(decoder, decoder, z, decoder(z))
    torch.testing.assert_close(found, 0.5 * expected)
    assert float(decoder_weights(nn.Identity())) == 0.0
