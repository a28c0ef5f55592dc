"""Readers against small files in their real formats."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from vaekern import data
from vaekern.data.source import ReadOptions

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 5), dtype=np.uint8)
LABELS = (np.arange(20) % 4).astype(np.uint8)
IDX_CODES = {"u1": 0x08, "i4": 0x0C, "f4": 0x0D}


def idx_bytes(array: np.ndarray) -> bytes:
    code = IDX_CODES[array.dtype.str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def message(spec: str, error: type[Exception] = ValueError, **options: object) -> str:
    """The error's text, which must be one sentence."""
    with pytest.raises(error) as caught:
        data.load(spec, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert text[-1] != "."
    assert ". " not in text
    assert "\n" not in text
    return text


def rows(samples: torch.Tensor) -> set[bytes]:
    return {row.contiguous().numpy().tobytes() for row in samples}


# ------------------------------------------------------------------ digits


def test_digits_are_scikit_learn_s_however_they_are_read(monkeypatch: pytest.MonkeyPatch):
    from sklearn.datasets import load_digits

    from vaekern.data import digits

    expected = load_digits()
    table = digits._table()
    assert np.array_equal(table[:, :-1], expected.data)
    assert np.array_equal(table[:, -1], expected.target)
    monkeypatch.setattr(digits, "FILE", "moved")
    assert np.array_equal(digits._table(), table)


def test_digits_are_the_bundled_images_split_by_class():
    dataset = data.load("digits")
    assert dataset.sample_shape == (1, 8, 8)
    assert (dataset.name, dataset.kind, dataset.value_range) == ("digits", "image", (0.0, 1.0))
    assert len(dataset.train) == 1617
    assert len(dataset.test) == 180
    assert dataset.train.min() == 0
    assert dataset.train.max() == 1
    # 16 grey levels, exactly
    assert torch.equal(dataset.train * 16, (dataset.train * 16).round())
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    share = torch.bincount(dataset.test_labels).double() / (
        torch.bincount(torch.cat([dataset.train_labels, dataset.test_labels])).double()
    )
    assert ((share - 0.1).abs() < 0.01).all()


def test_the_split_is_a_partition_fixed_by_the_seed():
    once, again, other = data.load("digits"), data.load("digits"), data.load("digits", seed=1)
    assert torch.equal(once.test, again.test)
    assert torch.equal(once.train, again.train)
    assert not torch.equal(once.test, other.test)
    joined = torch.cat([once.train, once.test]).flatten(1).sort(0).values
    assert torch.equal(joined, torch.cat([other.train, other.test]).flatten(1).sort(0).values)


def test_image_size_resizes_digits():
    small = data.load("digits")
    large = data.load("digits", image_size=28)
    assert large.sample_shape == (1, 28, 28)
    assert large.train.min() >= 0
    assert large.train.max() <= 1
    assert torch.allclose(large.train.mean(), small.train.mean(), atol=0.02)


# --------------------------------------------------------------------- idx


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("separator", ["-", "."], ids=["dashed", "dotted"])
def test_idx_directory(tmp_path: Path, zipped: bool, separator: str):
    for part, count in (("train", 14), ("t10k", 6)):
        for kind, array in (("images", IMAGES[:count]), ("labels", LABELS[:count])):
            name = f"{part}-{kind}{separator}idx{array.ndim}-ubyte"
            content = idx_bytes(array)
            if zipped:
                name, content = f"{name}.gz", gzip.compress(content)
            (tmp_path / name).write_bytes(content)
    dataset = data.load(f"idx:{tmp_path}")
    assert dataset.kind == "image"
    assert dataset.sample_shape == (1, 6, 5)
    expected = torch.from_numpy(IMAGES[:14].astype(np.float32))[:, None] / 255
    assert torch.equal(dataset.train, expected)
    assert torch.equal(dataset.test, expected[:6])
    assert dataset.train_labels is not None
    assert dataset.train_labels.dtype == torch.int64
    assert dataset.train_labels.tolist() == LABELS[:14].tolist()


def test_idx_without_a_test_set_or_labels_is_split(tmp_path: Path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    dataset = data.load(f"idx:{tmp_path}", test_fraction=0.25)
    assert dataset.train_labels is None
    assert len(dataset.test) == 5
    everything = torch.from_numpy(IMAGES.astype(np.float32) / 255)
    assert rows(dataset.train) | rows(dataset.test) == rows(everything)


def test_idx_reads_big_endian_labels(tmp_path: Path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    wide = np.arange(20, dtype=np.int32) + 1000  # a byte order mistake would show
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(wide))
    dataset = data.load(f"idx:{tmp_path}")
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    together = torch.cat([dataset.train_labels, dataset.test_labels])
    assert sorted(together.tolist()) == wide.tolist()


GOOD = idx_bytes(IMAGES)  # 16 bytes of header and 20 * 6 * 5 = 600 of values


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(GOOD[:-100], ["truncated", "600 bytes", "found 500"], id="truncated"),
        pytest.param(GOOD + b"\0\0", ["too long", "600 bytes"], id="too long"),
        pytest.param(GOOD[:9], ["truncated", "16 bytes", "found 9"], id="short header"),
        pytest.param(b"", ["not an IDX file", "nothing"], id="empty"),
        pytest.param(b"PK\3\4" + GOOD, ["not an IDX file", "50 4b 03 04"], id="wrong magic"),
        pytest.param(b"\0\0\x0f\3" + GOOD[4:], ["not an IDX file"], id="unknown type"),
        pytest.param(
            # announces 2**96 values: must be refused by arithmetic, not by allocating
            b"\0\0\x08\3" + b"\xff" * 12,
            ["truncated", str((2**32 - 1) ** 3), "found 0"],
            id="huge header",
        ),
        pytest.param(gzip.compress(GOOD)[:-60], ["truncated", "no end"], id="cut gzip"),
        pytest.param(gzip.compress(GOOD)[:-8] + b"\0" * 8, ["damaged gzip"], id="gzip checksum"),
        pytest.param(idx_bytes(LABELS), ["shape", "[20]"], id="labels for images"),
    ],
)
def test_damaged_idx_files_say_what_was_expected_and_found(
    tmp_path: Path, content: bytes, words: list[str]
):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    text = message(f"idx:{tmp_path}")
    assert str(path) in text
    for word in words:
        assert word in text


