"""The loops that bench_training_loop.py compares, each in a process of its own.

    python training_loops.py CASE VARIANT THREADS [DEVICE]

The process reads numbers of steps from stdin and answers each with a line of JSON: the seconds of
every step, and its peak memory so far.  One process for each loop, since how much memory a loop
needs, and how the allocator treats what it frees, are properties of a process.

The baselines are what a PyTorch user writes: networks of nn modules, `torch.optim.Adam` with its
defaults, the data as one tensor that is indexed by a shuffled order, the objective as a chain of
operators, the loss added up with `.item()`.  "compile" is the same with `torch.compile` around
encoder, decoder and objective together.  "vaekern" is the loop of `vaekern train` itself, from its
reading of the data to its checkpoints, stopped between two steps.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import baselines
import numpy as np
import torch
from memory import peak_kb
from torch import Tensor, nn

BATCH = 100
LR = 1e-4
VARIANTS = ("vaekern", "compile", "eager")
OBJECTIVE = next(o for o in baselines.OBJECTIVES if o.name == "mle iso-i")


@dataclass(frozen=True)
class Case:
    """What is trained: stage 1 on images, or stage 2 on the latents of a stage 1."""

    title: str
    stage: int
    shape: tuple[int, ...]  # of a sample: an image, or the latents
    latents: int
    network: str = "infogan"  # of stage 1
    width: int = 0  # of stage 2
    samples: int = 11_000  # a tenth is held out
    slow: bool = False  # seconds a step: few steps, on all cores only


CASES = {
    "stage2-256-16": Case("stage 2, width 256", 2, (16,), 16, width=256),
    "stage2-256-64": Case("stage 2, width 256", 2, (64,), 64, width=256),
    "stage2-1024-64": Case("stage 2, width 1024", 2, (64,), 64, width=1024),
    "infogan-28": Case("stage 1, InfoGAN", 1, (1, 28, 28), 64, samples=1_100),
    "infogan-64": Case("stage 1, InfoGAN", 1, (3, 64, 64), 64, samples=1_100),
    "wae-64": Case(
        "stage 1, WAE (CelebA)", 1, (3, 64, 64), 64, network="wae", samples=1_100, slow=True
    ),
}


class SecondStage(nn.Module):
    """Dai & Wipf's second-stage encoder or decoder, as one writes it."""

    def __init__(self, latents: int, width: int, heads: int):
        super().__init__()
        layers: list[nn.Module] = []
        for features in (latents, width, width):
            layers += [nn.Linear(features, width), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(latents + width, latents) for _ in range(heads))

    def forward(self, z: Tensor) -> Any:
        features = torch.cat([z, self.hidden(z)], dim=1)
        out = [head(features) for head in self.heads]
        return (out[0], 2 * out[1]) if len(out) == 2 else out[0]


class PlainVAE(nn.Module):
    """Encoder, decoder and objective: the loss of a batch."""

    def __init__(self, case: Case):
        super().__init__()
        if case.stage == 2:
            self.encoder: nn.Module = SecondStage(case.latents, case.width, 2)
            self.decoder: nn.Module = SecondStage(case.latents, case.width, 1)
            self.x_logvar = nn.Parameter(torch.zeros(1))
        else:
            from vaekern.models import networks  # these two are nothing but nn modules

            self.encoder, self.decoder = networks.build(
                case.network, case.shape, case.latents, output="sigmoid"
            )
        self.stage = case.stage

    def forward(self, x: Tensor) -> Tensor:
        mu, logvar = self.encoder(x)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        square = (self.decoder(z) - x).flatten(1) ** 2
        if self.stage == 2:
            return baselines.learned(square, self.x_logvar) + baselines.kl(mu, logvar)
        return OBJECTIVE.reconstruction(square, None) + baselines.kl(mu, logvar)


