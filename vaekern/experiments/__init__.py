"""Whole tables of the papers: every system over several seeds, beside the papers' numbers."""

from vaekern.experiments.catalogue import EXPERIMENTS, describe_experiments
from vaekern.experiments.experiment import Column, Experiment, Row
from vaekern.experiments.running import Reproduction, reproduce

__all__ = [
    "EXPERIMENTS",
    "Column",
    "Experiment",
    "Reproduction",
    "Row",
    "describe_experiments",
    "reproduce",
]
