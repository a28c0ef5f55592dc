"""The Inception network of the FID, with weights from a file of the user's.

It is the network of the TensorFlow graph of 2015-12-05, whose features the FID is defined in, and
takes the weights that pytorch-fid and torch-fidelity distribute
(pt_inception-2015-12-05-6726825d.pth). It is written out here because both need torchvision, each
release of which runs with one release of torch, and on CPUs with one build of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaekern._optional import require

FEATURES = 2048
SIDE = 299
CLASSES = 1008
SOURCE = "take pt_inception-2015-12-05-6726825d.pth, of pytorch-fid or torch-fidelity"

Kernel = int | tuple[int, int]


class _Step(NamedTuple):
    """A convolution: with stride 2 without padding, else with as much as keeps the sides."""

    channels: int
    kernel: Kernel = 1
    stride: int = 1


class _Fork(NamedTuple):
    """Two convolutions beside one another, 1x3 and 3x1, at the end of a branch."""

    channels: int


class _Block(NamedTuple):
    """Branches by their names in the file; the pooled one is last."""

    branches: dict[str, Sequence[_Step | _Fork]]
    pool: Literal["average", "max", "max-2"]  # the last with stride 2 and no convolution behind it
    pooled: int = 0


def _a(pooled: int) -> _Block:
    return _Block(
        {
            "branch1x1": [_Step(64)],
            "branch5x5": [_Step(48), _Step(64, 5)],
            "branch3x3dbl": [_Step(64), _Step(96, 3), _Step(96, 3)],
        },
        "average",
        pooled,
    )


def _c(inner: int) -> _Block:
    wide, high = (1, 7), (7, 1)
    return _Block(
        {
            "branch1x1": [_Step(192)],
            "branch7x7": [_Step(inner), _Step(inner, wide), _Step(192, high)],
            "branch7x7dbl": [
                _Step(inner),
                _Step(inner, high),
                _Step(inner, wide),
                _Step(inner, high),
                _Step(192, wide),
            ],
        },
        "average",
        192,
    )


def _e(pool: Literal["average", "max"]) -> _Block:
    return _Block(
        {
            "branch1x1": [_Step(320)],
            "branch3x3": [_Step(384), _Fork(384)],
            "branch3x3dbl": [_Step(448), _Step(384, 3), _Fork(384)],
        },
        pool,
        192,
    )


STEM = {
    "Conv2d_1a_3x3": _Step(32, 3, 2),
    "Conv2d_2a_3x3": _Step(32, 3),
    "Conv2d_2b_3x3": _Step(64, 3),
    "Conv2d_3b_1x1": _Step(80),
    "Conv2d_4a_3x3": _Step(192, 3),
}
UNPADDED = ("Conv2d_2a_3x3", "Conv2d_4a_3x3")
POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")  # a max pool with stride 2 follows

BLOCKS = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _Block(
        {
            "branch3x3": [_Step(384, 3, 2)],
            "branch3x3dbl": [_Step(64), _Step(96, 3), _Step(96, 3, 2)],
        },
        "max-2",
    ),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _Block(
        {
            "branch3x3": [_Step(192), _Step(320, 3, 2)],
            "branch7x7x3": [_Step(192), _Step(192, (1, 7)), _Step(192, (7, 1)), _Step(192, 3, 2)],
        },
        "max-2",
    ),
    "Mixed_7b": _e("average"),
    "Mixed_7c": _e("max"),
}


class _Convolution(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, step: _Step, *, padded: bool = True):
        super().__init__()
        high, wide = step.kernel if isinstance(step.kernel, tuple) else (step.kernel, step.kernel)
        padding = (high // 2, wide // 2) if padded and step.stride == 1 else (0, 0)
        self.conv = nn.Conv2d(
            in_channels, step.channels, (high, wide), step.stride, padding, bias=False
        )
        self.bn = nn.BatchNorm2d(step.channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches side by side."""

    def __init__(self, in_channels: int, block: _Block):
        super().__init__()
        self.pool = block.pool
        self.out_channels = block.pooled or in_channels
        self.paths: list[list[tuple[str, ...]]] = []
        for name, steps in block.branches.items():
            path: list[tuple[str, ...]] = []
            channels = in_channels
            for place, step in enumerate(steps, 1):
                base = name if len(steps) == 1 else f"{name}_{place}"
                if isinstance(step, _Fork):
                    self.add_module(
                        f"{base}a", _Convolution(channels, _Step(step.channels, (1, 3)))
                    )
                    self.add_module(
                        f"{base}b", _Convolution(channels, _Step(step.channels, (3, 1)))
                    )
                    path.append((f"{base}a", f"{base}b"))
                    channels = 2 * step.channels
                else:
                    self.add_module(base, _Convolution(channels, step))
                    path.append((base,))
                    channels = step.channels
            self.paths.append(path)
            self.out_channels += channels
        if block.pooled:
            self.branch_pool = _Convolution(in_channels, _Step(block.pooled))

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for path in self.paths:
            y = x
            for names in path:
                y = torch.cat([self.get_submodule(name)(y) for name in names], 1)
            outputs.append(y)
        if self.pool == "average":  # TensorFlow's, which leaves the padding out of the mean
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        elif self.pool == "max":
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = F.max_pool2d(x, 3, stride=2)
        outputs.append(pooled if self.pool == "max-2" else self.branch_pool(pooled))
        return torch.cat(outputs, 1)


