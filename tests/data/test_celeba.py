"""CelebA folders with images of the published size, and the crops of the papers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from vaekern import data
from vaekern.data import source
from vaekern.data.celeba import POSITIONS
from vaekern.data.rows import ByteRows, Decoded


def save(path: Path, pixels: np.ndarray) -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(pixels).save(path)


def write(directory: Path, count: int = 20) -> None:
    """Images 000001.png, ... of the grey level of their number, 0.png-like names in order."""
    for i in range(1, count + 1):
        save(directory / f"{i:06}.png", np.full((218, 178, 3), i, np.uint8))


def message(spec: str, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as caught:
        data.load(spec)
    text = str(caught.value)
    assert ". " not in text
    assert text[-1] != "."
    return text


def numbers(images: torch.Tensor) -> list[int]:
    assert (images == images[:, :1, :1, :1]).all()
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("celeba", (45, 173), (25, 153)),
        ("celeba140", (39, 179), (19, 159)),
        ("celeba160", (29, 189), (9, 169)),
    ],
)
def test_crops(tmp_path: Path, name: str, rows: tuple[int, int], columns: tuple[int, int]):
    inside = np.zeros((218, 178, 3), np.uint8)
    inside[rows[0] : rows[1], columns[0] : columns[1]] = 255
    # red falls to the right, green from the top, inside the crop only
    side = rows[1] - rows[0]
    ramp = np.linspace(255, 0, side).astype(np.uint8)
    inside[rows[0] : rows[1], columns[0] : columns[1], 0] = ramp[None]
    inside[rows[0] : rows[1], columns[0] : columns[1], 1] = ramp[:, None]
    for i in range(20):
        save(tmp_path / f"{i:06}.png", inside)
    dataset = data.load(f"{name}:{tmp_path}")
    assert dataset.name == name
    assert dataset.sample_shape == (3, 64, 64)
    red, green, blue = dataset.train[0]
    # one pixel more on any side would bring black in; the weights sum to 1 up to rounding
    assert (blue > 1 - 1e-6).all()
    expected = torch.linspace(1, 0, side)
    expected = torch.nn.functional.interpolate(
        expected[None, None, None], (1, 64), mode="bilinear", antialias=True
    )[0, 0, 0]
    # grey levels were cut to whole ones in the file, up to 1, and rounded after the resize, up to
    # 1/2
    torch.testing.assert_close(red, expected.expand(64, 64), atol=1.5 / 255, rtol=0)
    torch.testing.assert_close(green, expected[:, None].expand(64, 64), atol=1.5 / 255, rtol=0)
    full = data.load(f"{name}:{tmp_path}", image_size=side)
    assert torch.equal(
        full.test[0] * 255,
        torch.from_numpy(inside[rows[0] : rows[1], columns[0] : columns[1]].copy())
        .permute(2, 0, 1)
        .float(),
    )


@pytest.mark.parametrize("folder", ["", "img_align_celeba"])
def test_split_by_position(tmp_path: Path, folder: str):
    write(tmp_path / folder)
    dataset = data.load(f"celeba:{tmp_path}")
    # 20 * 0.8034 and 20 * 0.9015, rounded down: 16 to train, 2 left out, 2 to test
    assert numbers(dataset.train) == list(range(1, 17))
    assert numbers(dataset.test) == [19, 20]
    assert POSITIONS[0] == 162_770
    assert sum(POSITIONS) == 202_599


def test_split_by_the_published_list(tmp_path: Path):
    write(tmp_path / "img_align_celeba", 6)
    groups = [2, 0, 1, 0, 2, 0]
    lines = [f"{i:06}.png {group}" for i, group in enumerate(groups, 1)]
    (tmp_path / "list_eval_partition.txt").write_text("\n".join([*lines, ""]))
    for directory in (tmp_path, tmp_path / "img_align_celeba"):
        dataset = data.load(f"celeba:{directory}")
        assert numbers(dataset.train) == [2, 4, 6]
        assert numbers(dataset.test) == [1, 5]


def test_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Decoded at each use on request, kept as bytes where float32 is too much: the same bits."""
    write(tmp_path)
    random = np.random.default_rng(0)
    save(tmp_path / "000001.png", random.integers(0, 256, (218, 178, 3), dtype=np.uint8))
    whole = data.load(f"celeba:{tmp_path}")
    on_disk = data.load(f"celeba:{tmp_path}", stream=True)
    assert isinstance(on_disk.train, Decoded)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # 16 training images are 0.8 MB as float32 and 0.2 MB as bytes
    monkeypatch.setattr(source, "SHARE_OF_MEMORY", 400_000 / memory)
    as_bytes = data.load(f"celeba:{tmp_path}")
    assert isinstance(as_bytes.train, ByteRows)
    assert isinstance(as_bytes.test, torch.Tensor)  # 2 images are 0.1 MB
    monkeypatch.setattr(source, "SHARE_OF_MEMORY", 1000 / memory)
    assert isinstance(data.load(f"celeba:{tmp_path}").train, Decoded)
    for rows in (on_disk, as_bytes):
        assert torch.equal(rows.train[:], whole.train)
        assert torch.equal(rows.test[:], whole.test)


