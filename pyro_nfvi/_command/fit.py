"""``pyro-nfvi fit``: a fit of a user's model, with report, files and pictures in one folder."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pyro_nfvi._command.options import option, words
from pyro_nfvi._command.statuses import STATUSES
from pyro_nfvi._files.atomic_files import whole_file
from pyro_nfvi._option_names import meant
from pyro_nfvi.errors import FileError, MissingPackageError, OptionError

#: What a fit writes, by name of the file.
FILES = ("report.txt", "fit.nfvi", "draws.nc", "marginals.png", "loss.png", "options.json")


@dataclass(frozen=True)
class FitOptions:
    """Options of ``pyro-nfvi fit``."""

    data: str = option("", "csv or npz file; its columns or arrays go to the model's parameters "
                       "of the same names", group="data")  # fmt: skip
    columns: str = option(
        "", "columns of a parameter that has others: x=age,weight or x=age,weight;y=outcome"
    )
    integers: str = option("", "columns of a csv file that are whole numbers: group,year")
    guide: str = option("auto", "guide: auto, gaussian, laplace, pathfinder, dadvi, or a flow such "
                        "as iaf*2", group="fit")  # fmt: skip
    objective: str = option("path", "objective: path, total, iw, dreg, renyi or tempered")
    num_particles: int = option(64, "draws in each step")
    max_steps: int = option(None, "most steps of training", type=int)
    max_seconds: float = option(None, "seconds for the whole fit", type=float)
    explore: str = option("starts", "search for other modes", choices=("starts", "off"))
    engine: str = option("auto", "what runs the steps", choices=("auto", "compiled", "eager"))
    seed: int = option(0, "seed: the same one, the same result")
    dtype: str = option("float32", "type of the numbers", choices=("float32", "float64"))
    out: str = option("", "folder for report, fit, ArviZ file and pictures; none: print the report",
                      group="files")  # fmt: skip
    draws: int = option(2000, "draws in the ArviZ file")
    pictures: bool = option(True, "draw marginals and the bound")
    overwrite: bool = option(False, "replace files of an earlier fit in the folder")
    quiet: bool = option(False, "print nothing but the verdict")


def import_model(place: str) -> Callable[..., Any]:
    """Import the model of ``module:name`` or ``file.py:name``.

    Raises:
        OptionError: It cannot be found, or is nothing to call.
    """
    where, _, name = place.rpartition(":")
    if not where or not name:
        raise OptionError(f"A model is named as module:name or file.py:name; got {place!r}.")
    try:
        module = _of_file(Path(where)) if where.endswith(".py") else _of_name(where)
    except ImportError as error:
        raise OptionError(
            f"The model's module {where!r} cannot be imported: {error}. Run the command where "
            "Python finds it, or name the file: path/to/file.py:model."
        ) from error
    except OptionError:
        raise
    except Exception as error:  # of the user's code
        raise OptionError(
            f"The model's module {where!r} fails on import: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, name):
        known = [one for one in vars(module) if not one.startswith("_")]
        raise OptionError(f"{where} has no {name!r}.{meant(name, known)}")
    found = getattr(module, name)
    if not callable(found):
        raise OptionError(f"{place} is a {type(found).__name__}, and no model to call.")
    return found


def _of_file(path: Path) -> Any:
    if not path.is_file():
        raise OptionError(f"There is no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # for classes that look for their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(path.stem)
        if before is not None:
            sys.modules[path.stem] = before
        raise
    return module


def _of_name(name: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as python -m does
    try:
        return import_module(name)
    finally:
        sys.path.remove(here)


def fit(place: str, options: FitOptions, say: Callable[[str], None]) -> int:
    """Fit a model to the data of a file.

    Args:
        place: The model, ``module:name``.
        options: Options.
        say: What lines of text are given to.

    Returns:
        The status of the verdict.
    """
    import torch

    from pyro_nfvi._command.data_files import arguments_of, read_data

    model = import_model(place)
    folder = Path(options.out) if options.out else None
    if folder is not None:
        check_folder(folder, overwrite=options.overwrite)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, options.dtype))
    try:
        data = read_data(Path(options.data), words(options.integers)) if options.data else {}
        arguments, unused = arguments_of(model, data, _columns(options.columns))
        if unused and not options.quiet:
            print(
                f"Not used: {', '.join(unused)} (the model has no such parameters).",
                file=sys.stderr,
            )
        made = _run(model, arguments, options)
        if folder is not None:
            write_fit(made, folder, options, say)
    finally:
        torch.set_default_dtype(before)
    say(f"verdict: {made.verdict}" if options.quiet else made.report)
    return STATUSES.of(str(made.verdict))


def _run(model: Callable[..., Any], arguments: dict[str, Any], options: FitOptions) -> Any:
    from pyro_nfvi.infer._nfvi import NFVI

    return NFVI(
        model,
        options.guide,
        options.objective,
        num_particles=options.num_particles,
        max_steps=options.max_steps,
        max_seconds=options.max_seconds,
        explore=options.explore,
        engine=options.engine,
        seed=options.seed,
        progress=not options.quiet and sys.stderr.isatty(),  # no bars in files
    ).run(**arguments)


def _columns(text: str) -> dict[str, list[str]]:
    found = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, wanted = part.partition("=")
        if not equals or not words(wanted):
            raise OptionError(f"--columns is x=age,weight;y=outcome; got {text!r}.")
        found[name.strip()] = list(words(wanted))
    return found


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds a fit, and make one that is not there.

    Raises:
        FileError: It holds files of a fit, or cannot be made.
    """
    held = [name for name in FILES if (folder / name).exists()]
    if held and not overwrite:
        raise FileError(
            f"{folder} holds {held[0]!r} of an earlier fit. Name another folder, or --overwrite."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"The folder {folder} cannot be made: {error.strerror}.") from error


def write_fit(made: Any, folder: Path, options: Any, say: Callable[[str], None]) -> None:
    """Write report, fit, ArviZ file and pictures, each whole or not at all.

    What an optional package is missing for is left out, with a line that says so.
    """
    if isinstance(options, FitOptions):
        text = json.dumps(dataclasses.asdict(options), indent=1) + "\n"
        write_text(folder / "options.json", text)
    write_text(folder / "report.txt", f"{made.report}\n\n{made.summary()}\n")
    made.save(folder / "fit.nfvi")
    _optional(say, "draws.nc", lambda: _arviz(made, folder / "draws.nc", options.draws))
    if options.pictures:
        _optional(say, "marginals.png", lambda: _picture(made, folder / "marginals.png"))
        if len(made.losses):
            _optional(say, "loss.png", lambda: _picture(made, folder / "loss.png", loss=True))
    if not options.quiet:
        say(f"Everything is in {folder}.")


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(text, "utf-8")


def _optional(say: Callable[[str], None], name: str, write: Callable[[], None]) -> None:
    try:
        write()
    except MissingPackageError as error:
        say(f"No {name}: {error}")


def _arviz(made: Any, path: Path, draws: int) -> None:
    from pyro_nfvi.arviz import save_netcdf

    save_netcdf(made.to_arviz(num_samples=draws), path)


def _picture(made: Any, path: Path, *, loss: bool = False) -> None:
    from pyro_nfvi.plots._style import pyplot

    figure = made.plot_loss() if loss else made.plot_marginals()
    try:
        with whole_file(path, "picture") as draft:
            figure.savefig(draft, format="png")
    finally:
        pyplot().close(figure)