class Inception(nn.Module):
    """Images [N, 3, H, W] with values from 0 to 255 -> [N, 2048], the third pooling layer.

    Resized to 299 x 299 as TensorFlow 1 does it, and shifted to (x - 128) / 128.
    """

    num_features = FEATURES  # as torchmetrics asks for it

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for name, step in STEM.items():
            self.add_module(name, _Convolution(channels, step, padded=name not in UNPADDED))
            channels = step.channels
        for name, block in BLOCKS.items():
            mixed = _Mixed(channels, block)
            self.add_module(name, mixed)
            channels = mixed.out_channels
        self.fc = nn.Linear(FEATURES, CLASSES)  # in the file, and not in the features

    def forward(self, images: Tensor) -> Tensor:
        x = (resize_as_tensorflow(images.to(self.fc.weight), SIDE) - 128) / 128
        for name in STEM:
            x = self.get_submodule(name)(x)
            if name in POOLED:
                x = F.max_pool2d(x, 3, stride=2)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def resize_as_tensorflow(images: Tensor, side: int) -> Tensor:
    """Bilinear, from the corner and without antialiasing: TensorFlow 1's `resize_bilinear`.

    Pixel i of the result is taken at i (old / new), between two neighbours of the old image; at
    the far edge the last one is repeated.

    Example:
        >>> resize_as_tensorflow(torch.tensor([[[[0.0, 4.0]]]]), 4)[0, 0, 0]
        tensor([0., 2., 4., 4.])
    """
    for axis in (2, 3):
        size = images.shape[axis]
        # In float32, as there: at whole places a rounding decides which neighbours are meant.
        scale = torch.tensor(size / side, dtype=torch.float32)
        place = (torch.arange(side, dtype=torch.float32) * scale).to(images.device)
        low = place.long()
        share = (
            (place - low).to(images.dtype).view([-1 if each == axis else 1 for each in range(4)])
        )
        near = images.index_select(axis, low)
        far = images.index_select(axis, (low + 1).clamp(max=size - 1))
        images = near + (far - near) * share
    return images


def load_inception(path: str | Path) -> Inception:
    """The Inception network of the FID with the weights of a file, in evaluation mode.

    Args:
        path: a .safetensors file, or one of torch's (.pth), of which tensors alone are read.

    Raises:
        ValueError: no such file, or one that does not hold these weights.
        ModuleNotFoundError: safetensors is not installed.

    Example:
        >>> network = load_inception("pt_inception-2015-12-05-6726825d.pth")  # doctest: +SKIP
        >>> network(torch.full((1, 3, 32, 32), 128.0)).shape  # doctest: +SKIP
        torch.Size([1, 2048])

    Source:
        Szegedy et al. 2016, Rethinking the Inception Architecture; Heusel et al. 2017, for the FID.
    """
    path = Path(path).expanduser()
    state = _read(path)
    with torch.device("meta"):
        network = Inception()
    # How many batches were seen in training plays no part, and some files leave it out.
    own = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    for name, value in own.items():
        if name in state and not (
            state[name].is_floating_point() and state[name].layout is torch.strided
        ):
            raise ValueError(
                f"{path} must hold dense floating-point weights, got {state[name].dtype} "
                f"({state[name].layout}) for {name}; {SOURCE}"
            )
        if name not in state or state[name].shape != value.shape:
            came = f"shape {list(state[name].shape)}" if name in state else "nothing"
            raise ValueError(
                f"{path} does not hold the Inception network of the FID: {name} must have shape "
                f"{list(value.shape)}, got {came}; {SOURCE}"
            )
    network = network.to_empty(device="cpu").float()
    network.load_state_dict({k: state[k] for k in own}, strict=False)
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if not bool(value.isfinite().all()):
            raise ValueError(f"{path} must hold finite weights, got others in {name}; {SOURCE}")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise ValueError(f"{path} must hold variances, got negative ones in {name}; {SOURCE}")
        if value.dim() > 1 and not bool(value.any()):
            raise ValueError(f"{path} must hold trained weights, got zeros in {name}; {SOURCE}")
    return network.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name."""
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give --inception a file with Inception's weights")
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give --inception one with Inception's weights")
    try:
        if _is_safetensors(path):
            load = require("safetensors.torch", "reading a .safetensors file").load_file
            state = load(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old formats, which are read all the same
                state = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # torch and safetensors have a dozen kinds of them for a bad file
        reason = " ".join(str(error).split())[:80].partition(". ")[0]
        if not any(letter.isalpha() for letter in reason):  # a code of the unpickler
            reason = type(error).__name__
        raise ValueError(f"{path} is no file of tensors ({reason}); {SOURCE}") from error
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise ValueError(f"{path} must hold tensors by name, got {type(state).__name__}; {SOURCE}")
    return dict(state)


def _is_safetensors(path: Path) -> bool:
    """By content: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"
