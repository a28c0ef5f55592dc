"""save_pretrained and from_pretrained: the same bits come back, or one sentence says why not."""

from __future__ import annotations

import doctest
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vaekern
from vaekern.models import (
    VAE,
    ModelConfig,
    NetworkConfig,
    ObjectiveConfig,
    TwoStageVAE,
    sharing,
)
from vaekern.storage import RunError

SHAPE = (1, 4, 4)
SMALL = {"latent_dim": 2, "second_width": 8, "second_layers": 1}


def two_stage(**objective: Any) -> TwoStageVAE:
    """A model after a step of both stages: nothing in it has its first value any more."""
    network = NetworkConfig(width=8, layers=1, **SMALL)
    model = TwoStageVAE.from_config(
        ModelConfig(ObjectiveConfig(**objective), network), SHAPE, (0.0, 1.0)
    )
    return stepped(model)


def stepped(model: TwoStageVAE) -> TwoStageVAE:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    x = torch.rand(8, *SHAPE, dtype=next(model.parameters()).dtype)
    (model.stage1(x).loss + model.stage2(model.posterior(x).sample()).loss).backward()
    optimizer.step()
    return model.eval()


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mu, logvar = self.both(x).chunk(2, dim=1)
        return mu, logvar


def own(**options: Any) -> VAE:
    return VAE(Encoder(), nn.Linear(2, 6), vaekern.GaussianVAELoss(**options), latent_dim=2)


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        second[name].dtype == value.dtype and second[name].equal(value)
        for name, value in first.items()
    )


def outputs(model: TwoStageVAE) -> list[torch.Tensor]:
    """Everything that a user asks a model for, from the same noise."""
    noise = torch.Generator().manual_seed(3)
    dtype = next(model.parameters()).dtype
    x = torch.rand(5, *SHAPE, generator=noise).to(dtype)
    found = model.stage1(x, generator=noise)
    samples = [model.sample(4, stage=stage, generator=noise) for stage in (1, 2)]
    z = torch.randn(3, 2, generator=noise).to(dtype)
    mean, x_logvar = model.stage1.decoder_distribution(z)
    return [*samples, found.loss, found.kl_per_dim, found.x_logvar, mean, x_logvar]


OBJECTIVES = [
    *({"covariance": c, "estimate": e} for c in ("iso-i", "diag-i") for e in ("mle", "learned")),
    {"covariance": "diag-d", "estimate": "learned"},
    {"covariance": "iso-d", "estimate": "mle", "posterior_samples": 2, "eps": 1e-3},
    {"estimate": "fixed", "variance": 0.3, "beta": 2.0, "logvar_clamp": (-3.0, 0.1)},
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: "-".join(map(str, o.values())))
def test_every_output_comes_back_bit_for_bit(objective: dict[str, Any], tmp_path: Path) -> None:
    model = two_stage(**objective)
    model.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    again = TwoStageVAE.from_pretrained(str(tmp_path))
    assert torch.get_rng_state().equal(state)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert not again.training
    assert same_bits(model, again)
    assert all(a.equal(b) for a, b in zip(outputs(model), outputs(again), strict=True))
    assert again.stage1.loss._options == model.stage1.loss._options
    assert again.stage1.posterior_samples == model.stage1.posterior_samples
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (
        tmp_path / "config.json"
    ).read_bytes()
    stepped(again.train())  # it can be trained on
    assert not same_bits(model, again)


def test_the_variances_are_in_the_file(tmp_path: Path) -> None:
    for estimate, name in (("mle", "running_variance"), ("learned", "x_logvar")):
        model = two_stage(covariance="diag-i", estimate=estimate)
        value = getattr(model.stage1.loss, name)
        assert value.unique().numel() > 1
        model.save_pretrained(tmp_path / name)
        loss = TwoStageVAE.from_pretrained(tmp_path / name).stage1.loss
        assert getattr(loss, name).equal(value)
        assert getattr(loss, name).requires_grad == (estimate == "learned")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model = two_stage().to(dtype)
    model.save_pretrained(tmp_path)
    again = TwoStageVAE.from_pretrained(tmp_path)
    assert same_bits(model, again)
    assert next(again.parameters()).dtype == dtype


