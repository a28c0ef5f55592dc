"""Batch-norm statistics of a finished network, estimated again over the training set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Moments:
    """Count, mean and sum of squared deviations per channel, gathered batch by batch."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        channels = inputs[0].detach().transpose(0, 1).flatten(1).double()  # [C, B * positions]
        mean = channels.mean(1)
        squares = (channels - mean[:, None]).square().sum(1)
        # Chan et al. 1979: two groups combine exactly, whatever their sizes.
        total = self.count + channels.shape[1]
        delta = mean - self.mean
        self.squares = self.squares + squares + delta**2 * (self.count * channels.shape[1] / total)
        self.mean = self.mean + delta * (channels.shape[1] / total)
        self.count = total


@torch.no_grad()
def fit_batch_norm(
    module: nn.Module, batches: Iterable[Any], forward: Callable[[Any], object] | None = None
) -> None:
    """Set every batch-norm layer's running mean and variance to those of a pass over the data.

    Statistics with a decay of 0.999 are an average over the last thousand steps, in which the
    weights moved; after a short run they still hold the initial values. Here the weights stand
    still: each layer normalises by its batch, as it did in training, while the moments of all
    its inputs are combined exactly (so the last, smaller batch counts for what it holds). Layers
    that are no batch norm (spectral norm, dropout) run as in evaluation. Afterwards the module is
    in evaluation mode. A module without batch norm costs no pass.

    Args:
        module: the network; its batch-norm layers are changed in place.
        batches: the training set; torch normalises no batch of one sample without positions.
        forward: what to do with a batch; the module itself by default.

    Raises:
        ValueError: there is no batch.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm1d(1))
        >>> fit_batch_norm(network, torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]]).split(3))
        >>> network[0].running_mean, network[0].running_var
        (tensor([3.]), tensor([2.5000]))

    Source:
        `torch.optim.swa_utils.update_bn` does the same with an unweighted mean over batches, which
        leaves out the variance between them.
    """
    module.eval()
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]
    if not layers:
        return
    gathered = [_Moments() for _ in layers]
    hooks = [
        layer.register_forward_pre_hook(each) for layer, each in zip(layers, gathered, strict=True)
    ]
    # A copy of the running statistics is not needed: training mode updates them, and they are
    # overwritten below. num_batches_tracked keeps counting training steps only.
    tracked = [
        None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone()
        for layer in layers
    ]
    try:
        for layer in layers:
            layer.train()
        for batch in batches:
            (forward or module)(batch)
    finally:
        for hook in hooks:
            hook.remove()
        module.eval()
    for layer, moments, count in zip(layers, gathered, tracked, strict=True):
        if moments.count == 0:
            raise ValueError("batches must hold at least one batch, got none")
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(torch.as_tensor(moments.mean))
        layer.running_var.copy_(torch.as_tensor(moments.squares) / max(moments.count - 1, 1))
        if count is not None and layer.num_batches_tracked is not None:
            layer.num_batches_tracked.copy_(count)
