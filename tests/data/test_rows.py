"""Samples on disk: the same as in memory, to the last bit."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vaekern import data
from vaekern.data.rows import Decoded, FileRows, Rows, at_most, in_memory, spread

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (50, 6, 6), dtype=np.uint8)
ARRAYS = {
    "bytes": BYTES,
    "channels first": RNG.integers(0, 256, (30, 3, 4, 4), dtype=np.uint8),
    "channels last": RNG.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8),
    "float32": RNG.random((30, 4, 4), dtype=np.float32),
    "float64": RNG.random((30, 4, 4)),
    "bool": RNG.random((30, 4, 4)) < 0.5,
    "vectors": RNG.normal(size=(30, 5)),
    "big-endian vectors": RNG.normal(size=(30, 5)).astype(">f4"),
}


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim])
    return header + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def npy(folder: Path, array: np.ndarray) -> str:
    np.save(folder / "x.npy", array)
    return f"npy:{folder / 'x.npy'}"


def both(spec: str, **options: Any) -> tuple[data.Dataset, data.Dataset]:
    return data.load(spec, stream=False, **options), data.load(spec, stream=True, **options)


def check_same(memory: data.Dataset, disk: data.Dataset) -> None:
    assert (disk.kind, disk.sample_shape) == (memory.kind, memory.sample_shape)
    assert disk.value_range == memory.value_range
    for tensor, rows in ((memory.train, disk.train), (memory.test, disk.test)):
        assert isinstance(tensor, Tensor)
        assert isinstance(rows, Rows)
        assert (rows.shape, rows.ndim, len(rows)) == (tensor.shape, tensor.ndim, len(tensor))
        assert (rows.numel(), rows.dtype) == (tensor.numel(), tensor.dtype)
        assert rows[:].equal(tensor)
        assert rows[1:3].equal(tensor[1:3])
        some = torch.randperm(len(tensor))[: len(tensor) // 2]
        assert rows[some].equal(tensor[some])
        assert torch.cat(list(rows.split(4))).equal(tensor)
        pieces = zip(rows.tensor_split(2), tensor.tensor_split(2), strict=True)
        assert all(a.equal(b) for a, b in pieces)
        assert rows.select(some)[-2:].equal(tensor[some][-2:])
    assert (memory.train_labels is None) == (disk.train_labels is None)
    if memory.train_labels is not None:
        assert disk.train_labels is not None
        assert disk.train_labels.equal(memory.train_labels)


@pytest.mark.parametrize("name", ARRAYS)
def test_npy_on_disk_is_the_same_as_in_memory(name: str, tmp_path: Path) -> None:
    check_same(*both(npy(tmp_path, ARRAYS[name])))


def test_resized_on_disk_is_the_same_as_in_memory(tmp_path: Path) -> None:
    check_same(*both(npy(tmp_path, BYTES), image_size=4))


@pytest.mark.parametrize("own_test", [True, False])
def test_idx_on_disk_is_the_same_as_in_memory(own_test: bool, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(BYTES[:40]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(40, dtype="u1") % 3))
    if own_test:
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(BYTES[40:]))
    check_same(*both(f"idx:{tmp_path}"))


def test_large_sets_stay_on_disk_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = npy(tmp_path, BYTES)
    assert isinstance(data.load(spec).train, Tensor)
    monkeypatch.setattr("vaekern.data.source.SHARE_OF_MEMORY", 0.0)
    assert isinstance(data.load(spec).train, Rows)
    assert isinstance(data.load(spec, stream=False).train, Tensor)


def test_what_cannot_be_read_in_parts_says_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=BYTES)
    np.save(tmp_path / "f.npy", np.asfortranarray(BYTES))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(BYTES)))
    remedies = {
        f"npy:{tmp_path / 'x.npz'}": "numpy.save, in C order",
        f"npy:{tmp_path / 'f.npy'}": "numpy.save, in C order",
        f"idx:{tmp_path}": "gunzip",
        "digits": "numpy.save",
    }
    for spec, remedy in remedies.items():
        with pytest.raises(ValueError, match=rf"^stream must be false .*got true.*{remedy}$"):
            data.load(spec, stream=True)
    with pytest.raises(TypeError, match=r"^stream must be True, False or None, got 1$"):
        data.load("digits", stream=1)  # type: ignore[arg-type]


def test_damage_is_found_before_training_or_when_the_sample_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"uint8 images of only 0 and 1"):
        data.load(npy(tmp_path, BYTES // 128), stream=True)
    with pytest.raises(ValueError, match=r"float images from 0.* to 2"):
        data.load(npy(tmp_path, 2 * np.linspace(0, 1, 160).reshape(10, 4, 4)), stream=True)
    with pytest.raises(ValueError, match=r"is empty"):
        data.load(npy(tmp_path, BYTES[:0]), stream=True)
    with pytest.raises(ValueError, match=r"^image_size=4 applies to images"):
        data.load(npy(tmp_path, ARRAYS["vectors"]), stream=True, image_size=4)
    monkeypatch.setattr("vaekern.data.arrays.CHECKED", 1)
    vectors = ARRAYS["vectors"].copy()
    vectors[17, 2] = np.nan
    rows = data.load(npy(tmp_path, vectors), stream=True)
    with pytest.raises(ValueError, match=r"^sample 17 of .*x\.npy must be finite"):
        torch.cat([rows.train[:], rows.test[:]])


def test_a_file_cut_short_while_it_is_read_says_so(tmp_path: Path) -> None:
    rows = data.load(npy(tmp_path, BYTES), stream=True).train
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(ValueError, match=r"x\.npy is truncated: it ends before sample \d+; "):
        rows[:]


def test_an_idx_file_whose_length_is_wrong_is_refused_before_training(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    for content, fault in ((idx_bytes(BYTES)[:-1], "truncated"), (idx_bytes(BYTES) + b"x", "long")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path} is .*{fault}: its header announces"):
            data.load(f"idx:{tmp_path}", stream=True)


def test_files_that_are_decoded_one_by_one(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}").write_bytes(bytes([i] * 4))

    def decode(path: Path) -> Tensor:
        return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).view(1, 1, 2, -1)

    rows = Decoded(sorted(tmp_path.iterdir()), decode)
    assert rows.shape == (5, 1, 2, 2)
    assert rows[torch.tensor([4, 1])].flatten(1).tolist() == [[4.0] * 4, [1.0] * 4]
    (tmp_path / "3").write_bytes(bytes(6))
    with pytest.raises(ValueError, match=r"3 must have shape \[1, 2, 2\] .* got \[1, 2, 3\]"):
        rows[2:4]


def test_a_part_of_what_is_on_disk_lies_evenly_in_it(tmp_path: Path) -> None:
    np.arange(20, dtype="f4").tofile(tmp_path / "x")
    rows = FileRows(tmp_path / "x", 0, np.dtype("f4"), (20, 1), lambda a, _: torch.from_numpy(a))
    assert in_memory(rows, 4).flatten().tolist() == [0.0, 5.0, 10.0, 15.0]
    assert at_most(rows, 4)[:].equal(in_memory(rows, 4))
    assert spread(3, 10).tolist() == [0, 1, 2]
    tensor = torch.ones(3)
    assert in_memory(tensor, 1) is tensor
    assert at_most(tensor, 1) is tensor
