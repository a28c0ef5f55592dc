"""The error that ends a run, with one sentence for the user."""

from __future__ import annotations


class RunError(RuntimeError):
    """A run cannot start or go on; the text says what happened and what to do."""


class SaidElsewhere(RunError):
    """Another process of the run tells the user; this one ends without a word."""
