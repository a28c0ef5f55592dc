"""Both stages trained at once."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vaekern.experiments import joint
from vaekern.experiments.finished import Finished
from vaekern.experiments.joint import fused_loss, merged_loss
from vaekern.experiments.measures import report
from vaekern.experiments.procedures import PROCEDURES
from vaekern.models import TwoStageVAE
from vaekern.models.config import ModelConfig, NetworkConfig, ObjectiveConfig
from vaekern.storage.tensors import load_tensors
from vaekern.training import TrainConfig
from vaekern.training.run_directory import MODEL


def tiny() -> TwoStageVAE:
    network = NetworkConfig(latent_dim=2, width=8, second_width=8)
    objective = ObjectiveConfig(estimate="learned")
    return TwoStageVAE.from_config(ModelConfig(objective, network), (5,)).double()


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def normal_kl(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)


def test_fused_loss_by_hand() -> None:
    model, x = tiny(), torch.randn(7, 5, dtype=torch.float64)
    found = fused_loss(model, x, noise())
    mu, logvar = model.stage2.encoder(model.stage1.encoder(x)[0])
    u = mu + (logvar / 2).exp() * torch.randn(7, 2, dtype=torch.float64, generator=noise())
    x_hat = model.stage1.decoder(model.stage2.decoder(u))
    nll = 0.5 * ((x - x_hat) ** 2 + math.log(2 * math.pi)).sum(1)  # its variance starts at 1
    torch.testing.assert_close(found, (nll + normal_kl(mu, logvar)).mean())
    found.backward()
    for vae in (model.stage1, model.stage2):
        for part in (vae.encoder, vae.decoder):
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_merged_loss_by_hand_and_its_way_into_the_first_encoder() -> None:
    model, x = tiny(), torch.randn(7, 5, dtype=torch.float64)
    found = merged_loss(model, x, noise())
    generator = noise()
    mu, logvar = model.stage1.encoder(x)
    z = mu + (logvar / 2).exp() * torch.randn(7, 2, dtype=torch.float64, generator=generator)
    nll = 0.5 * ((x - model.stage1.decoder(z)) ** 2 + math.log(2 * math.pi)).sum(1)
    mu_u, logvar_u = model.stage2.encoder(z)
    u = mu_u + (logvar_u / 2).exp() * torch.randn(7, 2, dtype=torch.float64, generator=generator)
    second = 0.5 * ((z - model.stage2.decoder(u)) ** 2 + math.log(2 * math.pi)).sum(1)
    kls = normal_kl(mu, logvar) + normal_kl(mu_u, logvar_u)
    expected = (nll + second + kls).mean()
    torch.testing.assert_close(found, expected)
    weight = model.stage1.encoder.head.weight
    (own,) = torch.autograd.grad(found, weight, retain_graph=True)
    (whole,) = torch.autograd.grad(expected, weight)
    torch.testing.assert_close(own, whole)


def test_a_stopped_joint_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    flat = {
        "data": f"npy:{tmp_path / 'x.npy'}",
        "estimate": "learned",
        "latent_dim": 2,
        "width": 8,
        "second_width": 8,
        "stage1": {"epochs": 3, "batch_size": 16},
    }

    def train(name: str, said: list[str]) -> dict[str, bytes]:
        config = TrainConfig.from_flat({**flat, "run": str(tmp_path / name)})
        PROCEDURES["train merged"](config, said.append)
        # Not the file's bytes: safetensors writes its metadata in an order that varies.
        tensors, _ = load_tensors(tmp_path / name / "model.safetensors", MODEL)
        return {key: value.numpy().tobytes() for key, value in tensors.items()}

    whole, said = train("whole", []), []
    step, steps = joint._Joint._step, []

    def interrupted(self: Any, rows: torch.Tensor) -> torch.Tensor:
        found = step(self, rows)
        steps.append(1)
        if len(steps) == 3:  # the first of the second epoch
            signal.raise_signal(signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(joint._Joint, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train("parts", said)
    assert (tmp_path / "parts" / "joint.safetensors").exists()
    assert train("parts", said) == whole
    assert "goes on from epoch 1" in said
    assert not (tmp_path / "parts" / "joint.safetensors").exists()
    # finished: once more is no more training
    assert train("parts", said) == whole


def test_what_a_joint_run_leaves_behind(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    flat = {
        "data": f"npy:{tmp_path / 'x.npy'}",
        "estimate": "learned",
        "latent_dim": 2,
        "width": 8,
        "second_width": 8,
        "stage1": {"epochs": 2, "batch_size": 16},
    }
    numbers = {}
    for name in ("train fused", "train merged"):
        config = TrainConfig.from_flat({**flat, "run": str(tmp_path / name)})
        done = PROCEDURES[name](config, lambda text: None)
        assert done.epochs == 2
        run = Finished(config)
        numbers[name] = report(run)
        model = run.subject.model
        assert model.sample(3, stage=2).shape == (3, 1, 4, 4)
        assert run.subject.two_stages
        # Fused, nothing is drawn between the decoders.
        assert (model.stage2.loss.x_logvar.item() == -20) == (name == "train fused")
    assert list(numbers["train fused"]) == ["mmd_stage2"]
    # Errors and likelihoods of a fused model are not those of its first stage: there are none.
    assert not any("mse" in key or "nll" in key for key in numbers["train fused"])
    assert numbers["train merged"]["squared_error"] == 16 * numbers["train merged"]["mse"]


def test_settings_without_effect_are_refused_and_clipping_has_one(tmp_path: Path) -> None:
    flat = {"estimate": "learned", "latent_dim": 2, "width": 8, "second_width": 8}
    joint.check_joint(
        TrainConfig.from_flat(flat | {"clip_norm": 0.1, "beta": 2.0, "device": "cpu"})
    )
    for name, value in (
        *(("ema_decay", 0.9), ("precision", "bfloat16"), ("lr_schedule", "cosine")),
        *(("kl_warmup_epochs", 2), ("free_bits", 1.0), ("early_stopping", 1)),
        *(("posterior_samples", 2), ("spectral_norm", True)),
    ):
        with pytest.raises(ValueError, match=f"at once knows no {name}, got {value}; leave it out"):
            joint.check_joint(TrainConfig.from_flat(flat | {name: value}))
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    found = {}
    for norm in (None, 1e-9, 1e9):
        config = TrainConfig.from_flat(
            flat
            | {"data": f"npy:{tmp_path / 'x.npy'}", "run": str(tmp_path / str(norm))}
            | {"stage1": {"epochs": 1, "batch_size": 16}, "clip_norm": norm}
        )
        PROCEDURES["train merged"](config, lambda text: None)
        tensors, _ = load_tensors(tmp_path / str(norm) / "model.safetensors", MODEL)
        found[norm] = tensors["stage1.encoder.head.weight"].numpy()
    np.testing.assert_array_equal(found[None], found[1e9])
    # Adam divides the scale of a gradient out, but for its eps, which is larger than such a norm.
    assert np.abs(found[None] - found[1e-9]).max() > 1e-4
