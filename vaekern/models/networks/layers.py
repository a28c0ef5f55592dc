"""Convolutions that divide or multiply a side exactly, stacks of layers, and how weights start."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

Layer = nn.Linear | nn.Conv2d | nn.ConvTranspose2d


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """[B, C, H, W] -> [B, C', H / stride, W / stride], where the stride divides the sides.

    For a stride of 2 and an odd kernel TensorFlow's SAME pads one pixel less before the image than
    behind it, torch one more: the same layer, of the mirrored image.
    """
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=(kernel - 1) // 2)


def transposed(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1
) -> nn.ConvTranspose2d:
    """[B, C, H, W] -> [B, C', stride H, stride W], the transpose of a `convolution`."""
    padding = (kernel - 1) // 2
    return nn.ConvTranspose2d(
        in_channels,
        out_channels,
        kernel,
        stride,
        padding=padding,
        output_padding=stride - kernel + 2 * padding,
    )


def stack(layers: Iterable[Layer], norm: Iterable[bool], momentum: float = 0.1) -> nn.Sequential:
    """The layers, each followed by a batch norm where `norm` says so, and by a ReLU."""
    modules: list[nn.Module] = []
    for layer, normalized in zip(layers, norm, strict=True):
        modules.append(layer)
        if normalized and isinstance(layer, nn.Linear):
            modules.append(nn.BatchNorm1d(layer.out_features, momentum=momentum))
        elif normalized:
            assert not isinstance(layer, nn.Linear)
            modules.append(nn.BatchNorm2d(layer.out_channels, momentum=momentum))
        modules.append(nn.ReLU())
    return nn.Sequential(*modules)


def start_glorot(module: nn.Module) -> None:
    """Glorot-uniform weights and zero biases, TensorFlow's default; for `nn.Module.apply`."""
    if isinstance(module, Layer):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def start_narrow(module: nn.Module) -> None:
    """Weights from N(0, 0.01^2) and zero biases; for `nn.Module.apply`."""
    if isinstance(module, Layer):
        nn.init.normal_(module.weight, std=0.01)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
