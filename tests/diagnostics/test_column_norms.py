"""The product of column norms against the paper's numbers, Hadamard's bound and closed forms."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

from vaekern.diagnostics import column_norm_product, column_norms

# Rolinek et al. 2019, equation 24, and the same with its latent space turned by 45 degrees.
M1 = torch.tensor([[4.0, 1.0], [-3.0, 1.0], [5.0, -1.0]], dtype=torch.float64)
TURN = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
M2 = M1 @ TURN.T


def test_the_papers_two_decoders():
    result = column_norm_product(torch.stack([M1, M2]))
    # the least stochastic loss at C = 0 is 2 col: equations 25 and 26 state 24.5 and 52.4
    least = 2 * result.log_product.exp()
    assert least.tolist() == pytest.approx([2 * math.sqrt(150), 2 * math.sqrt(30.5 * 22.5)])
    assert [round(value, 1) for value in least.tolist()] == [24.5, 52.4]
    # a turn changes neither the volume, det M^T M = 50 * 3 - 4^2, nor the trace
    assert result.log_volume.tolist() == pytest.approx([0.5 * math.log(134)] * 2)
    assert float(M2.square().sum()) == pytest.approx(53)
    assert result.ratio.tolist() == pytest.approx(
        [math.sqrt(150 / 134), math.sqrt(30.5 * 22.5 / 134)]
    )


def test_the_product_is_the_least_stochastic_loss():
    # min over sigma of sum_j |J_j|^2 sigma_j^2 at prod sigma_j^2 = exp(-C), found numerically
    J, C = torch.randn(1, 6, 3, dtype=torch.float64), 2.0
    logs = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs], max_iter=100, tolerance_grad=1e-12)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        variances = (logs - logs.mean() - C / 3).exp()
        value = (J[0].square().sum(0) * variances).sum()
        value.backward()
        return value

    optimizer.step(loss)
    product = float(column_norm_product(J).log_product)
    assert loss().item() == pytest.approx(3 * math.exp((2 * product - C) / 3), rel=1e-10)


def test_one_exactly_for_orthogonal_columns():
    Q = torch.linalg.qr(torch.randn(40, 8, 5, dtype=torch.float64)).Q
    orthogonal = column_norm_product(Q * torch.tensor([1e-9, 3.0, 3.0, 1e4, 1.0]))
    assert orthogonal.ratio.tolist() == pytest.approx([1] * 40, abs=1e-13)
    assert orthogonal.ratio.min() >= 1
    assert column_norm_product(torch.randn(40, 8, 5)).ratio.min() > 1 + 1e-3


def test_angle_between_two_columns():
    for angle in (1.5, 0.7, 1e-3, 1e-7):
        J = torch.tensor([[[1.0, 5 * math.cos(angle)], [0.0, 5 * math.sin(angle)]]]).double()
        exact = torch.tensor([[[1.0, math.cos(angle)], [0.0, math.sin(angle)]]]).double()
        assert float(column_norm_product(exact).ratio) == pytest.approx(1 / math.sin(angle))
        # the entries of J were rounded to float32, which moves its angle
        turned = math.atan2(float(J[0, 1, 1]), float(J[0, 0, 1]))
        assert float(column_norm_product(J).ratio) == pytest.approx(1 / math.sin(turned))


def test_logarithms_do_not_overflow():
    J = torch.randn(3, 70, 64, dtype=torch.float64)
    result, large = column_norm_product(J), column_norm_product(J * 1e200)
    assert float((large.log_product - result.log_product).mean()) == pytest.approx(
        64 * 200 * math.log(10)
    )
    torch.testing.assert_close(large.ratio, result.ratio)
    expected = 0.5 * torch.linalg.slogdet(J.mT @ J).logabsdet
    torch.testing.assert_close(result.log_volume, expected)


def test_zero_and_dependent_columns():
    J = torch.zeros(4, 3, 3)
    J[0] = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])  # 45 degrees
    J[1] = torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])  # parallel
    J[2] = torch.eye(3)
    result = column_norm_product(J)
    assert float(result.ratio[0]) == pytest.approx(math.sqrt(2))
    assert result.ratio[1] > 1e15
    assert result.ratio[2:].tolist() == [1, 1]
    assert result.log_product[[0, 1, 3]].tolist() == [-math.inf] * 3
    assert result.log_volume[[0, 1, 3]].tolist() == [-math.inf] * 3
    wide = column_norm_product(torch.randn(2, 3, 4))
    assert wide.ratio.tolist() == [math.inf] * 2
    assert wide.log_volume.tolist() == [-math.inf] * 2
    assert wide.log_product.isfinite().all()


@pytest.mark.parametrize(
    ("J", "error", "words"),
    [
        (M1, ValueError, "unsqueeze(0)"),
        (M1.int()[None], TypeError, "int32"),
        (M1[None, :0], ValueError, "at least one row"),
        (M1[None] / 0, ValueError, "sample 0"),
    ],
)
def test_bad_input(J, error, words):
    with pytest.raises(error) as caught:
        column_norm_product(J)
    assert words in str(caught.value)
    assert ". " not in str(caught.value)


def test_examples_run():
    assert doctest.testmod(column_norms) == (0, 3)
