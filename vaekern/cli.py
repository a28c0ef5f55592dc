"""The command line: `vaekern train`, `vaekern sample`, `vaekern evaluate`, `vaekern reproduce`,
`vaekern info`.

Needs torch and numpy only until a command asks for more; what is missing is then named with the
extra that brings it. Exit codes: 0 done, 1 the run failed, 2 wrong flags or data, 130 Ctrl-C,
143 SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if TYPE_CHECKING:
    from vaekern.training import TrainConfig

DESCRIPTION = (
    "Gaussian VAEs: train a two-stage model, sample from it, look into it, see what runs here."
)
SAMPLE_DESCRIPTION = "Draw samples from a trained run: a picture (PNG) and an array (.npy)."
SAMPLE_EXAMPLES = """examples:
  vaekern sample runs/digits-iso-i-mle      a picture and an array, beside the run
  vaekern sample runs/digits-iso-i-mle --n 1000 --from prior --out prior
  vaekern sample runs/digits-iso-i-mle --from gmm-10
"""
EVALUATE_DESCRIPTION = (
    "Compute every diagnostic that applies to a trained run. Prints a table, and writes it\n"
    "with all numbers (JSON) and pictures (PNG) into RUN/evaluation."
)
EVALUATE_EXAMPLES = """examples:
  vaekern evaluate runs/digits-iso-i-mle
  vaekern evaluate runs/digits-iso-i-mle --only active_units polarized_regime
  vaekern evaluate runs/digits-iso-i-mle --skip codes_tsne --samples 10000 --out big
"""


class _Failure(Exception):
    """One sentence for the user, and the exit code.

    What every process of a run comes upon alike, process 0 says.
    """

    def __init__(self, sentence: object, code: int = 2, *, alike: bool = False):
        super().__init__(" ".join(str(sentence).split()))
        self.code = code
        rank, size = _process()
        self.said = (alike and rank > 0) or type(sentence).__name__ == "SaidElsewhere"
        self.who = f"process {rank} of {size}: " if rank > 0 else ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Failure(f"{message}; see {self.prog} -h")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words:
            _parser().print_help()
            return 0
        # These have a parser of their own: it knows every setting, sampler, diagnostic, experiment.
        own = {"sample": _sample, "evaluate": _evaluate, "reproduce": _reproduce}
        if words[0] == "train":  # which torchrun ends by SIGTERM, and sees to it itself
            return _train(words[1:])
        if words[0] in own:
            from vaekern.training.interrupt import ended_by_sigterm

            with ended_by_sigterm():
                return own[words[0]](words[1:])
        arguments = _parser().parse_args(words)
        command: Callable[[argparse.Namespace], int] = arguments.command
        return command(arguments)
    except _Failure as failure:
        if not failure.said:
            print(f"vaekern: {failure.who}{failure}", file=sys.stderr)
        return failure.code
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vaekern", description=DESCRIPTION)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("train", help="train both stages; without flags, on handwritten digits")

    commands.add_parser("sample", help="draw samples from a trained run")
    commands.add_parser("evaluate", help="diagnostics of a trained run: table, numbers, pictures")
    commands.add_parser("reproduce", help="a table of the papers: every system over several seeds")

    info = commands.add_parser(
        "info",
        help="versions, and which backend runs and why",
        description="Print versions, and which backend runs on this machine and why.",
    )
    info.set_defaults(command=_info)
    return parser


def _train(words: list[str]) -> int:
    if "--preset=list" in words or ("--preset", "list") in itertools.pairwise(words):
        from vaekern.training.presets import describe_presets

        print(describe_presets())
        return 0
    try:
        from vaekern.training.flags import UsageError, parse

        config, resume = parse(words)
    except ModuleNotFoundError as error:
        raise _Failure(error, alike=True) from None
    except UsageError as error:
        raise _Failure(f"{error}; see vaekern train -h", alike=True) from None

    try:
        with _warnings_on_stderr():
            table, page = _trained(config, resume)
    except KeyboardInterrupt as stopped:
        _say(f"\nvaekern: {_interrupted(Path(config.run_directory))}", file=sys.stderr)
        return _signalled(stopped)
    path = config.run_directory
    _say(f"\n{table}\n")
    _say(f"Everything on one page: {page}")
    _say(f"Pictures and numbers are in {path}; more samples: vaekern sample {path}")
    return 0


def _trained(config: TrainConfig, resume: bool) -> tuple[str, Path]:
    """The table that ends a run, and the page that has everything."""
    from vaekern.training import RunError, TrainingRun

    try:
        run = TrainingRun(config, resume=resume)
    except (RunError, ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        raise _Failure(error) from None
    position = f", from {run.trainer.position}" if run.continued else ""
    _say(f"{run.summary()}{position}")
    try:
        return run(), run.directory.page
    except (RunError, ModuleNotFoundError) as error:
        raise _Failure(error, code=1) from None


@contextlib.contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """A warning is one line for the user, without the place in the code that gave it."""

    def show(message: Warning | str, *place: Any, **more: Any) -> None:
        _say(f"vaekern: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        # Python's own filters, whatever else has been set
        warnings.simplefilter("default")
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _interrupted(path: Path) -> str:
    if (path / "checkpoint.safetensors").is_file():
        return (
            f"interrupted; {path} holds a checkpoint: continue with the same command and --resume"
        )
    return "interrupted before there was anything to keep"


def _process() -> tuple[int, int]:
    """(rank, number of processes) as torchrun's variables have them."""
    try:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return (int(os.environ.get("RANK", "0")), size) if size > 1 else (0, 1)
    except ValueError:
        return 0, 1


