"""What one process of tests/test_distributed.py does: every case, against the joined batch.

python distributed_worker.py RANK WORLD FOLDER [--slow] writes FOLDER/RANK.json: case -> None or the
failure."""

from __future__ import annotations

import contextlib
import copy
import datetime
import itertools
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import vaekern
from vaekern import GaussianVAELoss, backends, joined
from vaekern import functional as F
from vaekern.ops import COVARIANCES

FEATURES, LATENT, SAMPLES = 5, 2, 12
SPLITS = {
    2: {"equal": (6, 6), "uneven": (9, 3), "one empty": (12, 0)},
    4: {"equal": (3, 3, 3, 3), "uneven": (5, 1, 4, 2), "one empty": (7, 0, 4, 1)},
}
# of the largest gradient: sums over another order of samples; float32 gets the variance as the
# logarithm, too, whose rounding is a relative error of the variance
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


class Model(nn.Module):
    """A network and its loss, with the posterior's noise as an input so that it can be split."""

    def __init__(self, loss_fn: GaussianVAELoss) -> None:
        super().__init__()
        self.encoder = nn.Linear(FEATURES, 2 * LATENT)
        self.decoder = nn.Linear(LATENT, FEATURES)
        self.variance = nn.Linear(LATENT, 1 if loss_fn.covariance == "iso-d" else FEATURES)
        self.loss = loss_fn

    def forward(self, x: Tensor, noise: Tensor) -> vaekern.LossComponents:
        mu, logvar = self.encoder(x).chunk(2, 1)
        z = mu + noise * torch.exp(logvar / 2)
        x_logvar = None
        if self.loss.estimate == "learned" and self.loss.covariance.endswith("-d"):
            x_logvar = self.variance(z)
        else:  # every parameter has a gradient, as DDP wants it
            z = z + 0 * self.variance(z).sum()
        return self.loss.components(self.decoder(z), x, mu, logvar, x_logvar=x_logvar)


def make_loss(covariance: str, estimate: str, **options: object) -> GaussianVAELoss:
    if estimate != "mle":
        diagonal = covariance == "diag-i"
        options["variance"] = torch.linspace(0.5, 2, FEATURES) if diagonal else 0.7
        options["x_shape"] = FEATURES
    return GaussianVAELoss(covariance, estimate, **options)  # type: ignore[arg-type]


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The joined batch: the samples differ in scale, and so do the processes' variances."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    x *= torch.linspace(0.5, 4, SAMPLES, dtype=torch.float64)[:, None]
    x[:, 1] = 0.25  # a feature that hardly changes
    noise = torch.randn(SAMPLES, LATENT, generator=generator, dtype=torch.float64)
    return x.to(dtype), noise.to(dtype)


def model_pair(
    covariance: str, estimate: str, dtype: torch.dtype = torch.float64, **options: object
) -> tuple[Model, Model]:
    """The same model twice: for this process's share, and alone with the joined batch."""
    torch.manual_seed(1)
    shared = Model(make_loss(covariance, estimate, **options)).to(dtype)
    alone = copy.deepcopy(shared)
    alone.loss.process_group = False
    return shared, alone


def share(sizes: tuple[int, ...], rank: int | None = None) -> slice:
    rank = dist.get_rank() if rank is None else rank
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


FAILURES: list[str] = []  # noted, not raised: the other processes wait in the next collective


def note(good: bool, what: str) -> None:
    if not good:
        FAILURES.append(what)


def close(got: Tensor, wanted: Tensor, what: str, relative: float | None = None) -> None:
    scale = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
    tolerance = scale * (TOLERANCE[wanted.dtype] if relative is None else relative)
    try:
        torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance)
    except AssertionError as error:
        note(False, f"{what}: {error}")


def mean_over_ranks(t: Tensor) -> Tensor:
    t = t.detach().clone()
    dist.all_reduce(t)
    return t / dist.get_world_size()


def average_gradients(model: nn.Module) -> None:
    """What DistributedDataParallel does."""
    for p in model.parameters():
        if p.grad is not None:
            p.grad.copy_(mean_over_ranks(p.grad))


def full(t: Tensor) -> Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def same_gradients(shared: nn.Module, alone: nn.Module, what: str) -> None:
    for (name, p), q in zip(shared.named_parameters(), alone.parameters(), strict=True):
        if p.grad is None or q.grad is None:
            note(False, f"{what}: {name} has no gradient")
            continue
        close(full(p.grad), q.grad, f"{what}: gradient of {name}")


