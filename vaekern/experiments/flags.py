"""The flags of `vaekern reproduce`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any

from vaekern.experiments.experiment import merged
from vaekern.training.config import STAGES, TrainConfig

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
        "--seeds",
        type=_seeds,
        default=3,
        metavar="N",
        help="runs of each row, from seed 0 on; or which seeds, as in 5,7 (default: 3)",
    )
    parser.add_argument("--out", metavar="DIR", help="(default: experiments/NAME-DATA)")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these alone")
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="of stage 1, for the row that has most; all other lengths change in proportion",
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


def _seeds(text: str) -> int | list[int]:
    """A number of seeds, or the seeds."""
    try:
        if "," not in text:
            return int(text)
        return [int(word) for word in text.split(",") if word]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number of seeds, as in 3, or seeds with commas, as in 5,7, got {text!r}"
        ) from None


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """Settings from words like ``latent_dim=8`` and ``stage1.epochs=10``, each of its type.

    Raises:
        ValueError: a word without a name or a value, an unknown setting, or a value of another
            type.

    Example:
        >>> parse_settings(["latent-dim=8", "stage1.lr=1e-3", "stage1.epochs=10"])
        {'latent_dim': 8, 'stage1': {'lr': 0.001, 'epochs': 10}}
    """
    known = _types()
    settings: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not (name and sign):
            raise ValueError(f"--set must be NAME=VALUE, got {word!r}; as in --set latent_dim=8")
        full = name.replace("-", "_")
        if full not in known:
            near = difflib.get_close_matches(full, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"--set has no setting {name!r}; {hint}`vaekern train -h` names all of them"
            )
        value = _value(full, text, known[full])
        part, dot, key = full.partition(".")
        settings = merged(settings, {part: {key: value}} if dot else {part: value})
    return settings


def _types() -> dict[str, Any]:
    """The type of every setting, by its name as `--set` takes it."""
    found: dict[str, Any] = {}
    groups = typing.get_type_hints(TrainConfig)
    for group in dataclasses.fields(TrainConfig):
        prefix = f"{group.name}." if group.name in STAGES else ""
        hints = typing.get_type_hints(groups[group.name])
        fields = dataclasses.fields(groups[group.name])
        found |= {prefix + each.name: hints[each.name] for each in fields}
    return found


def _value(name: str, text: str, kind: Any) -> Any:
    """A setting's value from its text."""
    arms = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in arms and text.lower() in ("none", "null", ""):
        return None
    wanted: list[str] = []
    for arm in arms:
        if arm is type(None):
            wanted.append("none")
        elif typing.get_origin(arm) is typing.Literal:
            if text in typing.get_args(arm):
                return text
            wanted.append(f"one of {', '.join(typing.get_args(arm))}")
        elif arm is str:
            return text
        elif arm is bool:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
            wanted.append("true or false")
        elif arm in (int, float):
            with contextlib.suppress(ValueError):
                return arm(text)
            wanted.append("a whole number" if arm is int else "a number")
        else:  # two bounds
            with contextlib.suppress(ValueError):
                low, high = map(float, text.strip("[]() ").split(","))
                return low, high
            wanted.append("two numbers as in [-30, 20]")
    raise ValueError(f"--set {name} must be {' or '.join(wanted)}, got {text!r}")
