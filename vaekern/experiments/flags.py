"""The flags of `vaekern reproduce`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vaekern._optional import require
from vaekern.experiments.experiment import merged
from vaekern.training.config import STAGES

DESCRIPTION = """Train the systems of one table over several seeds, and write mean and standard
deviation beside the paper's numbers (table.md, table.csv, results.json, figures). Runs that are
there already are used: the same command goes on where it stopped."""
EXAMPLES = """examples:
  vaekern reproduce --list
  vaekern reproduce digits
  vaekern reproduce digits --rows vae-fixed mle-iso-i --seeds 5 --epochs 50
  vaekern reproduce digits --set latent_dim=8 --set stage1.batch_size=128 --out small
"""


def make_parser(base: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser; its attributes are the arguments of `reproduce`, and ``list`` and ``set``."""
    parser = base(
        prog="vaekern reproduce",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the experiment")
    parser.add_argument("--list", action="store_true", help="name what there is, and its cost")
    parser.add_argument(
        "--data", metavar="SPEC", help="as in vaekern train (default: the experiment's own)"
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="runs of each row (default: 3)"
    )
    parser.add_argument("--out", metavar="DIR", help="(default: experiments/NAME-DATA)")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these alone")
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="of stage 1; the second stage and the halving of rates change in proportion",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting of vaekern train for every row, as in config.yaml; may be repeated",
    )
    parser.add_argument(
        "--inception", metavar="FILE", help="Inception's weights, for FID and KID (default: none)"
    )
    parser.add_argument(
        "--stretch",
        action="store_true",
        help="stretch each generated image to its full range before FID, as Dai & Wipf's code",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)"
    )
    return parser


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """Settings from words like ``latent_dim=8`` and ``stage1.epochs=10``.

    Raises:
        ValueError: a word without a name or a value.

    Example:
        >>> parse_settings(["latent-dim=8", "stage1.lr=0.001", "stage1.epochs=10"])
        {'latent_dim': 8, 'stage1': {'lr': 0.001, 'epochs': 10}}
    """
    yaml = require("yaml", "vaekern reproduce --set", package="PyYAML")
    settings: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not (name and sign):
            raise ValueError(f"--set must be NAME=VALUE, got {word!r}; as in --set latent_dim=8")
        value = yaml.safe_load(text)
        part, dot, key = name.replace("-", "_").partition(".")
        if dot and part not in STAGES:
            raise ValueError(f"--set has no setting {name!r}; `vaekern train -h` names them")
        settings = merged(settings, {part: {key: value}} if dot else {part: value})
    return settings