def same_buffers(shared: Model, alone: Model, what: str) -> None:
    for name, buffer in shared.loss.named_buffers():
        close(buffer, getattr(alone.loss, name), f"{what}: {name}")
        copies = [torch.empty_like(buffer) for _ in range(dist.get_world_size())]
        dist.all_gather(copies, buffer)
        for other in copies:
            note(torch.equal(other, buffer), f"{what}: {name} differs between processes")


def compare(
    covariance: str,
    estimate: str,
    split: str,
    dtype: torch.dtype = torch.float64,
    **options: object,
) -> None:
    """One step through DDP on a share of the batch against one on the joined batch."""
    shared, alone = model_pair(covariance, estimate, dtype, **options)
    x, noise = data(dtype)
    whole = alone(x, noise)
    whole.loss.backward()
    mine = share(SPLITS[dist.get_world_size()][split])
    ddp = DistributedDataParallel(shared)  # kept: its hooks go with it
    parts = ddp(x[mine], noise[mine])
    parts.loss.backward()
    what = f"{covariance} {estimate} {split} {dtype} {options}"
    same_gradients(shared, alone, what)
    same_buffers(shared, alone, what)
    for name in ("loss", "reconstruction", "kl", "kl_per_dim", "mse"):
        close(
            mean_over_ranks(getattr(parts, name)), getattr(whole, name).detach(), f"{what}: {name}"
        )
    per_sample = covariance.endswith("-d") and estimate != "fixed"
    close(parts.x_logvar, whole.x_logvar[mine] if per_sample else whole.x_logvar, what)


CASES: dict[str, Callable[[], None]] = {}
SLOW: set[str] = set()


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def _objective(estimate: str, split: str) -> Callable[[], None]:
    def run() -> None:
        for covariance, dtype in itertools.product(COVARIANCES, TOLERANCE):
            compare(covariance, estimate, split, dtype)

    return run


for _estimate, _split in itertools.product(("fixed", "learned", "mle"), SPLITS[2]):
    CASES[f"{_estimate}, {_split}"] = _objective(_estimate, _split)


@case
def reductions() -> None:
    for covariance, reduction in itertools.product(COVARIANCES, ("mean", "sum")):
        compare(covariance, "mle", "uneven", reduction=reduction)
        compare(covariance, "learned", "one empty", reduction=reduction, beta=0.3)


@case
def reference_backend() -> None:
    with backends.use("reference"):
        for covariance, split in itertools.product(COVARIANCES, ("uneven", "one empty")):
            compare(covariance, "mle", split)


@case
def per_sample_values() -> None:
    """ "none": the values are those of the joined batch; the gradient is refused where a sample's
    weight moves the others' estimate."""
    x, noise = data()
    mine = share(SPLITS[dist.get_world_size()]["uneven"])
    for covariance in COVARIANCES:
        shared, alone = model_pair(covariance, "mle", reduction="none")
        with torch.no_grad():
            close(shared(x[mine], noise[mine]).loss, alone(x, noise).loss[mine], covariance)
        same_buffers(shared, alone, covariance)
        if covariance.endswith("-d"):
            shared(x[mine], noise[mine]).loss.sum().backward()
            continue
        with pytest.raises(ValueError, match="reduction must not be 'none'"):
            shared(x[mine], noise[mine])


@case
def function() -> None:
    """mle_nll joins, too, for every covariance; the functions of a known variance are local."""
    x, noise = data()
    target = torch.cat([noise, x[:, :3]], 1)
    mine = share(SPLITS[dist.get_world_size()]["uneven"])
    for covariance in COVARIANCES:
        leaf, part = x.clone().requires_grad_(), x[mine].clone().requires_grad_()
        whole = F.mle_nll(leaf, target, covariance, process_group=False)
        whole.backward()
        loss = F.mle_nll(part, target[mine], covariance)
        loss.backward()
        assert leaf.grad is not None
        assert part.grad is not None
        close(part.grad / dist.get_world_size(), leaf.grad[mine], covariance)
        close(mean_over_ranks(loss), whole.detach(), covariance)
    local = F.gaussian_nll(x[mine], target[mine], 0.0)
    close(local, 0.5 * ((x - target)[mine] ** 2 + math.log(2 * math.pi)).sum(1).mean(), "nll")


