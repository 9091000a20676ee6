"""Many runs, one table: ``python -m benchmarks.vae.sweep --flows none,planar*4 --seeds 0,1,2``.

Takes all options of pyro_nfvi.vae.train. Each flow and seed is a run in a folder of its own; runs
that are done are not repeated, one that was cut off goes on. Writes table.md, table.csv, sweep.png
and, where flows differ in their number of layers (``--flows none,planar*2,planar*8``), curve.png.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.vae.sweep.pairs import differences
from benchmarks.vae.sweep.papers import Published, in_columns, published_for
from benchmarks.vae.sweep.plots import draw_curve, draw_points
from pyro_nfvi._files.fit_files import read_file
from pyro_nfvi.errors import FileError, NFVIError, OptionError
from pyro_nfvi.flows._registry import make_flow
from pyro_nfvi.plots._style import pyplot
from pyro_nfvi.vae._datasets import ImageData
from pyro_nfvi.vae._nll_summary import NLLSummary, doubt_of
from pyro_nfvi.vae._pictures import save_figure
from pyro_nfvi.vae.train._command import data_of, describe_data, train
from pyro_nfvi.vae.train._options import Options, option_parser, read_arguments
from pyro_nfvi.vae.train._run_folder import RunFolder

#: Options that say nothing of a run's results.
_FREE = frozenset(
    {"out", "resume", "overwrite", "quiet", "pictures", "device", "threads", "save_steps"}
)


@dataclass(frozen=True)
class Row:
    """The runs of one flow.

    Attributes:
        flow: Its formula.
        seeds: Seeds of the runs.
        results: What each run's ``results.json`` holds.
        parameters: Number of parameters.
    """

    flow: str
    seeds: tuple[int, ...]
    results: tuple[dict[str, Any], ...]
    parameters: int

    @property
    def summaries(self) -> list[NLLSummary]:
        """The NLL of each run with what its weights say; empty where there is none."""
        found = map(NLLSummary.from_record, self.results)
        return [one for one in found if one is not None]

    def mean_sd(self, key: str, sign: float = 1.0) -> tuple[float, float]:
        """Mean over seeds and standard deviation between them (NaN for one seed).

        Both are NaN where a run does not hold the number; runs of earlier versions have fewer.
        """
        values = [sign * result.get(key, math.nan) for result in self.results]
        mean = sum(values) / len(values)
        if len(values) < 2:
            return mean, math.nan
        return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _slug(flow: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in flow)


def place_of(out: str, flow: str, seed: int) -> Path:
    """Folder of the run of a flow and seed within a sweep's."""
    return Path(out) / f"{_slug(flow)}-seed{seed}"


def sweep(
    options: Options, flows: Sequence[str], seeds: Sequence[int], *, say: Any = print
) -> list[Row]:
    """Train every flow with every seed; return their numbers.

    Args:
        options: Options of each run, but flow, seed and folder.
        flows: Formulas; options of a flow follow a colon: ``"sylvester*4:rank=8"``.
        seeds: Seeds.
        say: What lines of text are given to.

    Raises:
        OptionError: A flow or seed that cannot be used, or one that is named twice.
    """
    _check_distinct("--seeds", seeds)
    _check_distinct("--flows", flows)
    rows = []
    # A flow that cannot be built is reported before the others have trained.
    every = [_with_flow(options, flow) for flow in flows]
    for flow, chosen in zip(flows, every, strict=True):
        results, size = [], 0
        for seed in seeds:
            place = place_of(options.out, flow, seed)
            done = place / "results.json"
            one = replace(
                chosen, seed=seed, out=str(place), resume=not options.overwrite,
                overwrite=options.overwrite,
            )  # fmt: skip
            if options.overwrite or not _is_done(one, place):
                say(f"== {flow}, seed {seed}")
                run = train(one, say=say)
                if run.progress.done == "interrupted":
                    raise KeyboardInterrupt
            results.append(json.loads(done.read_text("utf-8")))
            size = size or _size(place)
        rows.append(Row(flow, tuple(seeds), tuple(results), size))
    return rows


def _check_distinct(name: str, values: Sequence[object]) -> None:
    """Refuse a run that is named twice: there would be no spread between it and itself."""
    twice = next((value for value in values if list(values).count(value) > 1), None)
    if twice is not None:
        raise OptionError(f"{name} names {twice} twice, which is one run. Name each once.")


def _size(place: Path) -> int:
    from pyro_nfvi.vae.train._run_folder import load

    return sum(p.numel() for p in load(place).parameters())


def _with_flow(options: Options, flow: str) -> Options:
    """Read ``formula:name=value,...``."""
    formula, _, text = flow.partition(":")
    names = {"hidden_dim": "flow_hidden", "gate": "gate", "rank": "rank", "kind": "kind"}
    changes: dict[str, Any] = {"flow": formula}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in names:
            raise OptionError(f"{flow!r}: a flow takes {', '.join(names)} here; got {name!r}.")
        try:
            changes[names[name]] = value if name in ("gate", "kind") else int(value)
        except ValueError as error:
            raise OptionError(f"{flow!r}: {name} is a whole number; got {value!r}.") from error
    chosen = replace(options, **changes)
    if formula != "none":
        make_flow(formula, options.latent_dim, 1, **chosen.flow_options)
    return chosen


def _is_done(options: Options, place: Path) -> bool:
    """Tell whether a folder holds the results of a run with these options, on these data.

    Where something differs, training says what (``--resume`` of another run), or goes on.
    """
    try:
        held = json.loads((place / "config.json").read_text("utf-8"))
        spec, _ = read_file(place / "best.pt", "VAE")
    except (OSError, ValueError, FileError):
        return False
    if not (place / "results.json").exists():
        return False
    ours = {name: value for name, value in asdict(options).items() if name not in _FREE}
    theirs = {name: value for name, value in held.items() if name not in _FREE}
    return ours == theirs and spec.get("data") == describe_data(data_of(options))


