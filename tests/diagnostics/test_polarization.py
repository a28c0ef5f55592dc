"""The polarized regime: both KLs in closed form, and the share of a training."""

from __future__ import annotations

import json
import math

import pytest
import torch

from vaekern.diagnostics import PolarizedRegimeTracker, polarized_regime


def encoder(mu: list[float], logvar: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two samples at +mu and -mu: E mu^2 = mu^2, Std mu = |mu|."""
    m = torch.tensor(mu, dtype=torch.float64)
    return torch.stack([m, -m]), torch.tensor(logvar, dtype=torch.float64).expand(2, -1)


def test_both_kls_in_closed_form():
    regime = polarized_regime(*encoder([2.0, 0.6, 0.4, 0.0], [-8.0, -3.0, -1.0, 0.1]))
    active = (4 + 8 - 1) / 2 + (0.36 + 3 - 1) / 2
    passive = (0.16 + math.exp(-1) + 1 - 1) / 2 + (math.exp(0.1) - 0.1 - 1) / 2
    kl = active + (math.exp(-8) + math.exp(-3)) / 2 + passive
    assert regime.mask.tolist() == [True, True, False, False]
    assert regime.active == 2
    assert regime.kl.item() == pytest.approx(kl, rel=1e-14)
    assert regime.active_kl.item() == pytest.approx(active, rel=1e-14)
    assert regime.delta_kl.item() == pytest.approx((kl - active) / kl, rel=1e-13)
    assert regime.mean_squared_mu.tolist() == pytest.approx([4, 0.36, 0.16, 0], rel=1e-14)
    variance = [math.exp(v) for v in (-8, -3, -1, 0.1)]
    assert regime.mean_variance.tolist() == pytest.approx(variance, rel=1e-14)


def test_means_go_over_samples_that_differ():
    generator = torch.Generator().manual_seed(0)
    mu = 2 * torch.randn(50, 5, generator=generator).double()
    logvar = torch.randn(50, 5, generator=generator).double()
    mu[:, 3:] *= 0.01
    active = [j for j in range(5) if mu[:, j].std(correction=0) > 0.5]
    assert active == [0, 1, 2]
    kl = approximation = 0.0
    for m, v in zip(mu.tolist(), logvar.tolist(), strict=True):
        kl += sum(a * a + math.exp(b) - b - 1 for a, b in zip(m, v, strict=True)) / 100
        approximation += sum(m[j] ** 2 - v[j] - 1 for j in active) / 100
    regime = polarized_regime(mu, logvar)
    assert regime.delta_kl.item() == pytest.approx((kl - approximation) / kl, rel=1e-12)


def test_a_small_error_keeps_its_digits():
    # sigma^2 = 1e-12 of a KL of 1e4: L_KL - L_approxKL as a difference of the two has no digit left
    regime = polarized_regime(*encoder([140.0], [math.log(1e-12)]))
    kl = (140.0**2 - math.log(1e-12) - 1 + 1e-12) / 2
    assert regime.delta_kl.item() == pytest.approx(0.5e-12 / kl, rel=1e-12, abs=0)


def test_another_definition_of_active():
    mu, logvar = encoder([2.0, 0.2], [-8.0, -2.0])
    assert polarized_regime(mu, logvar).active == 1
    assert polarized_regime(mu, logvar, definition="variance").active == 2
    posterior = polarized_regime(mu, logvar, definition="posterior", threshold=0.1)
    assert posterior.mask.tolist() == [True, False]


def test_a_collapsed_encoder_divides_by_no_zero():
    mu, logvar = encoder([0.0, 0.0], [0.0, 0.0])
    regime = polarized_regime(mu, logvar)
    assert (regime.kl.item(), regime.active_kl.item(), regime.delta_kl.item()) == (0, 0, 0)
    # sigma^2 = 1 called active: the approximation is -1/2 for each, of nothing
    forced = polarized_regime(mu, logvar, definition="posterior", threshold=2.0)
    assert (forced.active_kl.item(), forced.delta_kl.item()) == (-1, math.inf)


def test_share_of_the_training():
    tracker = PolarizedRegimeTracker()
    assert math.isnan(tracker.share)
    shares = []
    for step, delta in ((500, 0.5), (1000, 0.01), (1200, 0.03), (2000, 0.029), (4000, 0.0)):
        tracker.update(step, torch.tensor(delta, dtype=torch.float64))
        shares.append(tracker.share)
    assert shares == [0, 0.5, 0, 800 / 2000, 2800 / 4000]  # 0.03 itself is not below 3 %
    tracker.update(5000, math.nan)
    assert tracker.share == 0
    always = PolarizedRegimeTracker(threshold=0.9)
    always.update(7, 0.5)
    assert always.share == 1


def test_tracker_survives_storage():
    whole, first, second = (PolarizedRegimeTracker(0.1), PolarizedRegimeTracker(0.1),
                            PolarizedRegimeTracker())  # fmt: skip
    evaluations = [(10, 0.5), (20, 0.05), (30, 0.2), (40, 0.05)]
    for step, delta in evaluations:
        whole.update(step, delta)
    for step, delta in evaluations[:3]:
        first.update(step, delta)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.update(*evaluations[3])
    assert second.share == whole.share == 0.25
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_computed_in_float64(dtype: torch.dtype):
    mu, logvar = (t.to(dtype) for t in encoder([2.0, 0.3], [-8.0, -0.2]))
    regime = polarized_regime(mu, logvar)
    assert regime.delta_kl.dtype == torch.float64
    assert torch.equal(regime.delta_kl, polarized_regime(mu.double(), logvar.double()).delta_kl)


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: polarized_regime(torch.zeros(3), torch.zeros(3)), ValueError, "[3]"),
        (lambda: polarized_regime(torch.zeros(3, 2), torch.zeros(2, 2)), ValueError, "2 and 3"),
        (lambda: polarized_regime(torch.zeros(3, 2), None), TypeError, "logvar"),  # type: ignore[arg-type]
        (lambda: PolarizedRegimeTracker(threshold=0), ValueError, "got 0"),
        (lambda: PolarizedRegimeTracker().update(0, 0.1), ValueError, "above the one before, 0"),
    ],
)
def test_bad_input(call, error, word):
    with pytest.raises(error) as caught:
        call()
    assert word in str(caught.value)
    assert ". " not in str(caught.value)