def test_idx_files_that_others_ask_for(tmp_path: Path):
    for part, images, labels in (("train", IMAGES, LABELS), ("t10k", IMAGES[:6], LABELS[:6])):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    assert len(data.load(f"idx:{tmp_path}").test) == 6
    for name in ("t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        text = message(f"idx:{tmp_path}", FileNotFoundError)
        assert text.startswith(f"{tmp_path / name} is missing, though t10k-labels-idx1-ubyte is")
        (tmp_path / name).write_bytes(kept)


def test_idx_label_count_must_match(tmp_path: Path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(GOOD)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[:7]))
    text = message(f"idx:{tmp_path}")
    assert "20 samples" in text
    assert "[7]" in text


def test_idx_directory_without_files_lists_the_names(tmp_path: Path):
    text = message(f"idx:{tmp_path}", FileNotFoundError)
    assert "train-images-idx3-ubyte" in text
    assert "train-images.idx3-ubyte.gz" in text


# --------------------------------------------------------------------- npy


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        pytest.param(IMAGES, (1, 6, 5), id="NHW"),
        pytest.param(IMAGES[:, None], (1, 6, 5), id="N1HW"),
        pytest.param(IMAGES[..., None], (1, 6, 5), id="NHW1"),
        pytest.param(np.stack([IMAGES] * 3, 1), (3, 6, 5), id="N3HW"),
        pytest.param(np.stack([IMAGES] * 3, 3), (3, 6, 5), id="NHW3"),
    ],
)
def test_npy_image_layouts(tmp_path: Path, array: np.ndarray, shape: tuple[int, ...]):
    np.save(tmp_path / "faces.npy", array)
    dataset = data.load(f"npy:{tmp_path / 'faces.npy'}")
    assert dataset.name == "faces"
    assert dataset.kind == "image"
    assert dataset.sample_shape == shape
    expected = torch.from_numpy(IMAGES.astype(np.float32) / 255)
    for channel in range(shape[0]):
        assert rows(dataset.train[:, channel]) | rows(dataset.test[:, channel]) == rows(expected)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "?", ">f4"])
