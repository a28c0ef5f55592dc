"""The operators of vaekern.functional by themselves, forward and backward, float32, one thread."""

from __future__ import annotations

from collections.abc import Callable

import baselines
import gate
import measure
import pytest
import torch
from conftest import Compare
from torch import Tensor

from vaekern import functional, reference


def _time(
    name: str,
    shape: tuple[int, ...],
    operator: Callable[..., Tensor | tuple[Tensor, ...]],
    chain: Callable[..., Tensor | tuple[Tensor, ...]],
    truth: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: dict[str, Tensor],
    upstream: tuple[Tensor, ...] | None,
    bytes_moved: int,
    largest: Tensor,
    compare: Compare,
) -> None:
    """One row; the copy beside it is of the operator's largest input."""
    destination = torch.empty_like(largest)
    with measure.threads(1):
        compiled = measure.compiled(chain)
        values = tuple(inputs.values())
        variants = {
            "vaekern": lambda: operator(**inputs),
            "compile": lambda: compiled(*values),
            "eager": lambda: chain(*values),
        }
        gate.check(variants, truth, inputs, upstream)
        compare(
            {
                variant: measure.forward_backward(forward, inputs, upstream)
                for variant, forward in variants.items()
            }
            | {"copy": lambda: destination.copy_(largest)},
            bytes_moved=bytes_moved,
            copy_bytes=2 * 4 * largest.numel(),
            kind="operator",
            name=name,
            shape=list(shape),
        )


def _posterior(batch: int, latents: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "mu": torch.randn(batch, latents, requires_grad=True),
        "logvar": torch.randn(batch, latents, requires_grad=True),
    }


@pytest.mark.parametrize("shape", [(64, 64), (512, 512)], ids=["64x64", "512x512"])
def bench_gaussian_kl(shape: tuple[int, int], compare: Compare) -> None:
    inputs = _posterior(*shape)

    def truth(mu: Tensor, logvar: Tensor) -> Tensor:
        return reference.gaussian_kl(mu, logvar).sum(1).mean()

    _time(
        "gaussian_kl", shape, functional.gaussian_kl, baselines.kl, truth, inputs, None,
        bytes_moved=4 * 4 * inputs["mu"].numel(),  # two read, two gradients written
        largest=inputs["mu"].detach(), compare=compare,
    )  # fmt: skip


@pytest.mark.parametrize(
    "shape",
    [(64, 64), (100, 16), (1000, 2), (512, 512)],
    ids=["64x64", "100x16", "1000x2", "512x512"],
)
def bench_reparameterize(shape: tuple[int, int], compare: Compare) -> None:
    """The noise is given; latents are often few."""
    inputs = _posterior(*shape)
    noise, upstream = torch.randn(shape), (torch.randn(shape),)

    def truth(mu: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
        return reference.reparameterize(mu, logvar, None, noise)

    def operator(mu: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
        return functional.reparameterize(mu, logvar, noise=noise)

    _time(
        "reparameterize", shape, operator, baselines.reparameterize, truth,
        inputs | {"noise": noise}, upstream,
        # forward: three in, z out; backward: logvar, noise and z's gradient in, two out
        bytes_moved=4 * 9 * noise.numel(),
        largest=noise, compare=compare,
    )  # fmt: skip


@pytest.mark.parametrize("samples", [1, 8], ids=["L1", "L8"])
@pytest.mark.parametrize("shape", [(64, 64), (512, 512)], ids=["64x64", "512x512"])
def bench_sample_and_kl(shape: tuple[int, int], samples: int, compare: Compare) -> None:
    """The noise is given: drawing it is the same torch.randn for everyone."""
    inputs = _posterior(*shape)
    noise = torch.randn(samples, *shape)
    upstream = (torch.randn(samples, *shape), torch.full((shape[0],), 1 / shape[0]))

    def truth(mu: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return (
            reference.reparameterize(mu, logvar, None, noise),
            reference.gaussian_kl(mu, logvar).sum(1),
        )

    def operator(mu: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return functional.sample_and_kl(mu, logvar, samples=samples, noise=noise)

    _time(
        "sample_and_kl", (samples, *shape), operator, baselines.sample_and_kl, truth,
        inputs | {"noise": noise}, upstream,
        # forward: mu, logvar, noise in, z out; backward: the same and z's gradient in, two out
        bytes_moved=4 * (4 * noise.numel() + 6 * inputs["mu"].numel()),
        largest=noise, compare=compare,
    )  # fmt: skip


def bench_full_gaussian_kl(compare: Compare) -> None:
    batch, latents = 64, 32
    torch.manual_seed(0)
    tril = torch.tril(0.1 * torch.randn(batch, latents, latents), -1)
    tril += torch.diag_embed(torch.rand(batch, latents) + 0.5)
    inputs = {
        "mu": torch.randn(batch, latents, requires_grad=True),
        "scale_tril": tril.requires_grad_(),
    }

    def truth(mu: Tensor, scale_tril: Tensor) -> Tensor:
        return reference.full_gaussian_kl(mu, scale_tril).sum(1).mean()

    _time(
        "full_gaussian_kl", (batch, latents), functional.full_gaussian_kl,
        baselines.full_gaussian_kl, truth, inputs, None,
        bytes_moved=2 * 4 * (tril.numel() + batch * latents),  # read once, gradients written once
        largest=tril.detach(), compare=compare,
    )  # fmt: skip
