"""The flags of `vaekern train`, generated from the dataclasses of `config`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from vaekern._optional import require
from vaekern.data import READERS
from vaekern.models.config import explanation
from vaekern.training.config import STAGES, TrainConfig
from vaekern.training.effects import check_effects
from vaekern.training.presets import preset
from vaekern.training.run_directory import RunDirectory

DESCRIPTION = """Train a two-stage VAE: the first on the data, the second on its latents. The run
directory gets the settings, weights, metrics, pictures and a table."""
EPILOG = """examples:
  vaekern train                                      both stages on the digits, about a minute
  vaekern train --data idx:mnist --network infogan --latent-dim 64
  vaekern train --preset two-stage                   a system of the papers
  vaekern train --covariance diag-i --estimate learned --run runs/diag
  vaekern train --config runs/diag/config.yaml --seed 1 --run runs/diag-1
  vaekern train --run runs/diag --resume             go on where it stopped, with its settings
"""


def _epilog() -> str:
    """The examples, and what --data takes."""
    width = max(len(reader.spelling(name)) for name, reader in READERS.items())
    rows = (f"  {r.spelling(name):{width}}  {r.description}" for name, r in READERS.items())
    return "\n".join([EPILOG, "data (SPEC):", *rows])


METAVARS = {"preset": "NAME", "run": "DIR", "data": "SPEC", "network": "NAME"}


class UsageError(Exception):
    """Flags or a configuration file that mean nothing; the text is one sentence."""


def parse(argv: Sequence[str]) -> tuple[TrainConfig, bool]:
    """(settings, resume) for the words after `vaekern train`.

    Raises:
        UsageError: an unknown flag, a value of the wrong type, an unreadable configuration file.
        ModuleNotFoundError: jsonargparse is not installed; the text names the extra.
    """
    jsonargparse = require("jsonargparse", "vaekern train")

    wanted: dict[str, str] = {}

    class Parser(jsonargparse.ArgumentParser):  # type: ignore[name-defined,misc]
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UsageError(_sentence(" ".join(str(message).split()), wanted))

    parser = Parser(
        prog="vaekern train",
        usage="vaekern train [--preset NAME] [--data SPEC] [--run DIR] [--resume] [options]",
        description=DESCRIPTION,
        epilog=_epilog(),
        formatter_class=_Formatter,
        default_env=False,
    )
    first = parser.add_argument_group("run")
    first.add_argument(
        "--config",
        action=jsonargparse.ActionConfigFile,
        metavar="FILE",
        help="YAML file with these settings; flags win over it",
    )
    first.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in the directory; start one where it is empty",
    )
    default = TrainConfig()
    for part in dataclasses.fields(default):
        config = getattr(default, part.name)
        hints = typing.get_type_hints(type(config))
        group = (
            first
            if part.name == "run"
            else parser.add_argument_group(part.name, (type(config).__doc__ or "").strip())
        )
        prefix = f"{part.name}." if part.name in STAGES else ""
        for setting in dataclasses.fields(config):
            value = getattr(config, setting.name)
            text = explanation(setting)
            choices = _choices(hints[setting.name])
            wanted[f"{prefix}{setting.name}"] = _wanted(hints[setting.name])
            group.add_argument(
                f"--{prefix}{setting.name}".replace("_", "-"),
                type=hints[setting.name],
                default=value,
                metavar=METAVARS.get(setting.name) or choices or _metavar(hints[setting.name]),
                help=text if value is None else f"{text} (default: {value})",
            )
    config, resume = _read(parser, list(argv))
    if resume:
        directory = RunDirectory(config.run_directory)
        if directory.description.is_file() and directory.config.is_file():
            # The run's own settings stand for the flags that are not given again.
            stored = ["--config", str(directory.config), "--run", config.run_directory]
            config, resume = _read(parser, [*stored, *argv])
    return config, resume


def _read(parser: Any, argv: list[str]) -> tuple[TrainConfig, bool]:
    values: dict[str, Any] = parser.parse_args(_general_first(argv)).as_dict()
    values.pop("config", None)
    resume = bool(values.pop("resume"))
    try:
        config = TrainConfig.from_flat(values)
        check_effects(config, argv)
        return config, resume
    except ValueError as error:
        raise UsageError(str(error)) from None


def _general_first(argv: list[str]) -> list[str]:
    """Presets and configuration files before all other flags, which so win over them.

    A preset becomes what `--config` reads, settings as JSON, which is YAML too. A file that names a
    preset wins over it, so that one stands before it.
    """
    general: list[str] = []
    flags: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in ("--preset", "--config"):
            flags.append(word)
            continue
        if not equals:
            following = next(words, None)
            if following is None:
                return argv  # the parser says what is missing
            value = following
        if flag == "--config":
            general += [*_preset_of(value), flag, value]
        else:
            general += _settings_of(value)
    return general + flags


def _settings_of(name: str) -> list[str]:
    try:
        settings = preset(name).settings
    except ValueError as error:
        raise UsageError(str(error)) from None
    return ["--config", json.dumps(dict(settings) | {"preset": name})]


def _preset_of(path: str) -> list[str]:
    """The settings of the preset that a configuration file starts from, where it names one."""
    yaml = require("yaml", "reading a configuration", package="PyYAML")
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []  # the parser says what is wrong with the file
    name = found.get("preset") if isinstance(found, dict) else None
    return [] if name is None else _settings_of(str(name))


def _sentence(message: str, wanted: dict[str, str]) -> str:
    """The parser's complaint in a user's words: the flag, what was wanted, what came."""
    found = re.match(r'Parser key "(?P<key>[\w.]+)": (?P<reason>.*)', message)
    if found is None:
        return message
    flag = "--" + found["key"].replace("_", "-")
    value = re.search(r"(?:Got|Given) value: (?P<value>.*)$", found["reason"])
    if value is None or found["key"] not in wanted:
        return f"{flag}: {found['reason']}"
    return f"{flag} must be {wanted[found['key']]}, got {value['value']}"


def _plain(hint: Any) -> Any:
    """The type behind an optional one."""
    return next((e for e in typing.get_args(hint) if type(None) in typing.get_args(hint)), hint)


def _wanted(hint: Any) -> str:
    plain = _plain(hint)
    if typing.get_origin(plain) is typing.Literal:
        return f"one of {', '.join(typing.get_args(plain))}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(plain, "two numbers, as in '[-30, 20]'")


def _choices(hint: Any) -> str | None:
    if typing.get_origin(hint) is typing.Literal:
        return "{" + ",".join(typing.get_args(hint)) + "}"
    return None


def _metavar(hint: Any) -> str:
    names = {int: "N", float: "X", str: "TEXT", bool: "{true,false}", tuple: "[LO,HI]"}
    plain = _plain(hint)
    return names[typing.get_origin(plain) or plain]


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse's own formatter: it keeps the examples' lines and adds no internals to the help."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=100)
