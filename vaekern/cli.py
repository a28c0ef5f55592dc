"""The command line: `vaekern train`, `vaekern sample`, `vaekern info`.

Needs torch and numpy only until a command asks for more; what is missing is then named with the
extra that brings it. Exit codes: 0 done, 1 the run failed, 2 wrong flags or data, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

DESCRIPTION = "Gaussian VAEs: train a two-stage model, sample from it, see what runs here."
SAMPLE_EPILOG = """examples:
  vaekern sample runs/digits-iso-i-mle      a picture and an array, beside the run
  vaekern sample runs/digits-iso-i-mle --n 1000 --stage 1 --out prior
"""


class _Failure(Exception):
    """One sentence for the user, and the exit code."""

    def __init__(self, sentence: object, code: int = 2):
        super().__init__(" ".join(str(sentence).split()))
        self.code = code


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
        # `train` has its own parser, which knows every setting and is needed only here.
        if words[0] == "train":
            return _train(words[1:])
        arguments = _parser().parse_args(words)
        command: Callable[[argparse.Namespace], int] = arguments.command
        return command(arguments)
    except _Failure as failure:
        print(f"vaekern: {failure}", file=sys.stderr)
        return failure.code
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vaekern", description=DESCRIPTION)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("train", help="train both stages; without flags, on handwritten digits")

    sample = commands.add_parser(
        "sample",
        help="draw samples from a trained run",
        description="Draw samples from a trained run: a picture (PNG) and an array (.npy).",
        epilog=SAMPLE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sample.add_argument("run", metavar="RUN", help="the directory that `vaekern train` wrote")
    sample.add_argument("--n", type=int, default=64, metavar="N", help="how many (default: 64)")
    sample.add_argument(
        "--stage",
        type=int,
        choices=(1, 2),
        help="1: latents from the prior, 2: from the second stage (default: 2 if trained)",
    )
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    sample.add_argument(
        "--out",
        metavar="PATH",
        help="writes PATH.png and PATH.npy (default: RUN/samples-stageS-seedN)",
    )
    sample.set_defaults(command=_sample)

    info = commands.add_parser(
        "info",
        help="versions, and which backend runs and why",
        description="Print versions, and which backend runs on this machine and why.",
    )
    info.set_defaults(command=_info)
    return parser


def _train(words: list[str]) -> int:
    try:
        from vaekern.training.flags import UsageError, parse

        config, resume = parse(words)
    except ModuleNotFoundError as error:
        raise _Failure(error) from None
    except UsageError as error:
        raise _Failure(f"{error}; see vaekern train -h") from None

    from vaekern.training import RunError, TrainingRun

    path = config.run_directory
    try:
        try:
            run = TrainingRun(config, resume=resume)
        except (RunError, ValueError, TypeError, OSError, ModuleNotFoundError) as error:
            raise _Failure(error) from None
        position = f", from {run.trainer.position}" if run.continued else ""
        print(f"{run.summary()}{position}", flush=True)
        try:
            table = run()
        except (RunError, ModuleNotFoundError) as error:
            raise _Failure(error, code=1) from None
    except KeyboardInterrupt:
        _interrupted(Path(path))
        return 130
    print(f"\n{table}\n")
    print(f"Pictures and numbers are in {path}; more samples: vaekern sample {path}")
    return 0


def _interrupted(path: Path) -> None:
    saved = (path / "checkpoint.safetensors").is_file()
    text = (
        f"interrupted; {path} holds a checkpoint: continue with the same command and --resume"
        if saved
        else "interrupted before there was anything to keep"
    )
    print(f"\nvaekern: {text}", file=sys.stderr)


def _sample(arguments: argparse.Namespace) -> int:
    from vaekern.storage.errors import RunError
    from vaekern.training.sampling import save_samples

    try:
        written = save_samples(
            arguments.run,
            n=arguments.n,
            stage=arguments.stage,
            seed=arguments.seed,
            out=arguments.out,
        )
    except (RunError, ValueError, OSError, ModuleNotFoundError) as error:
        raise _Failure(error) from None
    except KeyboardInterrupt:
        print("\nvaekern: interrupted", file=sys.stderr)
        return 130
    for path in written:
        print(path)
    return 0


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