def test_one_stage_alone(tmp_path: Path) -> None:
    vae = two_stage().stage1
    vae.save_pretrained(tmp_path)
    again = VAE.from_pretrained(tmp_path)
    assert same_bits(vae, again)
    with pytest.raises(RunError, match=r"holds a VAE, not a TwoStageVAE; load it with VAE.from_"):
        TwoStageVAE.from_pretrained(tmp_path)


def test_own_networks_are_given_again(tmp_path: Path) -> None:
    vae = own(covariance="diag-i", estimate="mle", beta=3.0)  # buffers shaped by the first batch
    vae(torch.randn(7, 6)).loss.backward()
    vae.eval()
    sentence = r"holds the weights of modules .*VAE.from_pretrained\(directory, encoder=..., dec"
    with pytest.warns(UserWarning, match=sentence):
        vae.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"encoder and decoder must be given; use VAE.from_pre"):
        VAE.from_pretrained(tmp_path)
    again = VAE.from_pretrained(tmp_path, encoder=Encoder(), decoder=nn.Linear(2, 6))
    assert same_bits(vae, again)
    assert again.loss.beta == 3.0
    assert again.latent_dim == 2
    with pytest.raises(RunError, match=r"does not hold this model: 2 tensors .*give the modules"):
        VAE.from_pretrained(tmp_path, encoder=Encoder(), decoder=nn.Linear(2, 7))
    other = vaekern.GaussianVAELoss("diag-i", x_shape=6)
    given = VAE.from_pretrained(tmp_path, encoder=Encoder(), decoder=nn.Linear(2, 6), loss=other)
    assert given.loss is other
    assert given.loss.beta == 1.0
    assert same_bits(vae, given)


def test_an_own_first_stage_is_given_again(tmp_path: Path) -> None:
    model = TwoStageVAE(own(estimate="learned"), two_stage().stage2).eval()
    with pytest.warns(UserWarning, match=r"TwoStageVAE.from_pretrained\(directory, stage1=VAE"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not built by vaekern; use .*, stage1=VAE\(\.\.\.\)\)"):
        TwoStageVAE.from_pretrained(tmp_path)
    again = TwoStageVAE.from_pretrained(tmp_path, stage1=own(estimate="learned"))
    assert same_bits(model, again)


def test_what_was_replaced_is_not_described_as_it_was(tmp_path: Path) -> None:
    vae = two_stage().stage1
    vae.loss = vaekern.GaussianVAELoss(
        "diag-i", "fixed", variance=torch.rand(SHAPE) + 1, activation="tanh"
    )
    vae.save_pretrained(tmp_path)
    again = VAE.from_pretrained(tmp_path)
    assert same_bits(vae, again)
    assert again.loss.activation == "tanh"
    vae.decoder = nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, SHAPE))
    with pytest.warns(UserWarning, match="encoder=..., decoder=..."):
        vae.save_pretrained(tmp_path)


