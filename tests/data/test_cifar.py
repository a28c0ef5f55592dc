"""CIFAR-10's two formats, written here as the archives have them."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from vaekern import data
from vaekern.data.pickled import read_pickled_values

COUNT = 6
NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def batch(i: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 3072 bytes as in the archive, and labels; smooth, so that JPEG keeps them."""
    random = np.random.default_rng(i)
    coarse = random.integers(0, 256, (COUNT, 3, 4, 4), dtype=np.uint8)
    return coarse.repeat(8, 2).repeat(8, 3).reshape(COUNT, 3072), random.integers(0, 10, COUNT)


def python2_pickle(rows: np.ndarray, labels: np.ndarray) -> bytes:
    """The opcodes of the published files, which Python 2 and numpy 1 wrote."""
    content = rows.tobytes()
    return b"".join(
        [
            b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03",
            b"U\x06labelsq\x04]q\x05(",
            *(b"K" + bytes([label]) for label in labels.tolist()),
            b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08",
            b"K\x00\x85U\x01b\x87Rq\x09(K\x01K",
            bytes([len(rows)]),
            b"M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNN",
            b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T",
            len(content).to_bytes(4, "little"),
            content,
            b"tbU\x09filenamesq\x0c]q\x0d(",
            *(b"U\x05a.png" for _ in labels),
            b"eu.",
        ]
    )


def write_binary(directory: Path) -> None:
    for i, name in enumerate(NAMES):
        rows, labels = batch(i)
        content = np.concatenate([labels[:, None].astype(np.uint8), rows], 1)
        (directory / f"{name}.bin").write_bytes(content.tobytes())


def write_python(directory: Path) -> None:
    for i, name in enumerate(NAMES):
        (directory / name).write_bytes(python2_pickle(*batch(i)))


def message(spec: str, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as caught:
        data.load(spec)
    text = str(caught.value)
    assert ". " not in text
    assert text[-1] != "."
    return text


def test_the_hand_written_pickle_is_one():
    """The fixture is what pickle itself would read; only the reader under test never unpickles."""
    rows, labels = batch(0)
    values = pickle.loads(python2_pickle(rows, labels), encoding="bytes")
    assert (values[b"data"] == rows).all()
    assert values[b"labels"] == labels.tolist()


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin", "cifar-10-batches-py"])
@pytest.mark.parametrize("write", [write_binary, write_python])
def test_both_versions(tmp_path: Path, write, folder: str):
    (tmp_path / folder).mkdir(exist_ok=True)
    write(tmp_path / folder)
    dataset = data.load(f"cifar10:{tmp_path}")
    assert (dataset.name, dataset.kind, dataset.value_range) == ("cifar10", "image", (0.0, 1.0))
    assert dataset.train.shape == (5 * COUNT, 3, 32, 32)
    for i, samples, labels in (
        (0, dataset.train[:COUNT], dataset.train_labels[:COUNT]),
        (4, dataset.train[-COUNT:], dataset.train_labels[-COUNT:]),
        (5, dataset.test, dataset.test_labels),
    ):
        rows, expected = batch(i)
        # red, green, blue planes of 32 rows each
        planes = torch.from_numpy(rows.astype(np.float32) / 255).view(COUNT, 3, 32, 32)
        assert torch.equal(samples, planes)
        assert labels.tolist() == expected.tolist()


@pytest.mark.parametrize("protocol", range(6))
def test_batches_that_python_3_wrote_again(tmp_path: Path, protocol: int):
    write_python(tmp_path)
    rows, labels = batch(2)
    values = {b"data": rows, b"labels": labels.tolist(), b"batch_label": b"training batch 3 of 5"}
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(values, protocol=protocol))
    dataset = data.load(f"cifar10:{tmp_path}")
    expected = torch.from_numpy(rows.astype(np.float32) / 255).view(COUNT, 3, 32, 32)
    assert torch.equal(dataset.train[2 * COUNT : 3 * COUNT], expected)


def test_jpeg_round_trip(tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    write_binary(tmp_path)
    plain, jpeg = data.load(f"cifar10:{tmp_path}"), data.load(f"cifar10-jpeg:{tmp_path}")
    assert jpeg.name == "cifar10-jpeg"
    assert torch.equal(jpeg.train_labels, plain.train_labels)
    for ours, original in ((jpeg.train[7], plain.train[7]), (jpeg.test[1], plain.test[1])):
        path = tmp_path / "one.jpg"
        pixels = (original * 255).round().byte().permute(1, 2, 0).numpy()
        image.fromarray(pixels).save(path)  # Pillow's own quality, 75
        with image.open(path) as again:
            expected = np.asarray(again).transpose(2, 0, 1)
        assert ((ours * 255).round().byte().numpy() == expected).all()
        assert not torch.equal(ours, original)
        # colours of blocks of 8x8 come back within a few levels
        assert (ours - original).abs().mean() < 0.1


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("the file was unpickled",))


