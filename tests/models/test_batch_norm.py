"""Batch-norm statistics estimated again equal those of the whole data set."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vaekern.models import ModelConfig, NetworkConfig, TwoStageVAE, fit_batch_norm


def test_statistics_are_those_of_all_data_whatever_the_batches() -> None:
    torch.manual_seed(0)
    x = 3 * torch.randn(103, 4, 5, 6) + torch.arange(4.0).view(4, 1, 1)
    x[:40] += 10  # batches that differ: the variance between them must count
    network = nn.Sequential(nn.BatchNorm2d(4))
    fit_batch_norm(network, x.split(20))
    torch.testing.assert_close(network[0].running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(network[0].running_var, x.var((0, 2, 3)))
    assert network[0].momentum == 0.1
    assert not network.training
    assert network[0].num_batches_tracked == 0


def test_a_deeper_layer_sees_what_training_shows_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    network = nn.Sequential(
        nn.BatchNorm1d(3), nn.Linear(3, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Dropout(0.9)
    )
    fit_batch_norm(network, [x])
    first = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    hidden = torch.relu(network[1](first))
    torch.testing.assert_close(network[3].running_mean, hidden.mean(0))
    torch.testing.assert_close(network[3].running_var, hidden.var(0))


def test_weights_and_spectral_norm_stand_still() -> None:
    torch.manual_seed(0)
    config = ModelConfig(network=NetworkConfig(network="infogan", latent_dim=2, second_width=8))
    model = TwoStageVAE.from_config(config, (1, 8, 8), value_range=(0.0, 1.0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(21, 1, 8, 8)  # 21 = 20 + 1: one sample alone could not be normalised
    model.fit_batch_norm(x, batch_size=20, generator=torch.Generator().manual_seed(0))
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed == {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert len(changed) == 10
    assert not model.stage1.training


def test_a_network_without_batch_norm_costs_no_pass() -> None:
    def batches():  # type: ignore[no-untyped-def]
        raise AssertionError("looked at the data")
        yield

    network = nn.Linear(2, 2)
    fit_batch_norm(network, batches())
    assert not network.training
    with pytest.raises(ValueError, match="batches must hold at least one batch, got none"):
        fit_batch_norm(nn.BatchNorm1d(2), [])