def test_npy_vectors(tmp_path: Path, dtype: str):
    values = np.random.default_rng(1).normal(0, 30, (12, 3)).astype(dtype)
    np.save(tmp_path / "points.npy", values)
    dataset = data.load(f"npy:{tmp_path / 'points.npy'}")
    assert (dataset.kind, dataset.value_range, dataset.sample_shape) == ("vector", None, (3,))
    assert rows(dataset.train) | rows(dataset.test) == rows(
        torch.from_numpy(values.astype(np.float32))
    )


def test_npy_float_and_fortran_images_keep_their_values(tmp_path: Path):
    values = np.asfortranarray(np.random.default_rng(2).random((8, 4, 4)))
    np.save(tmp_path / "a.npy", values)
    dataset = data.load(f"npy:{tmp_path / 'a.npy'}")
    assert rows(dataset.train[:, 0]) | rows(dataset.test[:, 0]) == rows(
        torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    )


def test_npz_with_test_set_and_labels(tmp_path: Path):
    np.savez_compressed(
        tmp_path / "mnist.npz",
        x_train=IMAGES[:15],
        y_train=LABELS[:15],
        x_test=IMAGES[15:],
        y_test=LABELS[15:, None],
    )
    dataset = data.load(f"npy:{tmp_path / 'mnist.npz'}")
    assert torch.equal(dataset.test[:, 0] * 255, torch.from_numpy(IMAGES[15:]).float())
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    assert dataset.train_labels.tolist() == LABELS[:15].tolist()
    assert dataset.test_labels.tolist() == LABELS[15:].tolist()


def test_npz_with_one_array_of_any_name(tmp_path: Path):
    np.savez(tmp_path / "a.npz", whatever=np.eye(4, dtype=np.float32))
    assert data.load(f"npy:{tmp_path / 'a.npz'}").sample_shape == (4,)


def with_bad(value: float) -> np.ndarray:
    array = np.zeros((4, 3))
    array[2, 1] = value
    return array