@pytest.mark.parametrize("protocol", range(6))
def test_what_would_run_code_is_refused_unrun(tmp_path: Path, protocol: int):
    write_python(tmp_path)
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": batch(0)[0], "labels": [Bomb()]}, protocol=protocol))
    text = message(f"cifar10:{tmp_path}")
    assert str(path) in text
    assert "run code" in text


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(b"cos\nsystem\n(S'true'\ntR.", id="a call"),
        pytest.param(b"\x80\x02cnumpy\ndtype\nU\x02u1\x85\x81.", id="a new object"),
        pytest.param(b"(S'true'\nios\nsystem\n.", id="an instance"),
        pytest.param(b"\x80\x02\x82\x01.", id="an extension"),
        pytest.param(b"\x80\x02U\x01aQ.", id="a persistent name"),
        pytest.param(b"\x80\x02}}b.", id="a state of a dictionary"),
        pytest.param(b"\x80\x02cnumpy\nndarray\nK\x00\x85R.", id="another known name called"),
    ],
)
def test_programs_beyond_plain_values(tmp_path: Path, program: bytes):
    path = tmp_path / "file"
    path.write_bytes(program)
    with pytest.raises(ValueError, match="may run code"):
        read_pickled_values(path)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(b"\x80\x02}q\x00K\x01h\x00s.", id="a dictionary that holds itself"),
        pytest.param(b"\x80\x02cnumpy\ndtype\n]\x85R.", id="a type that is a list"),
        pytest.param(b"\x80\x02cnumpy\ndtype\nU\x08f8,(9,)O\x85R.", id="a compound type"),
        pytest.param(b"\x80\x02}]K\x01s.", id="a key that is a list"),
        # hashing it would use up the stack of the process
        pytest.param(b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.", id="a deep key"),
        pytest.param(b"\x80\x02K\x01K\x02.", id="two values"),
        pytest.param(b"\x80\x02K\x01", id="no end"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_programs_that_make_no_sense(tmp_path: Path, program: bytes):
    path = tmp_path / "file"
    path.write_bytes(program)
    with pytest.raises(ValueError, match="truncated, damaged or no pickle"):
        read_pickled_values(path)


def test_every_cut_and_every_changed_byte_is_an_error_or_a_value(tmp_path: Path):
    """No damage escapes as anything but the one sentence."""
    rows, labels = np.zeros((1, 3072), np.uint8), np.array([3])
    whole = python2_pickle(rows, labels)
    start = whole.index(b"\x89T") + 6
    small = whole[: start - 4] + (0).to_bytes(4, "little") + whole[start + 3072 :]
    path = tmp_path / "file"
    for end in range(0, len(small), 3):
        path.write_bytes(small[:end])
        with pytest.raises(ValueError, match=r"truncated|run code"):
            read_pickled_values(path)
    random = np.random.default_rng(0)
    errors = 0
    for _ in range(500):
        damaged = bytearray(small)
        damaged[random.integers(len(small))] = random.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            read_pickled_values(path)
            errors -= 1
        errors += 1
    assert errors > 100  # most of the bytes matter; some only change a label or a name


@pytest.mark.parametrize("size", [None, 8])
def test_kept_as_bytes(tmp_path: Path, size: int | None):
    write_binary(tmp_path)
    whole = data.load(f"cifar10:{tmp_path}", image_size=size)
    rows = data.load(f"cifar10:{tmp_path}", image_size=size, stream=True)
    assert isinstance(rows.train, data.Rows)
    assert rows.train.shape == whole.train.shape
    chosen = torch.tensor([7, 0, 29])
    assert torch.equal(rows.train[chosen], whole.train[chosen])
    assert torch.equal(rows.test[:], whole.test)
    assert torch.equal(rows.train_labels, whole.train_labels)


def test_damaged_directories_name_the_first_bad_file(tmp_path: Path):
    assert "neither data_batch_1.bin nor data_batch_1" in message(
        f"cifar10:{tmp_path}", FileNotFoundError
    )
    write_binary(tmp_path)
    third = tmp_path / "data_batch_3.bin"
    whole = third.read_bytes()
    third.write_bytes(whole[:-5])
    assert f"{third} is truncated" in message(f"cifar10:{tmp_path}")
    third.write_bytes(whole[:-3073])
    assert f"{third} holds 5 images" in message(f"cifar10:{tmp_path}")
    third.write_bytes(b"")
    assert f"{third} is truncated" in message(f"cifar10:{tmp_path}")
    third.write_bytes(whole[:3073] + b"\x0a" + whole[3074:])
    text = message(f"cifar10:{tmp_path}")
    assert str(third) in text
    assert "image 1 has the label 10" in text
    third.unlink()
    (tmp_path / "test_batch.bin").unlink()
    assert str(third) in message(f"cifar10:{tmp_path}", FileNotFoundError)


@pytest.mark.parametrize(
    "values",
    [
        {"data": np.zeros((2, 3071), np.uint8), "labels": [1, 2]},
        {"data": np.zeros((2, 3072), np.int8), "labels": [1, 2]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": ["1", "2"]},
        {"data": [1, 2], "labels": [1, 2]},
        {"fine_labels": [1]},
        [1, 2],
    ],
)
def test_pickles_of_something_else(tmp_path: Path, values: object):
    write_python(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(values, protocol=2))
    text = message(f"cifar10:{tmp_path}")
    assert "data_batch_1 is no batch of CIFAR-10" in text


def test_arrays_of_other_layouts_keep_their_values(tmp_path: Path):
    values = {
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        "big": np.arange(4, dtype=">f8"),
        "scalar": 3.5,
        "none": None,
        "nested": {"a": [True, False, -7, 2**40]},
    }
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps(values, protocol=4))
    found = read_pickled_values(path)
    assert (found["fortran"] == values["fortran"]).all()
    assert found["big"].tolist() == [0, 1, 2, 3]
    assert (found["scalar"], found["none"], found["nested"]) == (3.5, None, values["nested"])
    path.write_bytes(pickle.dumps({"a": np.array([None, 1], dtype=object)}, protocol=2))
    with pytest.raises(ValueError, match="no plain number"):
        read_pickled_values(path)