@case
def posterior_samples_and_images() -> None:
    """[L, B, ...] beside [B, ...] with several feature axes, a sigmoid and half precision."""
    generator = torch.Generator().manual_seed(0)
    x_hat = torch.randn(3, SAMPLES, 2, 3, 2, generator=generator)
    x = torch.rand(SAMPLES, 2, 3, 2, generator=generator)
    mu = torch.randn(SAMPLES, LATENT, generator=generator)
    mine = share(SPLITS[dist.get_world_size()]["one empty"])
    for covariance in COVARIANCES:
        whole = GaussianVAELoss(covariance, activation="sigmoid", process_group=False)
        shared = GaussianVAELoss(covariance, activation="sigmoid")
        leaf, part = x_hat.clone().requires_grad_(), x_hat[:, mine].clone().requires_grad_()
        whole(leaf, x, mu, mu).backward()
        shared(part, x[mine], mu[mine], mu[mine]).backward()
        assert leaf.grad is not None
        assert part.grad is not None
        close(part.grad / dist.get_world_size(), leaf.grad[:, mine], covariance)
        assert shared.running_variance is not None
        close(shared.running_variance, whole.running_variance, covariance)  # type: ignore[arg-type]
        rough = x_hat[:, mine].bfloat16().requires_grad_()
        shared(rough, x[mine].bfloat16(), mu[mine], mu[mine]).backward()
        assert rough.grad is not None
        # bfloat16 keeps eight bits of x_hat, of x and of the gradient
        got = rough.grad.float() / dist.get_world_size()
        close(got, leaf.grad[:, mine], f"{covariance} bfloat16", 3 * 2**-7)


@case
def zero_residuals() -> None:
    """No residual on any process: the value is the guarded one, and nothing moves."""
    x, noise = data(torch.float32)
    mine = share(SPLITS[dist.get_world_size()]["uneven"])
    for covariance in ("iso-i", "diag-i"):
        leaf = x[mine].clone().requires_grad_()
        loss = GaussianVAELoss(covariance)(leaf, x[mine], noise[mine], noise[mine])
        loss.backward()
        whole = GaussianVAELoss(covariance, process_group=False)(x, x, noise, noise)
        close(mean_over_ranks(loss), whole, covariance)
        note(leaf.grad is not None and not leaf.grad.any(), "a gradient without residual")


@case
def nothing_anywhere() -> None:
    """Every process's batch is empty: 0, and the buffers stay as they were."""
    x, noise = data()
    for covariance in COVARIANCES:
        loss_fn = GaussianVAELoss(covariance)
        loss_fn(x, x + 1, noise, noise)
        assert loss_fn.running_variance is not None
        before = loss_fn.running_variance.clone()
        loss = loss_fn(x[:0].requires_grad_(), x[:0], noise[:0], noise[:0])
        loss.backward()
        note(loss.item() == 0, "the loss of nothing")
        note(torch.equal(loss_fn.running_variance, before), "the buffers moved")


@case
def a_process_that_is_not_finite() -> None:
    """A NaN on one process is a NaN on all: none of them steps alone; the buffers keep."""
    x, noise = data()
    for covariance in ("iso-i", "diag-i"):
        loss_fn = GaussianVAELoss(covariance)
        bad = x * float("nan") if dist.get_rank() == 0 else x
        note(bool(loss_fn(bad, x, noise, noise).isnan()), "NaN on one process only")
        assert loss_fn.running_variance is not None
        note(not loss_fn.running_variance.any(), "NaN in the buffers")


@case
def one_collective() -> None:
    """One all-reduce in each forward, none in the backward; D + 1 or 2 numbers of float64."""
    x, noise = data(torch.float32)
    sizes: list[int] = []
    reduce = dist.all_reduce

    def count(t: Tensor, **options: object) -> None:
        assert t.dtype is torch.float64
        sizes.append(t.numel())
        reduce(t, **options)

    with mock.patch.object(dist, "all_reduce", count):
        for covariance, estimate in itertools.product(COVARIANCES, ("fixed", "mle")):
            shared, _ = model_pair(covariance, estimate, torch.float32)
            loss = shared(x, noise).loss
            wide = covariance == "diag-i" and estimate == "mle"
            assert sizes == [FEATURES + 1 if wide else 2], (covariance, estimate, sizes)
            loss.backward()
            assert len(sizes) == 1
            sizes.clear()


@case
def evaluation_is_local() -> None:
    """In eval mode, and with process_group=False, a process that calls alone does not wait."""
    if dist.get_rank() != 0:
        return
    x, noise = data()
    for covariance, estimate in itertools.product(COVARIANCES, ("fixed", "learned", "mle")):
        shared, alone = model_pair(covariance, estimate)
        close(shared.eval()(x, noise).loss, alone(x, noise).loss, covariance)


