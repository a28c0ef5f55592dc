"""Linear layers with ReLU, several as one node of the graph."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

_relu_backward = torch.ops.aten.threshold_backward


class HiddenLayers(nn.Sequential):
    """Linear and ReLU, and again: an `nn.Sequential` that trains faster on a CPU.

    In plain eager mode all layers are one node of the graph, whose ReLUs work in place: the same
    bits with half the operators and buffers. Under `torch.compile`, `torch.func`, autocast and
    dispatch modes, on other devices, without gradients, and where a layer carries hooks or a
    parametrization, it is what it is derived from; so it is for a second derivative.

    Args:
        modules: linear layers with bias, each followed by a ReLU.

    Example:
        >>> layers = HiddenLayers(nn.Linear(4, 8), nn.ReLU())
        >>> layers(torch.zeros(3, 4)).shape
        torch.Size([3, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        layers = self._layers() if _plain(x) else None
        if layers is None:
            return super().forward(x)  # type: ignore[no-any-return]
        return _Hidden.apply(0, x, *_parameters(layers))  # type: ignore[no-any-return]

    def with_heads(self, x: Tensor, *heads: nn.Module) -> tuple[Tensor, ...]:
        """Linear functions of [x, self(x)] side by side, in the same node.

        Args:
            x: [B, features].
            heads: linear layers of features + width inputs.

        Returns:
            The output of each head.

        Example:
            >>> layers = HiddenLayers(nn.Linear(4, 8), nn.ReLU())
            >>> (out,) = layers.with_heads(torch.zeros(3, 4), nn.Linear(12, 2))
            >>> out.shape
            torch.Size([3, 2])
        """
        layers = self._layers() if _plain(x) else None
        if layers is None or not _are(nn.Linear, heads):
            features = torch.cat([x, self(x)], dim=1)
            return tuple(head(features) for head in heads)
        return _Hidden.apply(len(heads), x, *_parameters([*layers, *heads]))  # type: ignore[no-any-return]

    def _layers(self) -> list[Any] | None:
        """The linear layers, where there is nothing but these and their ReLUs."""
        modules = list(self._modules.values())
        linear, relu = modules[::2], modules[1::2]
        plain = len(linear) == len(relu) > 0 and _are(nn.Linear, linear) and _are(nn.ReLU, relu)
        return linear if plain else None


def rectified_layers(features: int, widths: Sequence[int]) -> HiddenLayers:
    """Linear layers of these widths, each with its ReLU, on `features` inputs."""
    modules: list[nn.Module] = []
    for before, width in itertools.pairwise((features, *widths)):
        modules += [nn.Linear(before, width), nn.ReLU()]
    return HiddenLayers(*modules)


def _parameters(layers: Sequence[Any]) -> list[Tensor]:
    return [each.weight for each in layers] + [each.bias for each in layers]


def _plain(x: Tensor) -> bool:
    """Eager mode on a CPU, with nobody who would have to see each operator."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.dim() == 2
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
    )


def _are(kind: type[nn.Module], modules: Sequence[Any]) -> bool:
    """All of this kind and nothing more: no hooks; a parametrization changes the type."""
    return all(
        type(module) is kind
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and getattr(module, "bias", module) is not None
        for module in modules
    )


def _apply(heads: int, x: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What the node computes, operator by operator."""
    count = len(tensors) // 2
    layers = list(zip(tensors[:count], tensors[count:], strict=True))
    hidden = x
    for weight, bias in layers[: count - heads]:
        hidden = F.relu(F.linear(hidden, weight, bias))
    if not heads:
        return (hidden,)
    features = torch.cat([x, hidden], dim=1)
    return tuple(F.linear(features, weight, bias) for weight, bias in layers[count - heads :])


class _Hidden(torch.autograd.Function):
    """x, all weights, all biases -> the last hidden layer, or the outputs of so many heads."""

    @staticmethod
    def forward(ctx: Any, heads: int, x: Tensor, *tensors: Tensor) -> Any:
        count = len(tensors) // 2
        layers = list(zip(tensors[:count], tensors[count:], strict=True))
        hidden = [x]
        for weight, bias in layers[: count - heads]:
            hidden.append(torch.addmm(bias, hidden[-1], weight.t()).relu_())
        ctx.heads = heads
        if not heads:
            ctx.save_for_backward(*tensors, *hidden)
            return hidden[-1]
        features = torch.cat([x, hidden[-1]], dim=1)
        ctx.save_for_backward(*tensors, *hidden, features)
        return tuple(
            torch.addmm(bias, features, weight.t()) for weight, bias in layers[count - heads :]
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        heads, saved = ctx.heads, ctx.saved_tensors
        needs_x, *needed = ctx.needs_input_grad[1:]
        count = len(needed) // 2
        tensors, kept = saved[: 2 * count], saved[2 * count :]
        if torch.is_grad_enabled():  # create_graph=True
            found = _differentiable(heads, gradients, kept[0], tensors, (needs_x, *needed))
            return None, *found
        out: list[Tensor | None] = [None] * (2 * count)

        def layer(i: int, gradient: Tensor, inputs: Tensor) -> None:
            if needed[i]:
                out[i] = gradient.t().mm(inputs)
            if needed[count + i]:
                out[count + i] = gradient.sum(0)

        last = count - heads
        (gradient, *_), of_x = gradients, None
        if heads:
            for i, each in enumerate(gradients, last):
                layer(i, each, kept[-1])
                part = each.mm(tensors[i])
                gradient = part if i == last else gradient.add_(part)
            width = kept[0].shape[1]
            of_x, gradient = gradient[:, :width], gradient[:, width:]
        gradient = _relu_backward(gradient, kept[last], 0)
        for i in reversed(range(last)):
            layer(i, gradient, kept[i])
            if i:
                gradient = gradient.mm(tensors[i])
                _relu_backward.grad_input(gradient, kept[i], 0, grad_input=gradient)
        if not needs_x:
            return None, None, *out
        gradient = gradient.mm(tensors[0])
        return None, gradient if of_x is None else gradient.add_(of_x), *out


def _differentiable(
    heads: int,
    gradients: Sequence[Tensor],
    x: Tensor,
    tensors: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The same gradients with a graph of their own."""
    # Views: the derivatives are those of this node alone, whatever x was made of.
    x, *tensors = [each.view_as(each) for each in (x, *tensors)]
    out = _apply(heads, x, tensors)
    wanted = [view for view, want in zip((x, *tensors), needed, strict=True) if want]
    found = iter(torch.autograd.grad(out, wanted, gradients, create_graph=True))
    return tuple(next(found) if want else None for want in needed)
