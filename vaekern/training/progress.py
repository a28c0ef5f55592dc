"""What a user sees of a stage while it trains: one line on a terminal, a few lines in a log."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import Any, NamedTuple, Self

from vaekern._optional import require

# In a log, which keeps every line, one a minute is enough to see that a run goes on.
LINE_SECONDS = 60.0
# Below this many columns the numbers take the place of the bar.
WIDE = 100


class Standing(NamedTuple):
    """How a stage stands."""

    loss: float  # per dimension, in nats unless it is a squared error
    sigma: float | None  # None for a decoder without one
    active_units: int | None  # None before they are first counted
    in_nats: bool = True

    def __str__(self) -> str:
        return ", ".join(self.parts())

    def parts(self) -> list[str]:
        """The numbers with their names."""
        spread = [] if self.sigma is None else [f"sigma {self.sigma:.3g}"]
        units = [] if self.active_units is None else [f"{self.active_units} active"]
        unit = "nats/dim" if self.in_nats else "per dim"
        return [f"loss {self.loss:.3f} {unit}", *spread, *units]


class Progress:
    """Samples done of a stage, how fast, and the time left.

    On a terminal one line that is written over, at most 80 columns of numbers; elsewhere a line a
    minute, and one at the end of a stage that took longer. Both on stderr.

    Args:
        stage: its number, or what else is trained.
        epochs: how many it has.
        samples: of each epoch.
        done: samples that an earlier process has trained on.
        silent: nothing is ever shown.
    """

    def __init__(
        self, stage: int | str, epochs: int, samples: int, done: int, *, silent: bool = False
    ):
        self.epochs, self.samples = epochs, samples
        self._name = f"stage {stage}" if isinstance(stage, int) else stage
        self._silent = silent
        self._started, self._before, self._done = time.monotonic(), done, done
        self._printed = self._started
        self._standing: Standing | None = None
        self._wide = shutil.get_terminal_size().columns >= WIDE
        self._bar: Any = require("tqdm", "a training run").tqdm(
            desc=self._name,
            total=epochs * samples,
            initial=done,
            unit=" samples" if self._wide else "",
            unit_scale=True,
            disable=True if silent else None,  # None: quiet where nobody watches
            dynamic_ncols=True,
            bar_format=self._format([]),
        )

    def _format(self, parts: list[str]) -> str:
        """The line, as tqdm fills it in; at 80 columns there is no room for commas."""
        if self._wide:
            numbers = ", ".join([*parts, "{rate_noinv_fmt}", "{remaining} left"])
            return "{desc} {percentage:3.0f}%|{bar}| " + numbers
        return " ".join(
            ["{desc}", "{percentage:.0f}%", *parts, "{rate_noinv_fmt}", "{remaining} left"]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._printed > self._started and kind is None:
            self._print(time.monotonic())
        self._bar.close()

    def update(self, samples: int) -> None:
        """Count the samples of a step."""
        self._done += samples
        self._bar.update(samples)

    def show(self, standing: Standing) -> None:
        """Show how the stage stands, at the next time that something is written."""
        self._standing = standing
        if not self._bar.disable:
            self._bar.bar_format = self._format(standing.parts())
            return
        now = time.monotonic()
        if now - self._printed >= LINE_SECONDS:
            self._print(now)

    def write(self, sentence: str) -> None:
        """Write a line of its own."""
        if self._silent:
            return
        self._bar.write(sentence, file=sys.stderr)

    def _print(self, now: float) -> None:
        if self._silent:
            return
        self._printed = now
        done = self._done - self._before
        rate = done / max(now - self._started, 1e-9)
        left = (self.epochs * self.samples - self._done) / rate if rate else 0.0
        tqdm = type(self._bar)
        standing = "" if self._standing is None else f"{self._standing}, "
        print(
            f"{self._name}, epoch {self._done // self.samples} of {self.epochs}: {standing}"
            f"{tqdm.format_sizeof(rate)} samples/s, {tqdm.format_interval(left)} left",
            file=sys.stderr,
            flush=True,
        )
