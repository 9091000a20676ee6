"""Where the processor time of a default fit goes, its code compiled before.

    python benchmarks/stages.py                # writes docs/benchmarks/stages.md
    python benchmarks/stages.py --smoke        # one posterior, prints only
    python benchmarks/stages.py --only NAME    # measure some again, those whose names contain NAME

The public posteriors of benchmarks/posteriordb, in double precision, one thread: a fit that
compiles, and then the same fit again, whose processor time is charged to the innermost of the
functions below that is running. No profiler runs.
"""

import argparse
import functools
import json
import statistics
import sys
import time
import warnings
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import DOCS, environment, in_words, table, write
from benchmarks.posteriordb import MODELS, load
from pyro_nfvi import NFVI
from pyro_nfvi._engine.native.density import NativeDensity
from pyro_nfvi._engine.native.runner import NativeRunner
from pyro_nfvi._train import engine_selection, loop
from pyro_nfvi.infer import _run_fit  # noqa: F401  loads the stages
from pyro_nfvi.infer._stages import examination, gaussian_start, mode_search_stage, scoring

#: What is charged, by its name in the table.
FUNCTIONS = {
    "early": [(gaussian_start, "gaussian_stage"), (mode_search_stage, "find_modes")],
    "engine": [(engine_selection, "choose")],
    "steps": [(NativeRunner, "run")],
    "training": [(loop.Loop, "run")],
    "checks": [(examination, "examine"), (scoring, "score_guide")],
    "density": [(NativeDensity, "__call__")],
}


class Ledger:
    """Processor seconds by what runs."""

    def __init__(self):
        self.seconds, self.stack, self.last = defaultdict(float), ["rest"], time.process_time()

    def settle(self):
        now = time.process_time()
        names = self.stack
        name = names[-1]
        if name == "density" and "early" in names:
            name = "early density"
        self.seconds[name] += now - self.last
        self.last = now

    def charged(self, name, function):
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            self.settle()
            self.stack.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.settle()
                self.stack.pop()

        return wrapped

    @contextmanager
    def watching(self):
        """Charge the functions, wherever they were imported to."""
        with ExitStack() as stack:
            for name, places in FUNCTIONS.items():
                for place, attribute in places:
                    real = getattr(place, attribute)
                    made = self.charged(name, real)
                    holders = [place]
                    if not isinstance(place, type):
                        mine = [m for n, m in sys.modules.items() if n.startswith("pyro_nfvi")]
                        holders = [m for m in mine if getattr(m, attribute, None) is real]
                    for holder in holders:
                        stack.enter_context(patch.object(holder, attribute, made))
            self.last = time.process_time()
            yield
            self.settle()


def measured(name):
    posterior = load(name)
    recipe = functools.partial(NFVI, posterior.model, seed=0, progress=False)
    recipe().run(**posterior.data)
    ledger = Ledger()
    with ledger.watching():
        recipe().run(**posterior.data)
    return {"name": name, "seconds": dict(ledger.seconds)}


COLUMNS = {
    "steps": "steps of training",
    "early density": "log joint in the early stages",
    "early": "Python of the early stages",
    "engine": "capture and code",
    "training": "Python of training",
    "density": "log joint elsewhere",
    "checks": "Python of checks",
    "rest": "rest",
}


def page(rows):
    totals = [sum(row["seconds"].values()) for row in rows]
    lines, shares = [], []
    for row, total in zip(rows, totals):
        found = row["seconds"]
        lines.append([row["name"], f"{total:.2f}", *(f"{found.get(k, 0):.2f}" for k in COLUMNS)])
        shares.append(found.get("early", 0) / total)
    header = ["Posterior", "all", *COLUMNS.values()]
    return f"""
`python benchmarks/stages.py`: {in_words(environment())}

Processor seconds of a default call whose code was compiled before, by what runs. The early
stages are the Gaussian from several starts and the search for modes; what of them is not the
compiled log joint is Python and PyTorch's own operations. Capture and code: the step of a flow is
captured and its C++ written, which finds it compiled. No child process is counted.

{table(header, lines)}

Python of the early stages is **{statistics.median(shares):.0%}** of a call by the median, at most
{max(shares):.0%}, and at most {max(r["seconds"].get("early", 0) for r in rows):.1f} s.
"""


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one posterior, prints only")
    parser.add_argument("--only", default=None, help="measure again those whose names contain this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    names = sorted(MODELS)
    held = {}
    path = DOCS / "stages.json"
    if given.only is not None and path.exists():
        held = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    names = names[:1] if given.smoke else [n for n in names if (given.only or "") in n]
    for name in names:
        held[name] = measured(name)
        print(name, {k: round(v, 2) for k, v in held[name]["seconds"].items()}, flush=True)
        rows = [held[n] for n in sorted(held)]
        if given.smoke:
            print(page(rows))
        else:
            results = {"environment": environment(), "rows": rows}
            write("stages", "Where the time of a fit goes", results, page(rows))


if __name__ == "__main__":
    main()
