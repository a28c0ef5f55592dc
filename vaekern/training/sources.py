"""What the stages learn, batch by batch."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaekern.data import Dataset
from vaekern.data.rows import FileRows, Rows, Samples, take
from vaekern.models import Posterior, TwoStageVAE
from vaekern.models.vae import CHUNK
from vaekern.training.config import TrainConfig
from vaekern.training.prefetch import prefetched
from vaekern.training.processes import Processes
from vaekern.training.seeds import derived_seed

# Data up to this size lives on the device; a larger set is sent batch by batch.
RESIDENT_BYTES = 4 * 2**30


def split(train: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """(held out, the rest) of a training set, drawn at random; neither is empty.

    Raises:
        ValueError: there are fewer than two samples.
    """
    held_out, rest = _split_rows(len(train), fraction, seed)
    return take(train, held_out), take(train, rest)


def trained_on(data: Dataset, config: TrainConfig) -> Dataset:
    """The data without the training samples that were held out for validation."""
    fraction = config.schedule.validation_fraction
    if not fraction:
        return data
    _, rest = _split_rows(len(data.train), fraction, config.run.seed)
    labels, factors = data.train_labels, data.train_factors
    return dataclasses.replace(
        data,
        train=take(data.train, rest),
        train_labels=None if labels is None else labels[rest],
        train_factors=None if factors is None else factors[rest],
    )


def _split_rows(samples: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    if samples < 2:
        raise ValueError(
            f"validation_fraction must be 0 for a training set of {samples}, got {fraction}; "
            "leave it out"
        )
    count = min(max(1, round(fraction * samples)), samples - 1)
    generator = torch.Generator().manual_seed(derived_seed(seed, 4))
    rows = torch.randperm(samples, generator=generator)
    return rows[:count], rows[count:]


class Images:
    """What stage 1 learns: rows of the training set.

    Args:
        x: the training set [N, *sample_shape].
        device: where batches go.
        processes: each takes its share of every batch.
    """

    def __init__(self, x: Samples, device: torch.device, processes: Processes | None = None):
        self.device = device
        self.processes = processes or Processes()
        self.dimensions = x.shape[1:].numel()
        self.x = x
        if isinstance(x, Tensor) and x.numel() * x.element_size() <= RESIDENT_BYTES:
            self.x = x.to(device)
        # where the numbers of the rows are wanted
        self.rows_on = self.x.device if isinstance(self.x, Tensor) else torch.device("cpu")

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """[B, *sample_shape]; on several processes this one's share of the rows."""
        return self._fetch(rows).to(self.device, non_blocking=True)

    def batches(self, rows: Iterable[Tensor], generator: torch.Generator) -> Iterator[Tensor]:
        """`batch` for one set of rows after the other; those on disk are read ahead."""
        if not isinstance(self.x, Rows):
            return (self.batch(each, generator) for each in rows)
        read = prefetched(self._fetch, rows, self.x.workers)
        return (x.to(self.device, non_blocking=True) for x in read)

    def _fetch(self, rows: Tensor) -> Tensor:
        rows = rows[self.processes.share(len(rows))]
        if isinstance(self.x, Tensor):
            return self.x[rows.to(self.x.device)]
        x = self.x[rows]
        return x.pin_memory() if self.device.type == "cuda" else x


class Latents:
    """What stage 2 learns: a fresh z ~ q(z|x) whenever a row is asked for.

    Args:
        posterior: of the training set.
        processes: each takes its share of every batch, and of its noise.
    """

    def __init__(self, posterior: Posterior, processes: Processes | None = None):
        self.processes = processes or Processes()
        self.device = self.rows_on = posterior.mu.device
        self.dimensions = posterior.mu.shape[1]
        self._kind, self._packed = _packed(posterior)

    def __len__(self) -> int:
        return len(self._packed)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """[B, d]; on several processes this one's share of the rows."""
        mine = self.processes.share(len(rows))
        found = self._fetch(rows[mine])
        # Everybody draws the noise of the whole batch: it does not depend on who shares it.
        shape = (len(rows), self.dimensions)
        noise = torch.randn(shape, generator=generator, device=self.device)
        if self._kind is None:
            mu, sigma = found[:, : self.dimensions], found[:, self.dimensions :]
            return torch.addcmul(mu, sigma, noise[mine])
        return self._kind.unpack(found).sample(noise=noise[mine])

    def _fetch(self, rows: Tensor) -> Tensor:
        return self._packed.index_select(0, rows.to(self.device))

    def batches(self, rows: Iterable[Tensor], generator: torch.Generator) -> Iterator[Tensor]:
        """`batch` for one set of rows after the other, its noise drawn when it is asked for."""
        return (self.batch(each, generator) for each in rows)


def _packed(posterior: Posterior) -> tuple[Posterior | None, Tensor]:
    """(None, mu and sigma side by side [N, 2 d]); or, of a posterior that has more than these, (one
    row, which says how to read them, all of its numbers).

    One look-up for a batch in place of several, and the exponentials taken once.
    """
    if posterior.scale_tril is None and posterior.flow is None:
        return None, torch.cat([posterior.mu, torch.exp(0.5 * posterior.logvar)], dim=1)
    return posterior.take(slice(1)), posterior.pack()


class LatentsOnDisk(Latents):
    """The same for a set that is on disk itself: q(z|x) is in a file without a name.

    Args:
        model: its stage 1 is run once over all samples.
        images: the samples; each of their processes encodes its share of them.
        directory: of the file, which the system removes when the process ends, however it ends.
    """

    def __init__(self, model: TwoStageVAE, images: Images, directory: Path):
        self.processes = images.processes
        self.device = next(model.parameters()).device
        self.dimensions = model.stage1.latent_dim
        self.rows_on = torch.device("cpu")
        self._count = len(images)
        # it stays open as long as there are rows to read
        file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        pieces = torch.arange(len(images)).split(CHUNK)
        for rows, x in zip(pieces, images.batches(pieces, torch.Generator()), strict=True):
            self._kind, packed = _packed(model.posterior(x).to(torch.float32))
            found = self.processes.rows(packed, len(rows))
            file.write(found.cpu().numpy().tobytes())
        file.flush()
        self._rows = FileRows(
            file,
            0,
            np.dtype("f4"),
            (len(images), found.shape[1]),
            lambda stored, _: torch.from_numpy(stored),
        )

    def __len__(self) -> int:
        return self._count

    def _fetch(self, rows: Tensor) -> Tensor:
        return self._rows[rows].to(self.device, non_blocking=True)


def latents(model: TwoStageVAE, images: Images, directory: Path) -> Latents:
    """What stage 2 learns of the images, in memory or on disk as they are."""
    if isinstance(images.x, Rows):
        return LatentsOnDisk(model, images, directory)
    processes, count = images.processes, len(images)
    part = model.posterior(images.x[processes.share(count)])
    return Latents(part.map(lambda each: processes.rows(each, count)), processes)