@pytest.mark.parametrize(
    ("array", "words"),
    [
        pytest.param(with_bad(np.nan), ["finite", "1 of 12", "in sample 2, is nan"], id="nan"),
        pytest.param(with_bad(-np.inf), ["finite", "-inf"], id="inf"),
        pytest.param(with_bad(1e39), ["finite in float32", "1e+39"], id="overflow"),
        pytest.param(np.array([[1], [2**24 + 1]]), ["16777217", "rescale"], id="big integers"),
        pytest.param(np.array([[-(2**63)], [0]]), [str(-(2**63)), "rescale"], id="smallest int64"),
        pytest.param(np.array([[1j], [2]]), ["complex128"], id="complex"),
        pytest.param(np.array([["a"], ["b"]]), ["<U1"], id="text"),
        pytest.param(np.zeros((0, 3)), ["empty"], id="no samples"),
        pytest.param(np.zeros((1, 3)), ["1 sample,"], id="one sample"),
        pytest.param(np.zeros(5), ["shape", "[5]"], id="one axis"),
        pytest.param(np.zeros((2, 4, 4, 4)), ["shape", "[2, 4, 4, 4]"], id="four channels"),
        pytest.param(np.full((2, 4, 4), 255.0), ["0, 1]", "255"], id="unscaled float images"),
        pytest.param(np.full((2, 4, 4), -1.0), ["0, 1]", "-1"], id="tanh images"),
        pytest.param(np.zeros((2, 4, 4), np.int64), ["int64", "uint8"], id="integer images"),
        pytest.param(np.eye(4, dtype=np.uint8)[None].repeat(2, 0), ["astype(bool)"], id="0/1"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path: Path, array: np.ndarray, words: list[str]):
    np.save(tmp_path / "bad.npy", array)
    text = message(f"npy:{tmp_path / 'bad.npy'}")
    assert "bad.npy" in text
    for word in words:
        assert word in text


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("the file was unpickled",))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_object_arrays_are_refused_unread(tmp_path: Path, suffix: str):
    path = tmp_path / f"bad{suffix}"
    save = np.save if suffix == ".npy" else np.savez
    save(path, np.array([[Bomb()], [Bomb()]], dtype=object))
    text = message(f"npy:{path}")
    assert "object array" in text
    assert str(path) in text


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_truncated_arrays(tmp_path: Path, suffix: str):
    path = tmp_path / f"bad{suffix}"
    save = np.save if suffix == ".npy" else np.savez
    save(path, np.zeros((100, 30)))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    text = message(f"npy:{path}")
    assert "truncated" in text
    assert f"{size // 2} bytes" in text


def test_files_of_another_kind(tmp_path: Path):
    path = tmp_path / "bad.npy"
    path.write_bytes(b"x,y\n1,2\n")
    assert "not a .npy or .npz file" in message(f"npy:{path}")
    path.write_bytes(b"")
    assert "nothing" in message(f"npy:{path}")
    np.savez(tmp_path / "two.npz", first=IMAGES, second=IMAGES)
    assert "first, second" in message(f"npy:{tmp_path / 'two.npz'}")


def test_headers_that_make_no_sense_are_damage(tmp_path: Path):
    path = tmp_path / "bad.npy"
    np.save(path, np.zeros((4, 3), np.float32))
    good = path.read_bytes()
    for old, new in (
        (b"(4, 3)", b"(4, 3 "),
        (b"(4, 3)", b"(True,3)"),
        (b"(4, 3)", b"(9**99,)"),
        (b"'<f4'", b"'<f4"),
        (b"{", b"\xff"),
    ):
        path.write_bytes(good.replace(old, new, 1))
        text = message(f"npy:{path}")
        assert text.startswith(str(path))
        assert "truncated or damaged" in text
    path.write_bytes(good + bytes(8))
    assert "goes on for 8 bytes" in message(f"npy:{path}")


def test_archives_of_something_else(tmp_path: Path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no array")
    assert "readme.txt in" in message(f"npy:{path}")
    assert "is not an array" in message(f"npy:{path}")
    np.savez(path, x_train=IMAGES, x_test=np.full((3, 2), np.nan))
    assert f"x_test of {path}" in message(f"npy:{path}")
    np.savez(path, x=IMAGES, y=LABELS[:5])
    assert f"y of {path}" in message(f"npy:{path}")
    whole = bytearray(path.read_bytes())
    for flag in (1, 32):  # encrypted; compressed patched data
        whole[6] = flag
        whole[whole.find(b"PK\x01\x02") + 8] = flag
        path.write_bytes(whole)
        assert "truncated or damaged" in message(f"npy:{path}")


def test_only_images_larger_than_they_are_loaded_decide_on_streaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ReadOptions, "too_large", lambda self, size: size > 4 * 20 * 16)
    np.save(tmp_path / "a.npy", IMAGES)  # 20 images of 6x5
    path = f"npy:{tmp_path / 'a.npy'}"
    assert isinstance(data.load(path).train, data.Rows)
    assert isinstance(data.load(path, image_size=4).train, torch.Tensor)
    assert isinstance(data.load(path, image_size=5).train, data.Rows)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.npy"
    np.save(path, np.eye(4))

    def refused(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)  # tests may run as root, who may read anything
    text = message(f"npy:{path}", PermissionError)
    assert text.startswith(f"{path} cannot be read (Permission denied); change its permissions")


def test_vectors_take_no_image_size(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.eye(4))
    assert "image_size=8" in message(f"npy:{tmp_path / 'a.npy'}", image_size=8)


def test_train_and_test_shapes_must_agree(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x_train=np.zeros((4, 3)), x_test=np.zeros((4, 2)))
    assert "[3] and [2]" in message(f"npy:{tmp_path / 'a.npz'}")


# ------------------------------------------------------------------ folder


def write(path: Path, pixels: np.ndarray) -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(pixels).save(path)


def test_flat_folder_of_grey_images(tmp_path: Path):
    for i, pixels in enumerate(IMAGES):
        write(tmp_path / f"{i:02}.png", pixels)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image either")
    dataset = data.load(f"folder:{tmp_path}")
    assert dataset.sample_shape == (1, 6, 5)
    assert dataset.train_labels is None
    assert len(dataset.test) == 2
    assert rows(dataset.train[:, 0]) | rows(dataset.test[:, 0]) == rows(
        torch.from_numpy(IMAGES.astype(np.float32)) / 255
    )


def test_subfolders_are_labels_and_colour_wins(tmp_path: Path):
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[..., 0] = 255
    for i in range(4):
        write(tmp_path / "red" / f"{i}.PNG", colour)
        write(tmp_path / "grey" / f"{i}.bmp", np.full((4, 4), 51, np.uint8))
    dataset = data.load(f"folder:{tmp_path}", test_fraction=0.5)
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    assert dataset.train_labels.bincount().tolist() == [2, 2]  # grey is 0, red is 1
    for image, label in zip(dataset.train, dataset.train_labels.tolist(), strict=True):
        expected = [1.0, 0.0, 0.0] if label else [0.2, 0.2, 0.2]
        assert image.mean((1, 2)).tolist() == pytest.approx(expected)


def test_varied_sizes_need_image_size_then_are_cropped_in_the_centre(tmp_path: Path):
    wide = np.full((4, 8), 255, np.uint8)
    wide[:, 2:6] = 102  # what a centre crop keeps
    write(tmp_path / "a.png", wide)
    write(tmp_path / "b.png", np.full((10, 10), 102, np.uint8))
    text = message(f"folder:{tmp_path}")
    assert "8x4" in text
    assert "10x10" in text
    assert "image_size" in text
    dataset = data.load(f"folder:{tmp_path}", image_size=5)
    for image in (*dataset.train, *dataset.test):
        assert torch.allclose(image, torch.full((1, 5, 5), 0.4), atol=1e-6)


@pytest.mark.parametrize("size", [None, 4])
def test_a_folder_read_batch_by_batch(tmp_path: Path, size: int | None):
    for i, pixels in enumerate(IMAGES):
        write(tmp_path / f"{i % 3}" / f"{i:02}.png", pixels)
    whole = data.load(f"folder:{tmp_path}", image_size=size)
    rows = data.load(f"folder:{tmp_path}", image_size=size, stream=True)
    assert isinstance(rows.train, data.Rows)
    assert torch.equal(rows.train[:], whole.train)
    assert torch.equal(rows.test[:], whole.test)
    assert torch.equal(rows.train_labels, whole.train_labels)


def test_folder_errors(tmp_path: Path):
    assert "no image" in message(f"folder:{tmp_path}")
    for i in range(4):
        write(tmp_path / "a" / f"{i}.png", IMAGES[i])
    bad = tmp_path / "a" / "9.png"
    bad.write_bytes(b"not a png")
    assert str(bad) in message(f"folder:{tmp_path}")
    good = (tmp_path / "a" / "0.png").read_bytes()
    bad.write_bytes(good[: len(good) // 2])  # the header is whole, the pixels are not
    assert str(bad) in message(f"folder:{tmp_path}")
    bad.unlink()
    write(tmp_path / "a" / "deep.png", IMAGES[0].astype(np.uint16) * 256)
    assert "16-bit" in message(f"folder:{tmp_path}")
    assert "deep.png" in message(f"folder:{tmp_path}")
    (tmp_path / "a" / "deep.png").unlink()
    write(tmp_path / "loose.png", IMAGES[0])
    assert "loose.png" in message(f"folder:{tmp_path}")


def test_links_in_folders_are_followed_and_named_where_they_lead_nowhere(tmp_path: Path):
    for i in range(6):
        write(tmp_path / "elsewhere" / "b" / f"{i}.png", IMAGES[i])
        write(tmp_path / "set" / "a" / f"{i}.png", IMAGES[i])
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere" / "b")
    (tmp_path / "set" / "a" / "round").symlink_to(tmp_path / "set")  # back up: nothing new there
    found = data.load(f"folder:{tmp_path / 'set'}", test_fraction=0.5)
    assert torch.cat([found.train_labels, found.test_labels]).bincount().tolist() == [6, 6]
    dangling = tmp_path / "set" / "b" / "9.png"
    dangling.symlink_to(tmp_path / "gone.png")
    assert str(dangling.name) in message(f"folder:{tmp_path / 'set'}")
    assert "gone.png, where there is no file" in message(f"folder:{tmp_path / 'set'}")


def test_sixteen_bits_of_colour_are_refused(tmp_path: Path):
    write(tmp_path / "a.png", IMAGES[0])
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)  # 2x2, 16 bits, RGB
    pixels = zlib.compress(b"".join(b"\0" + bytes(12) for _ in range(2)))
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    content = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert "deep.png has RGB pixels (16-bit" in message(f"folder:{tmp_path}", image_size=2)


def test_folder_is_quiet_when_not_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    for i in range(3):
        write(tmp_path / f"{i}.png", IMAGES[i])
    data.load(f"folder:{tmp_path}")
    assert capfd.readouterr() == ("", "")


# ----------------------------------------------------------------- options


def test_unknown_specs_list_the_known_and_suggest_the_closest(tmp_path: Path):
    known = "digits | idx:DIR | npy:FILE | folder:DIR | cifar10:DIR | cifar10-jpeg:DIR | celeba:DIR"
    assert known in message("mnist")
    assert "synth-lin[:RATIO]" in message("mnist")
    assert message("mnist").endswith("did you mean idx:DIR?")
    assert message("fashion_mnist:/x").endswith("did you mean idx:/x?")
    assert "did you mean" not in message("zzz")
    assert message("digit").endswith("did you mean digits?")
    assert message("foldr:/x").endswith("did you mean folder:/x?")
    assert f"folder:{tmp_path}" in message(str(tmp_path))
    assert message("celebra:/x").endswith("did you mean celeba:/x?")
    assert message("manifolds").endswith("did you mean manifold?")
    assert message("synth_lin:1.5").endswith("did you mean synth-lin:1.5?")
    assert message("stroke").endswith("did you mean strokes?")
    assert message("idx").endswith("must be written idx:DIR")
    assert message("digits:8").endswith("must be written digits")
    message(3, TypeError)  # type: ignore[arg-type]


def test_missing_paths_and_paths_of_the_wrong_kind(tmp_path: Path):
    for prefix in ("idx", "npy", "folder"):
        assert "does not exist" in message(f"{prefix}:{tmp_path / 'no'}", FileNotFoundError)
    assert "is a directory" in message(f"npy:{tmp_path}")
    (tmp_path / "file").touch()
    assert "is a file" in message(f"folder:{tmp_path / 'file'}")


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"image_size": 0}, ValueError),
        ({"image_size": 8.0}, TypeError),
        ({"test_fraction": 0}, ValueError),
        ({"test_fraction": 1.0}, ValueError),
        ({"test_fraction": float("nan")}, ValueError),
        ({"test_fraction": "a"}, TypeError),
        ({"seed": None}, TypeError),
        ({"seed": -1}, ValueError),
    ],
)
def test_options_are_checked_by_name(option: dict[str, object], error: type[Exception]):
    assert next(iter(option)) in message("digits", error, **option)


@pytest.mark.parametrize("count", [2, 3, 10, 101])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_split_is_a_stratified_partition(count: int, fraction: float):
    from vaekern.data.dataset import split_indices

    labels = torch.arange(count) % 3
    train, test = split_indices(count, labels, test_fraction=fraction, seed=5, source="x")
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(count))
    assert len(test) == min(max(round(count * fraction), 1), count - 1)
    sizes = labels.bincount(minlength=3)
    expected = sizes * (len(test) / count)
    assert ((labels[test].bincount(minlength=3) - expected).abs() <= 1 + 1e-9).all()