def test_names_are_ordered_as_numbers(tmp_path: Path):
    for i in range(1, 21):
        save(tmp_path / f"{i}.png", np.full((218, 178, 3), i, np.uint8))
    assert numbers(data.load(f"celeba:{tmp_path}").test) == [19, 20]


def test_damaged_directories_name_the_first_bad_file(tmp_path: Path):
    images = tmp_path / "img_align_celeba"
    images.mkdir()
    assert "no image" in message(f"celeba:{tmp_path}")
    write(images)
    bad = images / "000007.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:40])
    assert str(bad) in message(f"celeba:{tmp_path}")
    bad.write_bytes(whole[: len(whole) // 2])
    assert str(bad) in message(f"celeba:{tmp_path}")
    save(bad, np.zeros((178, 218, 3), np.uint8))
    text = message(f"celeba:{tmp_path}")
    assert f"{bad} must have 178x218 pixels, got 218x178" in text
    bad.write_bytes(whole)
    save(images / "000001.png", np.zeros((64, 64, 3), np.uint8))
    assert "000001.png must have 178x218 pixels, got 64x64" in message(f"celeba:{tmp_path}")


def test_damaged_lists(tmp_path: Path):
    write(tmp_path, 4)
    path = tmp_path / "list_eval_partition.txt"
    path.write_text("000001.png 0\n000002.png zwei\n")
    assert f"line 2 of {path}" in message(f"celeba:{tmp_path}")
    path.write_text("000001.png 0\n000002.png 0\n000003.png 2\n")
    assert "does not list 000004.png" in message(f"celeba:{tmp_path}")
    path.write_text("".join(f"{i:06}.png {i % 3}\n" for i in range(1, 6)))
    text = message(f"celeba:{tmp_path}", FileNotFoundError)
    assert "000005.png is missing" in text
    path.write_text("".join(f"{i:06}.png 0\n" for i in range(1, 5)))
    assert "4 images for training and 0 for testing" in message(f"celeba:{tmp_path}")
    path.write_text("".join(f"{min(i, 3):06}.png {i % 3}\n" for i in range(1, 5)))
    assert f"line 4 of {path} lists 000003.png a second time" in message(f"celeba:{tmp_path}")


def test_celeba_hq(tmp_path: Path):
    for i in range(10):
        save(tmp_path / f"{i}.png", np.full((256, 256, 3), 20 * i, np.uint8))
    dataset = data.load(f"celeba-hq:{tmp_path}")
    assert dataset.sample_shape == (3, 128, 128)
    assert sorted([*numbers(dataset.train), *numbers(dataset.test)]) == list(range(0, 200, 20))
    assert len(dataset.test) == 1
    assert data.load(f"celeba-hq:{tmp_path}", image_size=32).sample_shape == (3, 32, 32)
    save(tmp_path / "5.png", np.zeros((128, 128, 3), np.uint8))
    text = message(f"celeba-hq:{tmp_path}")
    assert "256x256" in text
    assert "128x128" in text
    save(tmp_path / "0.png", np.zeros((218, 178, 3), np.uint8))
    assert "celeba:DIR" in message(f"celeba-hq:{tmp_path}")
