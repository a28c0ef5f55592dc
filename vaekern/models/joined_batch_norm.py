"""Batch norm over a batch that several processes share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vaekern import functional, joined


class JoinedBatchNorm(_BatchNorm):
    r"""Batch norm whose mean and variance are those of all processes' batches together.

    .. math:: y = w \frac{x - \bar x}{\sqrt{\overline{x^2} - \bar x^2 + \epsilon}} + b

    It is what `torch.nn.SyncBatchNorm` is on GPUs, for every device: one all-reduce of the sums and
    the count in the forward and one in the backward, in float64, so that the result is that of one
    process with the joined batch up to the rounding of x's dtype. Batches may differ in size.
    Outside training mode, and where torch.distributed is not initialised, it is torch's batch norm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"x must be [B, C, ...], got {list(input.shape)}; add a batch axis")

    def forward(self, input: Tensor) -> Tensor:
        group = functional.world(None) if self.training else None
        if group is None:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        axes = [axis for axis in range(x.dim()) if axis != 1]
        wide = x.double()
        count = wide.new_full((1,), x.numel() // x.shape[1])
        part = torch.cat([wide.sum(axes), wide.square().sum(axes), count])
        total = joined.sum_with_gradient(part, group)
        count = total[-1].detach()
        mean, square = (total[:-1] / count).chunk(2)
        variance = (square - mean.square()).clamp_min(0)
        self._track(mean.detach(), variance.detach(), count)
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        y = (x - mean.to(x.dtype).view(shape)) * scale.to(x.dtype).view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        factor = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if factor is None:  # a cumulative average
                factor = 1 / float(self.num_batches_tracked)
        assert factor is not None
        unbiased = variance * (count / (count - 1).clamp_min(1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)


@contextlib.contextmanager
def batch_norm_joined(module: nn.Module) -> Iterator[None]:
    """While it is entered, the batch-norm layers of a module normalise by the joined batch.

    Weights and statistics stay where they are; `torch.nn.SyncBatchNorm` serves GPUs.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    before = [type(layer) for layer in layers]
    for layer in layers:
        on_gpu = next((t.is_cuda for t in layer.state_dict().values()), False)
        layer.__class__ = nn.SyncBatchNorm if on_gpu else JoinedBatchNorm
        if on_gpu:
            layer.process_group = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, kind in zip(layers, before, strict=True):
            layer.__class__ = kind