def _say(text: str, *, file: TextIO | None = None) -> None:
    """Print where this is the one process, or the first of several."""
    if _process()[0] == 0:
        print(text, file=file, flush=True)


def _sample_parser() -> argparse.ArgumentParser:
    from vaekern.models import SAMPLERS

    width = max(map(len, SAMPLERS))
    names = "\n".join(f"  {name:<{width}}  {row.summary}" for name, row in SAMPLERS.items())
    parser = _Parser(
        prog="vaekern sample",
        description=SAMPLE_DESCRIPTION,
        epilog=f"sources of latents:\n{names}\n\n{SAMPLE_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="the directory that `vaekern train` wrote")
    parser.add_argument("--n", type=int, default=64, metavar="N", help="how many (default: 64)")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="NAME",
        help="where the latents come from (default: second-stage if trained, else prior)",
    )
    parser.add_argument(
        "--stage", type=int, choices=(1, 2), help="1: --from prior, 2: --from second-stage"
    )
    parser.add_argument(
        "--weights",
        choices=("last", "best"),
        default="last",
        help="the stage's last ones, or those after its best epoch in training (default: last)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    parser.add_argument(
        "--out", metavar="PATH", help="writes PATH.png and PATH.npy (default: RUN/samples-...)"
    )
    return parser


def _signalled(stopped: KeyboardInterrupt) -> int:
    """The exit code of a command that a signal has ended."""
    return 128 + int(getattr(stopped, "number", signal.SIGINT))


def _sample(words: list[str]) -> int:
    from vaekern.storage.errors import RunError
    from vaekern.training.sampling import save_samples

    try:
        with _warnings_on_stderr():
            written = save_samples(**vars(_sample_parser().parse_args(words)))
    except (RunError, ValueError, OSError, ModuleNotFoundError) as error:
        raise _Failure(error) from None
    except KeyboardInterrupt as stopped:
        print("\nvaekern: interrupted", file=sys.stderr)
        return _signalled(stopped)
    for path in written:
        print(path)
    return 0


def _evaluate_parser() -> argparse.ArgumentParser:
    from vaekern.training.evaluation import DIAGNOSTICS

    width = max(len(row.name) for row in DIAGNOSTICS)
    names = "\n".join(f"  {row.name:<{width}}  {row.summary}" for row in DIAGNOSTICS)
    parser = _Parser(
        prog="vaekern evaluate",
        description=EVALUATE_DESCRIPTION,
        epilog=f"diagnostics:\n{names}\n\n{EVALUATE_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="the directory that `vaekern train` wrote")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these diagnostics alone")
    parser.add_argument("--skip", nargs="+", metavar="NAME", default=(), help="all but these")
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="samples that each looks at (default: its own number, printed beside the values)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of noise (default: 0)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)"
    )
    parser.add_argument(
        "--inception",
        metavar="FILE",
        help="Inception's weights (.pth or .safetensors), for FID and KID "
        "(default: FD and KD in the features of a small classifier of the data)",
    )
    parser.add_argument(
        "--stretch",
        action="store_true",
        help="stretch each generated image to [0, 1] before them, as the code of Dai & Wipf does",
    )
    parser.add_argument(
        "--weights",
        choices=("last", "best"),
        default="last",
        help="the last ones, or stage 1's after its best epoch in training (default: last)",
    )
    parser.add_argument("--out", metavar="DIR", help="(default: RUN/evaluation, or -best)")
    return parser


def _evaluate(words: list[str]) -> int:
    from vaekern.storage.errors import RunError
    from vaekern.training.evaluation import evaluate

    try:
        arguments = _evaluate_parser().parse_args(words)
        found = evaluate(**vars(arguments))
    except (RunError, ValueError, OSError, ModuleNotFoundError) as error:
        raise _Failure(error) from None
    except KeyboardInterrupt as stopped:
        print("\nvaekern: interrupted; what was finished is kept", file=sys.stderr)
        return _signalled(stopped)
    print(found.table)
    if not any(outcome.status == "done" for outcome in found.outcomes.values()):
        raise _Failure("no diagnostic could be computed; the table says why", code=1)
    print(f"\nPictures and numbers are in {found.path}")
    return 0


def _reproduce(words: list[str]) -> int:
    from vaekern.experiments import describe_experiments, reproduce
    from vaekern.experiments.flags import make_parser, parse_settings
    from vaekern.storage.errors import RunError

    arguments = vars(make_parser(_Parser).parse_args(words))
    if arguments.pop("list") or arguments["name"] is None:
        print(describe_experiments())
        return 0
    try:
        arguments["settings"] = parse_settings(arguments.pop("set"))
        show = functools.partial(print, flush=True)
        found = reproduce(arguments.pop("name"), **arguments, show=show)
    except (RunError, ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        raise _Failure(error) from None
    except KeyboardInterrupt as stopped:
        print("\nvaekern: interrupted; the same command goes on from here", file=sys.stderr)
        return _signalled(stopped)
    print(f"\n{found.page}\nTable, numbers, figure and runs are in {found.path}")
    if not found.results.failed:
        return 0
    names = "; ".join(found.results.failed)
    raise _Failure(f"{len(found.results.failed)} runs failed: {names}; table.md says why", code=1)


def _info(arguments: argparse.Namespace) -> int:
    import platform

    import numpy
    import torch

    import vaekern

    print(
        f"vaekern {vaekern.__version__}  (Python {platform.python_version()}, {platform.system()})"
    )
    print(f"torch   {torch.__version__}")
    print(f"numpy   {numpy.__version__}")
    print()
    print(vaekern.backends.describe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