@case
def subgroups() -> None:
    """process_group: the batch is joined within the group."""
    world, rank = dist.get_world_size(), dist.get_rank()
    pairs = [dist.new_group([i, i + 1]) for i in range(0, world, 2)]
    group = pairs[rank // 2]
    x, noise = data()
    half = SAMPLES // (world // 2)
    ours = slice(rank // 2 * half, (rank // 2 + 1) * half)
    x, noise = x[ours], noise[ours]
    mine = slice(0, half - 1) if rank % 2 == 0 else slice(half - 1, half)
    shared, alone = model_pair("diag-i", "mle")
    shared.loss.process_group = group
    alone(x, noise).loss.backward()
    shared(x[mine], noise[mine]).loss.backward()
    for p, q in zip(shared.parameters(), alone.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        dist.all_reduce(p.grad, group=group)
        close(p.grad / 2, q.grad, "subgroup")


@case
def accumulation() -> None:
    """Micro-batches on every process, of different sizes, one of them empty, through DDP."""
    x, noise = data()
    world = dist.get_world_size()
    mine = share(SPLITS[world]["uneven"])
    for covariance, estimate in itertools.product(COVARIANCES, ("learned", "mle")):
        for given in (False, True):
            shared, alone = model_pair(covariance, estimate)
            whole = alone(x, noise).loss
            whole.backward()
            ddp = DistributedDataParallel(shared)

            def step(at: slice, ddp: nn.Module = ddp) -> Tensor:
                loss: Tensor = ddp(x[mine][at], noise[mine][at]).loss
                return loss

            parts = [slice(0, 1), slice(1, 1), slice(1, None)]
            total = torch.zeros((), dtype=torch.float64)
            for loss in shared.loss.accumulate(step, parts, model=ddp if given else None):
                loss.backward()
                total += loss.detach()
            what = f"accumulation {covariance} {estimate}"
            same_gradients(shared, alone, what)
            same_buffers(shared, alone, what)
            close(mean_over_ranks(total), whole.detach(), what)


@case
def fsdp() -> None:
    """fully_shard: the same gradients, whole and accumulated; the sharded variance too."""
    from torch.distributed.fsdp import fully_shard

    x, noise = data()
    mine = share(SPLITS[dist.get_world_size()]["one empty"])
    for covariance, estimate in itertools.product(COVARIANCES, ("learned", "mle")):
        shared, alone = model_pair(covariance, estimate)
        whole = alone(x, noise)
        whole.loss.backward()
        fully_shard(shared.encoder)
        fully_shard(shared)
        optimizer = torch.optim.SGD(shared.parameters(), 0.1)
        shared(x[mine], noise[mine]).loss.backward()
        same_gradients(shared, alone, f"fsdp {covariance} {estimate}")
        same_buffers(shared, alone, covariance)
        optimizer.step()  # the bound of a learned variance is put on a sharded parameter
        torch.optim.SGD(alone.parameters(), 0.1).step()
        for p, q in zip(shared.parameters(), alone.parameters(), strict=True):
            close(full(p.data), q.data, "step")
        optimizer.zero_grad()
        alone.zero_grad()
        alone(x, noise).loss.backward()
        parts = [slice(0, 2), slice(2, None)]

        def step(at: slice, shared: nn.Module = shared) -> Tensor:
            loss: Tensor = shared(x[mine][at], noise[mine][at]).loss
            return loss

        for loss in shared.loss.accumulate(step, parts, model=shared):
            loss.backward()
        same_gradients(shared, alone, f"fsdp, accumulated {covariance} {estimate}")


@case
def a_vae_in_ddp() -> None:
    """VAE is what DDP wraps: its learned variance is trained and stays one number."""
    torch.manual_seed(2)
    encoder, decoder = vaekern.models.networks.mlp((FEATURES,), LATENT, width=8, output="linear")
    vae = vaekern.models.VAE(encoder, decoder, GaussianVAELoss("iso-i", "learned"), LATENT)
    ddp = DistributedDataParallel(vae)
    optimizer = torch.optim.Adam(ddp.parameters(), 0.1)
    x, _ = data(torch.float32)
    torch.manual_seed(dist.get_rank())  # each process draws its own noise
    mine = share(SPLITS[dist.get_world_size()]["uneven"])
    for _ in range(3):
        optimizer.zero_grad()
        ddp(x[mine]).loss.backward()
        optimizer.step()
    copies = [torch.empty(1) for _ in range(dist.get_world_size())]
    dist.all_gather(copies, vae.loss.x_logvar.detach())
    assert all(torch.equal(other, vae.loss.x_logvar) for other in copies)
    assert vae.loss.x_logvar.item() > 0.1


@case
def second_derivative() -> None:
    """An estimate that is held fixed has one derivative: the second is refused on any backend."""
    x, noise = data()
    for backend in ("reference", backends.active()):
        with backends.use(backend):
            leaf = x.clone().requires_grad_()
            loss = GaussianVAELoss("iso-i")(leaf, x + 1, noise, noise)
            (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
            with pytest.raises(RuntimeError, match="cannot be differentiated again"):
                grad.sum().backward()


@contextlib.contextmanager
def no_all_reduce() -> Iterator[None]:
    with mock.patch.object(dist, "all_reduce"):
        yield


@contextlib.contextmanager
def local_count() -> Iterator[None]:
    def join(part: Tensor, group: object) -> joined.Joined:
        mine = part[-1].clone()
        found = honest(part, group)
        return found._replace(samples=mine * found.ranks)

    honest = joined.join
    with mock.patch.object(joined, "join", join):
        yield


@contextlib.contextmanager
def local_weight() -> Iterator[None]:
    one = torch.ones((), dtype=torch.float64)
    with mock.patch.object(joined, "samples_share", return_value=one):
        yield


@contextlib.contextmanager
def ranks_forgotten() -> Iterator[None]:
    honest = joined.join
    with mock.patch.object(joined, "join", lambda *a: honest(*a)._replace(ranks=1)):
        yield


@case
def planted_faults() -> None:
    """The comparison above can fail: every fault turns it red on some process."""
    coupled = ("iso-i", "diag-i")
    faults = [
        (no_all_reduce, "equal", "mle", coupled),
        (no_all_reduce, "uneven", "mle", COVARIANCES),
        (no_all_reduce, "uneven", "learned", COVARIANCES),
        (local_count, "uneven", "mle", COVARIANCES),
        (local_count, "uneven", "fixed", COVARIANCES),
        (local_weight, "uneven", "mle", COVARIANCES),
        (ranks_forgotten, "equal", "mle", COVARIANCES),
    ]
    for fault, split, estimate, covariances in faults:
        for covariance in covariances:
            shared, alone = model_pair(covariance, estimate)
            x, noise = data()
            alone(x, noise).loss.backward()
            mine = share(SPLITS[dist.get_world_size()][split])
            ddp = DistributedDataParallel(shared)
            with fault():
                ddp(x[mine], noise[mine]).loss.backward()
            before = list(FAILURES)
            same_gradients(shared, alone, "planted")
            red = torch.tensor(float(before != FAILURES))
            FAILURES[:] = before
            dist.all_reduce(red)
            green = f"{fault.__name__} {covariance} {estimate} {split}: green"
            note(bool(red == dist.get_world_size()), green)


@case
def compiled() -> None:
    """torch.compile in one graph, the collective in it."""
    x, noise = data()
    mine = share(SPLITS[dist.get_world_size()]["uneven"])
    for covariance, estimate in (("iso-i", "mle"), ("diag-i", "mle"), ("diag-d", "learned")):
        shared, alone = model_pair(covariance, estimate)
        torch._dynamo.reset()
        whole = alone(x, noise)
        whole.loss.backward()
        step = torch.compile(shared, backend="aot_eager", fullgraph=True)
        loss = step(x[mine], noise[mine]).loss
        loss.backward()
        average_gradients(shared)
        same_gradients(shared, alone, f"compiled {covariance}")
        same_buffers(shared, alone, covariance)
        close(mean_over_ranks(loss), whole.loss.detach(), covariance)
        accumulated = shared.loss.accumulate(
            lambda at: step(x[mine][at], noise[mine][at]).loss,  # noqa: B023  called in this turn
            [slice(0, 1), slice(1, None)],
        )
        shared.zero_grad()
        for part in accumulated:
            part.backward()
        average_gradients(shared)
        same_gradients(shared, alone, f"compiled, accumulated {covariance}")


SLOW.add("compiled")


def main(rank: int, world: int, folder: Path, slow: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    outcomes: dict[str, str | None] = {}
    for name, run in CASES.items():
        if name in SLOW and not slow:
            continue
        FAILURES.clear()
        try:
            run()
        except (Exception, pytest.fail.Exception):
            FAILURES.append(traceback.format_exc())
        outcomes[name] = "\n".join(FAILURES) or None
        (folder / f"{rank}.json").write_text(json.dumps(outcomes))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), "--slow" in sys.argv)