def test_tied_weights_are_saved_under_both_names(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        twice = nn.Linear(2, 2)
        return nn.Sequential(twice, twice, nn.Linear(2, 6))

    vae = own(estimate="fixed")
    vae.decoder = tied()
    with pytest.warns(UserWarning, match="encoder=..., decoder=..."):
        vae.save_pretrained(tmp_path)
    again = VAE.from_pretrained(tmp_path, encoder=Encoder(), decoder=tied())
    assert same_bits(vae, again)


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

    vae = own()
    vae.decoder = Extra(2, 6)
    with pytest.raises(TypeError, match=r"'decoder._extra_state' must be a tensor .*got dict"):
        vae.save_pretrained(tmp_path)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_damaged_and_foreign_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: Any, **options: Any) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", forbidden)
    monkeypatch.setattr(pickle, "Unpickler", forbidden)
    two_stage().save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good_config, good_weights = config.read_bytes(), weights.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(RunError, match=match) as caught:
            TwoStageVAE.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
        config.write_bytes(good_config)
        weights.write_bytes(good_weights)

    for keep in (0, 7, 100, len(good_weights) // 2, len(good_weights) - 1):
        weights.write_bytes(good_weights[:keep])
        refused(r"model.safetensors is damaged or incomplete .*save the model again")
    weights.write_bytes(pickle.dumps({"weight": 1}))
    refused(r"model.safetensors is damaged")
    from safetensors.torch import save

    weights.write_bytes(save({"weight": torch.zeros(2)}))
    refused(r"was not written by vaekern as vaekern model")
    weights.unlink()
    refused(r"there is no file .*model.safetensors")
    for text in ("", "{", "[]", '{"architectures": ["BertModel"]}', '{"format": "vaekern model"}'):
        config.write_text(text)
        refused(r"config.json is damaged or not from vaekern")
    config.unlink()
    refused(r"holds no config.json; give a directory that save_pretrained")
    edit(config, version=99)
    refused(r"newer vaekern \(model format 99, this one reads 1\); update vaekern")
    stage = json.loads(good_config)["stage1"]
    for wrong in (
        None,
        {},
        stage | {"networks": {"name": "resnet9000"}},
        stage | {"networks": stage["networks"] | {"name": "resnet9000"}},
        stage | {"networks": stage["networks"] | {"latent_dim": -1}},
        stage | {"loss": stage["loss"] | {"colour": "red"}},
    ):
        edit(config, stage1=wrong)
        refused(r"config.json does not describe a model of this version of vaekern .*: .*; restore")
    edit(config, stage1=stage | {"networks": stage["networks"] | {"sample_shape": [1, 5, 5]}})
    refused(r"does not hold this model: \d tensors differ, the first is 'stage1.encoder")


def test_a_file_and_nothing_are_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"is a file, but a model is a directory with config.json"):
        VAE.from_pretrained(tmp_path / "file")
    with pytest.raises(RunError, match=r"there is no directory .*/none; give one"):
        VAE.from_pretrained(tmp_path / "none")
    with pytest.raises(RunError, match=r"cannot create .*file/model \(Not a directory\); save"):
        own().save_pretrained(tmp_path / "file" / "model")


class Hub:
    """huggingface_hub as far as it is used here, with a directory for the web."""

    def __init__(self, root: Path):
        self.root = root
        self.private: bool | None = None
        self.message = ""

    def module(self) -> types.ModuleType:
        module = types.ModuleType("huggingface_hub")
        module.HfApi = lambda: self  # type: ignore[attr-defined]
        module.snapshot_download = self.snapshot_download  # type: ignore[attr-defined]
        return module

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
        assert exist_ok
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        self.private = private
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.message = commit_message
        for file in Path(folder_path).iterdir():
            (self.root / repo_id / file.name).write_bytes(file.read_bytes())

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str]
    ) -> str:
        assert allow_patterns == ["config.json", "model.safetensors"]
        if not (self.root / repo_id).is_dir() or revision == "v9":
            raise OSError(f"404 {repo_id}@{revision}\nRequest ID: 1")
        return str(self.root / repo_id)


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub.module())
    model = two_stage()
    assert model.push_to_hub("ada/digits", private=True) == "https://hub/ada/digits"
    assert (hub.private, hub.message) == (True, "Upload a vaekern model")
    assert same_bits(model, TwoStageVAE.from_pretrained("ada/digits", revision="v1"))
    with pytest.raises(
        RunError, match=r"no directory ada/digits, .* give it \(404 ada/digits@v9\)"
    ):
        TwoStageVAE.from_pretrained("ada/digits", revision="v9")
    with pytest.raises(ValueError, match="repo_id must be 'user/name', got 'digits'"):
        model.push_to_hub("digits")

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("403 no token\nmore")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(RunError, match=r"does not take ada/digits \(403 no token\); check"):
        model.push_to_hub("ada/digits")


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.partition(".")[0] == "huggingface_hub":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(
        ModuleNotFoundError, match=r"no directory ada/digits, .*pip install 'vaekern\[hub\]'"
    ):
        TwoStageVAE.from_pretrained("ada/digits")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'vaekern\[hub\]'"):
        own().push_to_hub("ada/digits")


def test_the_examples_are_true() -> None:
    assert doctest.testmod(sharing).failed == 0
    assert doctest.testmod(sharing).attempted > 5
