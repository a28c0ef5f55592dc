"""The error that ends a run, with one sentence for the user."""

from __future__ import annotations


class RunError(RuntimeError):
    """A run cannot start or go on; the text says what happened and what to do."""


class DivergedError(RunError):
    """A loss is no longer finite.

    Args:
        what: happened.
        remedy: what to do; the experiment that the run belongs to may know another.
    """

    def __init__(self, what: str, remedy: str):
        super().__init__(f"{what}; {remedy}")
        self.what = what


class SaidElsewhere(RunError):
    """Another process of the run tells the user; this one ends without a word."""
