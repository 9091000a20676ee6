"""Seconds that the compiler takes for steps of various sizes, and a line through them.

    python benchmarks/compile_time.py           # writes docs/benchmarks/compile_time.{md,json}
    python benchmarks/compile_time.py --smoke   # one small step, prints only

A fit with a time limit begins no compile that is expected to take longer than what is left. The
line that it expects by is the one that is found here.
"""

import argparse
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

import numpy as np
import torch

from benchmarks._report import environment, in_words, table, write
from benchmarks.engine_growth import make
from pyro_nfvi._engine.native import runner
from pyro_nfvi._engine.native.compiler import find_compiler

#: Flow and number of latents of each step.
STEPS = [
    ("planar*16", 10), ("iaf*2", 5), ("iaf*2", 30), ("iaf*2", 100), ("iaf*6", 30), ("nsf*2", 5),
    ("nsf*2|iaf*2", 20), ("realnvp*6", 50), ("realnvp*12", 50), ("nsf*6", 20),
]  # fmt: skip
REPEATS = 3


def source_of(flow, dim):
    """Source of the compiled step of a fit, and the functions that its object has to offer."""
    with patch.object(runner, "compile_text", wraps=runner.compile_text) as compiled:
        make(flow, dim, 8, 100, 0)(1)
    units = [call.args for call in compiled.call_args_list]
    return next((text, symbols) for text, symbols, *_ in units if "nfvi_step" in symbols)


def seconds(text, symbols):
    """CPU seconds of the compiler, and of trying out what it made."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    find_compiler().build(text, symbols)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def line(rows):
    """Least squares in relative errors: first seconds, and characters in each second."""
    sizes = np.array([row["characters"] for row in rows], float)
    took = np.array([statistics.median(row["seconds"]) for row in rows])
    design = np.stack([np.ones_like(sizes), sizes], 1) / took[:, None]
    (first, slope), *_ = np.linalg.lstsq(design, np.ones_like(took), rcond=None)
    return float(first), float(1 / slope), took / (first + slope * sizes)


def page(rows):
    first, speed, ratio = line(rows)
    lines = [
        [
            row["flow"].replace("|", "\\|"),
            row["dim"],
            f"{row['characters']:,}",
            f"**{statistics.median(row['seconds']):.2f}** "
            f"[{min(row['seconds']):.2f}, {max(row['seconds']):.2f}]",
            f"{one:.2f}",
        ]
        for row, one in zip(rows, ratio)
    ]
    header = ["Flow", "Latents", "Characters", "CPU s", "over the line"]
    return f"""
`python benchmarks/compile_time.py`: {in_words(environment())} The compiler is
{find_compiler().version}.

CPU seconds of the compiler for the steps of a logistic regression, flow and model in one unit, by
size of their source, what it made tried out; median and range of {REPEATS}. The loop over steps is
a unit of its own, which all models share, and not counted.

{table(header, lines)}

By least squares in relative errors, a compile takes **{first:.2f} s and one more for each
{speed:,.0f} characters**; the times are {ratio.min():.2f} to {ratio.max():.2f} times as long.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--smoke", action="store_true", help="one small step, prints only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    steps, repeats = (STEPS[:2], 1) if given.smoke else (STEPS, REPEATS)
    rows = []
    with tempfile.TemporaryDirectory() as folder, patch.dict("os.environ", XDG_CACHE_HOME=folder):
        for flow, dim in steps:
            text, symbols = source_of(flow, dim)
            took = [seconds(text, symbols) for _ in range(repeats)]
            rows.append({"flow": flow, "dim": dim, "characters": len(text), "seconds": took})
            print(flow, dim, len(text), took, flush=True)
        body = page(rows)
    if given.smoke:
        print(body)
        return
    results = {"environment": environment(), "rows": rows}
    print("Wrote", write("compile_time", "Seconds that a compile takes", results, body))


if __name__ == "__main__":
    main()