def plain(case: Case, compiled: bool, device: str) -> Iterator[None]:
    """The user's loop; yields after every step."""
    torch.manual_seed(0)
    count = case.samples * 9 // 10
    if case.stage == 2:
        mu, logvar = torch.randn(count, case.latents), torch.full((count, case.latents), -3.0)
    else:
        images = torch.rand(count, *case.shape)
    if case.stage == 2:
        mu, logvar = mu.to(device), logvar.to(device)
    else:
        images = images.to(device)
    model = PlainVAE(case).to(device)
    model.train()
    loss_of: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    while True:
        total = 0.0
        for rows in torch.randperm(count)[: count // BATCH * BATCH].split(BATCH):
            if case.stage == 2:
                m = mu[rows]
                x = m + torch.exp(0.5 * logvar[rows]) * torch.randn_like(m)
            else:
                x = images[rows]
            optimizer.zero_grad()
            loss = loss_of(x)
            loss.backward()
            optimizer.step()
            total += loss.item()
            yield
        assert math.isfinite(total)


def train(case: Case, threads: int, after_step: Callable[[], None], device: str, step: str) -> None:
    """`vaekern train`, which calls `after_step` when it has made a step of the case's stage."""
    from vaekern.training import TrainConfig, Trainer, TrainingRun, run

    class Timed(Trainer):
        def _on_time(self, *arguments: Any) -> None:
            super()._on_time(*arguments)
            if self.position.stage == case.stage:
                after_step()

    run.Trainer = Timed  # type: ignore[attr-defined, misc]
    with tempfile.TemporaryDirectory() as folder:
        shape = case.shape if case.stage == 1 else (8,)
        rng = np.random.default_rng(0)
        np.save(f"{folder}/x.npy", rng.random((case.samples, *shape), dtype=np.float32))
        settings: dict[str, Any] = {
            "run": str(Path(folder) / "run"),
            "data": f"npy:{folder}/x.npy",
            "threads": threads,
            "device": device,
            "step": step,
            "latent_dim": case.latents,
            "stage1": {"epochs": 10**6, "batch_size": BATCH, "lr": LR},
            "stage2": {"epochs": 0},
            "network": case.network,
        }
        if case.stage == 2:  # one step of a small stage 1 comes before
            settings |= {"network": "mlp", "width": 8, "second_width": case.width}
            settings["stage1"] = {"epochs": 1, "batch_size": 10**6}
            settings["stage2"] = {"epochs": 10**6, "batch_size": BATCH, "lr": LR}
        TrainingRun(TrainConfig.from_flat(settings))()


class Session:
    """Answers the numbers on stdin; `step` is called when a step has been made.

    On a GPU, where steps are only launched one by one, it waits before and after all of them, and
    answers with their mean."""

    def __init__(self, device: str) -> None:
        self.gpu = device == "cuda"
        self.left = 0
        self.seconds: list[float] = []
        self.last = 0.0
        self.wait()

    def wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        self.left, self.seconds = int(line), []
        if self.gpu:
            torch.cuda.synchronize()
        self.last = time.perf_counter()

    def step(self) -> None:
        self.left -= 1
        if self.gpu and self.left:
            self.seconds.append(0.0)
            return
        if self.gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        if self.left == 0:
            if self.gpu:
                self.seconds = [self.seconds[-1] / len(self.seconds)] * len(self.seconds)
            peak = peak_kb()
            device_mb = torch.cuda.max_memory_reserved() / 2**20 if self.gpu else 0.0
            answer = {"seconds": self.seconds, "peak_kb": peak, "device_mb": device_mb}
            print(json.dumps(answer), flush=True)
            self.wait()
            return
        self.last = now


def main(case: str, variant: str, threads: str, device: str = "cpu") -> None:
    torch.set_num_threads(int(threads))
    session = Session(device)
    if variant.startswith("vaekern"):
        step = "eager" if variant == "vaekern-eager" else "auto"
        train(CASES[case], int(threads), session.step, device, step)
        return
    for _ in plain(CASES[case], variant == "compile", device):
        session.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
