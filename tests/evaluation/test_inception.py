"""Inception with a file of weights, against the numbers of another implementation."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vaekern.evaluation import Inception, inception_extractor, load_inception
from vaekern.evaluation.inception import resize_as_tensorflow

# Of torch-fidelity 0.4.0's FeatureExtractorInceptionV3: its 566 names and shapes, sorted, and
# its features 0, 500, 1000, 1500 and 2000 of IMAGES with the weights below.
NAMES_AND_SHAPES = "8cdd2faeb41211e17f0fb47e66168d0cb1f981aa773b5f44e5b9cc93857fe492"
EXPECTED = [
    [1.65056, 0.27006, 0.19953, 0.00603, 0.71552],
    [1.65225, 0.26989, 0.20491, 0.00655, 0.68712],
]


def weights() -> dict[str, Tensor]:
    """Weights of a fixed formula, on every machine and in every version the same."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Inception().state_dict().items()}
    state = {}
    for place, (name, shape) in enumerate(shapes.items()):
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
            continue
        numbers = torch.arange(shape.numel(), dtype=torch.float64)
        wave = torch.sin(numbers * 1.7 + torch.sin(numbers * 0.3) + place).view(shape).float()
        if name.endswith(("bn.weight", "running_var")):
            state[name] = 1 + 0.3 * wave
        elif len(shape) > 1:
            state[name] = wave * (2 / shape[1:].numel()) ** 0.5 * 1.4
        else:
            state[name] = 0.1 * wave
    return state


IMAGES = (
    (torch.arange(2 * 3 * 28 * 28, dtype=torch.float64).mul(0.37).sin() * 127.5 + 127.5)
    .round()
    .view(2, 3, 28, 28)
    .float()
)


VARIANCE = "Conv2d_1a_3x3.bn.running_var"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return weights()


@pytest.fixture(scope="module")
def files(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the weights in both formats."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("inception")
    torch.save(state, folder / "weights.pth")
    save_file(state, folder / "weights.safetensors")
    yield folder
    for path in folder.iterdir():
        path.unlink()  # 95 MB each


def test_names_and_shapes_are_those_of_the_distributed_file(state: dict[str, Tensor]) -> None:
    text = "\n".join(f"{name} {list(value.shape)}" for name, value in sorted(state.items()))
    assert hashlib.sha256(text.encode()).hexdigest() == NAMES_AND_SHAPES


def test_features_are_those_of_torch_fidelity(files: Path) -> None:
    network = load_inception(files / "weights.pth")
    assert not network.training
    features = network(IMAGES)
    assert features.shape == (2, 2048)
    # 94 layers in float32 with sums in another order: differences below 1e-5 were seen.
    torch.testing.assert_close(features[:, ::500], torch.tensor(EXPECTED), atol=1e-4, rtol=1e-4)

    extractor = inception_extractor(files / "weights.safetensors")
    assert (extractor.frechet, extractor.kernel) == ("FID", "KID")
    assert "weights.safetensors" in extractor.name
    images = IMAGES[:1] / 255
    torch.testing.assert_close(extractor(images + 0.3 / 255), features[:1])  # rounded to 8 bits
    grey = images[:, :1]
    torch.testing.assert_close(extractor(grey), network(IMAGES[:1, :1].expand(-1, 3, -1, -1)))
    # Stretched and not rounded: the smallest value to 0, the largest to 1.
    stretched = extractor(0.25 + 0.5 * images, stretch=True)
    low, high = IMAGES[0].min(), IMAGES[0].max()
    full = network((IMAGES[:1] - low) / (high - low) * 255)
    torch.testing.assert_close(stretched, full, atol=1e-3, rtol=1e-3)


def test_resizing_by_hand() -> None:
    row = torch.tensor([0.0, 8.0, 4.0, 6.0])
    resized = resize_as_tensorflow(row.expand(1, 1, 4, 4), 8)[0, 0]
    assert resized[0].tolist() == [0, 4, 8, 6, 4, 5, 6, 6]
    assert resized.eq(resized[0]).all()
    shrunk = resize_as_tensorflow(row.expand(1, 1, 4, 4), 3)[0, 0, 0]
    # at 0, 4/3 and 8/3: no antialiasing
    torch.testing.assert_close(shrunk, torch.tensor([0.0, 8 - 4 / 3, 4 + 4 / 3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s | {"fc.weight": torch.zeros(1000, 2048)},
            "fc.weight must have shape .1008, 20",
        ),
        (lambda s: {k: v for k, v in s.items() if "_1a" in k}, "2a_3x3.*got nothing; take pt_inc"),
        (lambda s: s | {"fc.bias": torch.full((1008,), torch.nan)}, "finite weights"),
        (
            lambda s: s | {VARIANCE: torch.full((32,), torch.nan)},
            "finite weights, got others in Con",
        ),
        (lambda s: s | {VARIANCE: -torch.ones(32)}, "variances, got negative ones in Conv2d_1a"),
        (lambda s: s | {"fc.weight": torch.zeros(1008, 2048)}, "trained weights, got zeros in fc"),
        (
            lambda s: s | {"fc.bias": torch.ones(1008).int()},
            "floating-point weights, got torch.int32",
        ),
        (lambda s: s | {"fc.bias": torch.ones(1008).to_sparse()}, "dense floating-point weights"),
        (lambda s: {1: torch.zeros(2)}, "must hold tensors by name, got dict"),
        (lambda s: {"model": {}}, "must hold tensors by name, got dict"),
        (lambda s: [1, 2], "must hold tensors by name, got list"),
    ],
)
def test_a_file_of_something_else(
    change, message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "file.pth"
    torch.save(change(state), path)
    with pytest.raises(ValueError, match=message) as caught:
        load_inception(path)
    path.unlink()
    assert "\n" not in str(caught.value)
    assert "; take pt_inception-2015-12-05" in str(caught.value)


def test_the_format_is_told_from_the_content(files: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "weights.SAFETENSORS"
    renamed.symlink_to(files / "weights.safetensors")
    assert load_inception(renamed).fc.bias.equal(load_inception(files / "weights.pth").fc.bias)


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file was run')",))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_none(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    with pytest.raises(ValueError, match=r"there is no file .*; give --inception one"):
        load_inception(path)
    for content in (b"", b"nonsense", pickle.dumps(Harmful())):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is no file of tensors .*; take pt_inc") as caught:
            load_inception(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 320


def test_nothing_in_a_pth_is_run(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save({"fc.weight": Harmful()}, path)
    with pytest.raises(ValueError, match="is no file of tensors"):
        load_inception(path)
