"""The dSprites file, small and in its own format."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from vaekern import data

SHAPES, SCALES = (1, 2, 3), (0.5, 1.0)


@pytest.fixture
def content() -> dict[str, np.ndarray]:
    grid = np.array(list(itertools.product([1.0], SHAPES, SCALES, [0.0, 3.0], [0.0, 1.0], [0.5])))
    images = np.random.default_rng(0).integers(0, 2, (len(grid), 8, 8), dtype=np.uint8)
    return {
        "metadata": np.array({"author": "lmatthey"}, dtype=object),
        "imgs": images,
        "latents_classes": np.zeros((len(grid), 6), np.int64),
        "latents_values": grid,
    }


def test_images_and_factors(tmp_path: Path, content: dict[str, np.ndarray]) -> None:
    path = tmp_path / "dsprites.npz"
    np.savez_compressed(path, **content)  # its metadata are pickled, and left alone
    found = data.load(f"dsprites:{path}", test_fraction=0.25)
    assert (found.name, found.kind, found.value_range) == ("dsprites", "image", (0.0, 1.0))
    assert found.factor_names == ("shape", "scale", "orientation", "x", "y")
    assert found.factor_is_class == [True, False, False, False, False]
    assert (len(found.train), len(found.test)) == (18, 6)
    known = {
        image.tobytes(): values[1:] - [1, 0, 0, 0, 0]
        for image, values in zip(content["imgs"], content["latents_values"], strict=True)
    }
    for x, factors, labels in (
        (found.train, found.train_factors, found.train_labels),
        (found.test, found.test_factors, found.test_labels),
    ):
        for image, own, label in zip(x, factors, labels, strict=True):
            expected = known[image[0].byte().numpy().tobytes()]
            assert own.tolist() == pytest.approx(expected.tolist())
            assert label == expected[0]
    rows = data.load(f"dsprites:{path}", test_fraction=0.25, stream=True)
    assert isinstance(rows.train, data.Rows)
    assert torch.equal(rows.train[:], found.train)
    small = data.load(f"dsprites:{path}", image_size=4, stream=True)
    assert torch.equal(small.test[:], data.load(f"dsprites:{path}", image_size=4).test)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imgs": None}, "must hold imgs and latents_values, got latents_classes, latents_values"),
        ({"imgs": np.full((24, 8, 8), 255, np.uint8)}, "imgs uint8 .N, H, W. of 0 and 1"),
        ({"imgs": np.zeros((23, 8, 8), np.uint8)}, r"got uint8 \[23, 8, 8\] and float64 \[24, 6\]"),
        ({"latents_values": np.full((24, 6), np.nan)}, "of finite numbers"),
    ],
)
def test_another_file(
    tmp_path: Path, content: dict[str, np.ndarray], change: dict[str, object], message: str
) -> None:
    path = tmp_path / "x.npz"
    del content["metadata"]
    np.savez(path, **{k: v for k, v in (content | change).items() if v is not None})
    with pytest.raises(ValueError, match=f"^{path} is not the dSprites file: .*{message}"):
        data.load(f"dsprites:{path}")


def test_one_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"x\.npy is not the dSprites file but one array"):
        data.load(f"dsprites:{tmp_path / 'x.npy'}")