def table(rows: Sequence[Row], published: Sequence[Published] = ()) -> list[dict[str, str]]:
    """Return lines with the same columns for ours and the papers'; numbers name their quantity."""
    lines = []
    for row in rows:
        elbo, elbo_sd = row.mean_sd("elbo", -1.0)
        first = row.results[0]
        line = {
            "model": row.flow,
            "-ELBO": _pair(elbo, elbo_sd),
            "NLL": "",
            "-ELBO of its images": "",
            "NLL weights": "",
            "-ELBO bits/dim": "",
            "quantity": "-ELBO",
            "KL": f"{row.mean_sd('kl')[0]:.2f}",
            "active": f"{row.mean_sd('active')[0]:.0f}/{first['latent_dim']}",
            "parameters": f"{row.parameters:,}",
            "seeds": ",".join(map(str, row.seeds)),
            "source": "this run",
        }
        told = row.summaries
        if told and len(told) == len(row.results):
            line["NLL"] = _pair(*row.mean_sd("nll"))
            line["NLL weights"] = doubt_of(told)
            # Beside the NLL of some images: that of all may lie below it.
            line["-ELBO of its images"] = _pair(*row.mean_sd("nll_negative_elbo"))
            line["quantity"] += f", {first['images']} images; {told[0].label}, {told[0].which}"
        if "elbo_bits" in first:  # runs of earlier versions have none
            line["-ELBO bits/dim"] = _pair(*row.mean_sd("elbo_bits"))
        lines.append(line)
    for one in published:
        lines.append({
            "model": one.model, **_columns_of(one),
            "quantity": one.quantity, "KL": "", "active": "", "parameters": "", "seeds": "",
            "source": f"{one.source}: {one.data}, {one.settings}",
        })  # fmt: skip
    return lines


def _columns_of(one: Published) -> dict[str, str]:
    """Columns of numbers in the order of ours; papers say nothing of their weights."""
    found = in_columns(one)
    weights = "not given" if found["NLL"] else ""
    return {
        "-ELBO": found["-ELBO"], "NLL": found["NLL"], "-ELBO of its images": "",
        "NLL weights": weights,
        "-ELBO bits/dim": found["-ELBO bits/dim"],
    }  # fmt: skip


def _pair(value: float, spread: float) -> str:
    if math.isnan(value):
        return "not kept"
    return f"{value:.2f}" if math.isnan(spread) else f"{value:.2f} ± {spread:.2f}"


def _markdown(lines: Sequence[dict[str, str]]) -> str:
    keys = list(lines[0])
    body = [keys, ["---"] * len(keys), *([line[key] for key in keys] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in body) + "\n"


def write_tables(
    folder: RunFolder, rows: Sequence[Row], published: Sequence[Published] = ()
) -> None:
    """Write ``table.md``, ``table.csv`` and, where matplotlib is there, the pictures.

    ``sweep.png`` has a point for each flow; ``curve.png``, where some flow comes with several
    numbers of layers, has -ELBO and NLL against them.
    """
    lines = table(rows, published)
    pairs = differences(rows, lambda flow, seed: place_of(str(folder.path), flow, seed))
    told = "".join(f"- {pair.sentence()}\n" for pair in pairs)
    note = (
        "Nats per image, but for -ELBO bits/dim. -ELBO and NLL(S) are different quantities: "
        "compare like with like. "
        "± is the standard deviation between seeds (for papers, what they give). An NLL whose "
        "weights are not reliable is likely too large, by an unknown amount.\n"
    )
    folder.write("table.md", f"{_markdown(lines)}\n{note}" + (f"\n{told}" if told else ""))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    folder.write("table.csv", text.getvalue())
    try:
        pyplot()
    except NFVIError:
        return
    for name, figure in (("sweep.png", draw_points(rows)), ("curve.png", draw_curve(rows))):
        if figure is not None:
            save_figure(figure, folder.path / name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the status for the shell."""
    parser = option_parser("python -m benchmarks.vae.sweep", __doc__ or "", ("flow", "seed"))
    parser.add_argument("--flows", default="none,planar*4,iaf*2", help="formulas of the flows")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the runs of each flow")
    try:
        given = read_arguments(parser, arguments)
        flows, seeds = _split(given.pop("flows")), _seeds(given.pop("seeds"))
        given = {name: value for name, value in given.items() if name not in ("flow", "seed")}
        options = Options(**given)
        rows = sweep(options, flows, seeds)
        folder = RunFolder(options.out)
        first = place_of(options.out, rows[0].flow, seeds[0])
        write_tables(folder, rows, _published(first, data_of(options)))
    except NFVIError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 143
    print((folder.path / "table.md").read_text("utf-8"))
    print(f"Everything is in {folder.path}.")
    return 0


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise OptionError(f"--seeds is a list such as 0,1,2; got {text!r}.") from error


def _split(text: str) -> list[str]:
    """Divide at commas, but not at those between a flow's options."""
    found: list[str] = []
    for part in text.split(","):
        if "=" in part and ":" not in part and found:
            found[-1] += f",{part}"
        else:
            found.append(part.strip())
    return found


def _published(place: Path, data: ImageData) -> tuple[Published, ...]:
    spec, _ = read_file(place / "best.pt", "VAE")
    shape = tuple(spec["architecture"]["shape"])
    likelihood = spec["architecture"]["likelihood"]["name"]
    return published_for(shape, spec["preparation"]["kind"], likelihood, data)
