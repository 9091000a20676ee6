"""``pyro-nfvi``: fits, reports, flow VAEs, versions and the cache from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyro_nfvi._command.demo import DemoOptions, demo
from pyro_nfvi._command.fit import FitOptions, fit
from pyro_nfvi._command.options import HintingParser, add_options, read_options
from pyro_nfvi._command.statuses import STATUSES
from pyro_nfvi._command.vae import (
    EncodeOptions,
    EvaluateOptions,
    GenerateOptions,
    compare,
    encode,
    evaluate,
    generate,
    train,
)
from pyro_nfvi._version import __version__
from pyro_nfvi.errors import NFVIError, OptionError

_STATUSES = f"""status of the shell:
  {STATUSES.good}    done; of a fit or report, the verdict is "good"
  {STATUSES.failed}    a model, data or a file that cannot be used
  {STATUSES.usage}    an option or command that cannot be used
  {STATUSES.reweight}    the verdict is "usable with reweighting"
  {STATUSES.distrust}    the verdict is "do not trust"
  {STATUSES.interrupted}  ended by Ctrl-C"""


def _parser() -> argparse.ArgumentParser:
    parser = HintingParser(
        prog="pyro-nfvi",
        description="Normalizing-flow variational inference for Pyro.",
        epilog=_STATUSES,
    )
    parser.add_argument("--version", action="version", version=f"pyro-nfvi {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(into: Any, name: str, text: str, kind: type[Any] | None = None) -> Any:
        made = into.add_parser(name, help=text, description=text, epilog=_STATUSES)
        if kind is not None:
            add_options(made, kind)
        return made

    command(commands, "demo", "fit the eight schools, as a first look", DemoOptions)
    made = command(commands, "fit", "fit a model of your own to the data of a file", FitOptions)
    made.add_argument("model", help="module:name or file.py:name of the model")
    made = command(commands, "report", "print the report of a saved fit")
    made.add_argument("file", help="what fit.save or 'pyro-nfvi fit' wrote, or its folder")
    made.add_argument("--summary", action="store_true", help="add mean, sd and quantiles")
    command(commands, "versions", "print what a report of a problem needs")
    made = command(commands, "cache", "look at the folder of compiled steps, or empty it")
    made.add_argument("what", choices=("show", "size", "clear"), help="what to do")
    vaes = command(commands, "vae", "train and use flow VAEs").add_subparsers(
        dest="task", metavar="TASK", required=True
    )
    vaes.add_parser("train", help="train one: all options of python -m pyro_nfvi.vae.train",
                    add_help=False)  # fmt: skip
    for name, text, kind in (
        ("evaluate", "measure the VAE of a run on images", EvaluateOptions),
        ("encode", "write the latents of images", EncodeOptions),
        ("generate", "draw images", GenerateOptions),
    ):
        command(vaes, name, text, kind).add_argument("run", help="folder of the run")
    made = command(vaes, "compare", "print the results of runs side by side")
    made.add_argument("runs", nargs="+", help="folders of runs")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words of it; those of the process if None.

    Returns:
        The status for the shell.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:2] == ["vae", "train"]:  # which has a parser of its own
            return train(words[2:])
        given = vars(_parser().parse_args(words))
        return _dispatch(given, _say)
    except SystemExit as end:  # of argparse: help, or an option that is none
        return end.code if isinstance(end.code, int) else STATUSES.usage
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return STATUSES.usage
    except NFVIError as error:
        print(f"error: {error}", file=sys.stderr)
        return STATUSES.failed
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return STATUSES.interrupted


def _say(text: str) -> None:
    print(text, flush=True)


def _dispatch(given: dict[str, Any], say: Callable[[str], None]) -> int:
    name = given.pop("command")
    if name == "vae":
        return _vae(given, say)
    if name == "demo":
        return demo(read_options(DemoOptions, given), say)
    if name == "fit":
        place = given.pop("model")
        return fit(place, read_options(FitOptions, given), say)
    if name == "report":
        return _report(Path(given["file"]), say, summary=given["summary"])
    if name == "versions":
        from pyro_nfvi._show_versions import show_versions

        show_versions()
        return STATUSES.good
    return _cache(given["what"], say)


def _vae(given: dict[str, Any], say: Callable[[str], None]) -> int:
    task = given.pop("task")
    if task == "compare":
        return compare(given["runs"], say)
    run = given.pop("run")
    if task == "evaluate":
        return evaluate(run, read_options(EvaluateOptions, given), say)
    if task == "encode":
        return encode(run, read_options(EncodeOptions, given), say)
    return generate(run, read_options(GenerateOptions, given), say)


def _report(path: Path, say: Callable[[str], None], *, summary: bool) -> int:
    from pyro_nfvi.infer._loading import load

    made = load(path / "fit.nfvi" if path.is_dir() else path)
    say(made.report)
    if summary:
        say(str(made.summary()))
    return STATUSES.of(str(made.verdict))


def _cache(what: str, say: Callable[[str], None]) -> int:
    from pyro_nfvi._engine.cache import Cache

    cache = Cache()
    if what == "clear":
        say(f"Removed {cache.clear()} compiled steps from {cache.folder}.")
        return STATUSES.good
    count, size = cache.usage()
    if what == "size":
        say(str(size))
    else:
        say(
            f"{cache.folder}: {count} compiled steps, {size / 1e6:.1f} MB of {cache.most / 1e6:.0f}"
        )
    return STATUSES.good
