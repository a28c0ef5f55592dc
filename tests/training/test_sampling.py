"""`vaekern sample --from`: every source of latents, over a run on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vaekern import data
from vaekern.cli import main
from vaekern.models import SAMPLERS, GaussianMixtureSampler, latent_sampler
from vaekern.storage.tensors import load_tensors
from vaekern.training import TrainConfig, TrainingRun, load_model, sampling

Make = Callable[..., TrainConfig]
Train = Callable[..., TrainingRun]


@pytest.fixture
def run(make_config: Make, train: Train) -> TrainingRun:
    return train(make_config())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_source_gives_what_the_sampler_gives(
    name: str, run: TrainingRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(run.path), "--n", "3", "--from", name, "--seed", "5"]
    if name == "gmm-100":  # 81 images
        assert main(words) == 2
        assert "at least one sample for each of 100 components, got 81" in capsys.readouterr().err
        return
    assert main([*words, "--out", str(tmp_path / "drawn")]) == 0
    written = capsys.readouterr().out.split()
    model, _ = load_model(run.path)
    rows = None if SAMPLERS[name].codes is None else getattr(run.data, SAMPLERS[name].codes)
    expected = latent_sampler(name, model, rows).sample(3, generator=seeded(5))
    assert np.array_equal(np.load(tmp_path / "drawn.npy"), expected.numpy())
    strips = ["drawn-strips.png"] if name.startswith("interpolation") else []
    assert [Path(each).name for each in written] == ["drawn.png", "drawn.npy", *strips]
    assert all(Path(each).is_file() for each in written)


def test_names_inside_the_run(run: TrainingRun, capsys: pytest.CaptureFixture[str]) -> None:
    for source, name in (("prior", "stage1"), ("second-stage", "stage2"), ("gmm-10", "gmm-10")):
        assert main(["sample", str(run.path), "--n", "2", "--from", source]) == 0
        assert f"samples-{name}-seed0.png" in capsys.readouterr().out
    assert main(["sample", str(run.path), "--n", "2"]) == 0  # the second stage is trained
    assert "samples-stage2-seed0.png" in capsys.readouterr().out


def test_a_mixture_is_kept_and_fitted_again_when_the_weights_change(
    make_config: Make, train: Train, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = []
    original = GaussianMixtureSampler.fit.__func__

    def counted(cls, *args, **options):
        fits.append(args)
        return original(cls, *args, **options)

    monkeypatch.setattr(GaussianMixtureSampler, "fit", classmethod(counted))
    first = np.load(sampling.save_samples(run.path, n=4, source="gmm-10")[1])
    kept = run.path / "gmm-10.safetensors"
    tensors, _ = load_tensors(kept, sampling.MIXTURE)
    assert tensors["covariances"].shape == (10, 2, 2)
    again = np.load(sampling.save_samples(run.path, n=4, source="gmm-10")[1])
    assert np.array_equal(first, again)
    other = np.load(sampling.save_samples(run.path, n=4, source="gmm-10", seed=1)[1])
    assert not np.array_equal(first, other)
    assert len(fits) == 1

    kept.write_bytes(kept.read_bytes()[:100])  # damaged: what it held can be fitted again
    assert np.array_equal(first, np.load(sampling.save_samples(run.path, n=4, source="gmm-10")[1]))
    assert len(fits) == 2

    sampling.save_samples(run.path, n=4, source="gmm-10", weights="best")
    assert (run.path / "gmm-10-best.safetensors").is_file()
    assert len(fits) == 3

    more = {"stage1": {"epochs": 4}, "stage2": {"epochs": 0}}
    run = train(make_config("longer", **more))
    run.path.joinpath("gmm-10.safetensors").write_bytes(kept.read_bytes())
    sampling.save_samples(run.path, n=4, source="gmm-10")
    assert len(fits) == 4


def test_warnings_are_a_line_for_the_user(
    make_config: Make, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(make_config(latent_dim=8))
    assert main(["sample", str(run.path), "--n", "2", "--from", "gmm-10"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("vaekern: warning: 10 covariances in 8 dimensions take at least 90 ")
    assert error.count("\n") == 1


def test_vectors_have_no_strips(tmp_path: Path, make_config: Make, train: Train) -> None:
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(60, 3)))
    run = train(make_config(data=f"npy:{tmp_path / 'points.npy'}"))
    written = sampling.save_samples(run.path, n=4, source="interpolation")
    assert [each.suffix for each in written] == [".png", ".npy"]


def test_data_that_are_gone(
    run: TrainingRun, images: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    away = images.rename(tmp_path / "away.npy")
    try:
        assert main(["sample", str(run.path), "--from", "prior"]) == 0
        assert main(["sample", str(run.path), "--from", "interpolation"]) == 2
    finally:
        away.rename(images)
    assert "restore them, or run the command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--from gmm", "source must be one of prior, second-stage, gmm-10, "),
        ("--from prior --stage 1", "give a source (prior) or a stage (1), not both"),
        ("--from prior --n 0", "n must be at least 1, got 0"),
    ],
)
def test_mistakes(
    run: TrainingRun, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(run.path), *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_the_second_stage_must_be_trained(
    make_config: Make, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(make_config(stage2={"epochs": 0}))
    assert main(["sample", str(run.path), "--from", "second-stage"]) == 2
    assert "is not trained; sample with --from prior" in capsys.readouterr().err
    assert main(["sample", str(run.path), "--from", "gmm-10", "--n", "2"]) == 0


def test_help_lists_the_sources(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sample", "-h"])
    output = capsys.readouterr().out
    for name, row in SAMPLERS.items():
        assert f"{name} " in output
        assert row.summary in output


def test_a_run_on_digits_interpolates_between_its_test_images(tmp_path: Path) -> None:
    """The picture's outer columns are the images themselves."""
    from PIL import Image

    from vaekern.evaluation import interpolation_figure

    images = data.load("digits").test
    strips = torch.lerp(images[:4, None], images[4:8, None], torch.rand(1, 5, 1, 1, 1))
    path = tmp_path / "strips.png"
    interpolation_figure(images[:4], strips, images[4:8], path)
    pixels = np.asarray(Image.open(path).convert("RGB"))[..., 0]
    for image in (images[0], images[4], strips[0, 2]):  # each pixel is nine by nine
        tile = (image[0] * 255).round().byte().numpy().repeat(9, 0).repeat(9, 1)
        windows = np.lib.stride_tricks.sliding_window_view(pixels, tile.shape)
        corners = np.argwhere(windows[:, :, 0, 0] == tile[0, 0])
        assert any(np.array_equal(windows[y, x], tile) for y, x in corners)
    with pytest.raises(ValueError, match="strips and second must belong to first"):
        interpolation_figure(images[:4], strips, images[:3], path)
