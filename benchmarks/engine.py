"""Time of a training step: the native engine against stock Pyro and NumPyro, in one run.

    python benchmarks/engine.py --numpyro PATH/TO/python   # writes docs/benchmarks/engine.md
    python benchmarks/engine.py --smoke                    # a minute, prints only

Each rival is a process of its own, pinned to one and the same core and asked in turn for a number
of steps; a round asks all of them, and ratios are taken within rounds. Time is processor time of
the process, since other work on the machine stretches the clock; the ratio by the clock stands
beside it. All run in float32 on one thread with the total gradient, Adam and as many particles.

* ours: the training loop of ``NFVI(...).run()``, all that happens in it: noise, clipping, schedule,
  look-backs, the comparison with the eager step.
* Pyro: ``SVI.step`` with AutoIAFNormal or AutoNormalizingFlow of 16 planar layers, validation off,
  vectorised particles.
* NumPyro: ``lax.scan`` over blocks of 200 steps, jitted. ``--numpyro`` names a Python that has it:
  ``python -m venv VENV; VENV/bin/pip install numpyro "jax[cpu]"``. Planar is our port.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

import torch

from benchmarks._report import DOCS, ROOT, environment, in_words, table, write
from benchmarks.engine_rivals.data import MODELS

RIVALS = ROOT / "benchmarks" / "engine_rivals"
ROWS = [
    (name, flow, particles)
    for flow in ("iaf", "iaf with skip", "planar")
    for name in MODELS
    for particles in (1, 32)
]
#: Seconds that a rival is given in a round, about; rounds.
SECONDS, ROUNDS = 0.6, 5


def command(rival, numpyro, row):
    name, flow, particles = row
    if rival == "numpyro":
        flow = flow.split()[0]  # its nets have no skip
        return [numpyro, str(RIVALS / "numpyro_worker.py"), name, flow, str(particles)]
    return [sys.executable, str(RIVALS / "worker.py"), rival, name, flow, str(particles)]


def environ(**more):
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**os.environ, **threads, "PYTHONWARNINGS": "ignore", **more}


class Rival:
    """A process that takes steps when asked."""

    def __init__(self, rival, numpyro, row, core):
        self.process = subprocess.Popen(
            pinned(core, command(rival, numpyro, row)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environ(),
        )  # fmt: skip
        self.about = self.read()
        least = {"ours": 1000, "numpyro": 200, "pyro": 3}[rival]
        first = self.ask(least)
        self.count = max(least, int(SECONDS / max(first["wall"], 1e-7)))
        self.count = min(self.count, 50_000)

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a rival ended without an answer; run its command by hand")
        return json.loads(line)

    def ask(self, count=None):
        self.process.stdin.write(f"steps {count or self.count}\n")
        self.process.stdin.flush()
        return self.read()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def pinned(core, words):
    return ["taskset", "-c", str(core), *words]


def compare(row, numpyro, core, rounds):
    names = ["ours", "pyro", *(["numpyro"] if numpyro else [])]
    rivals = {}
    try:
        for name in names:
            rivals[name] = Rival(name, numpyro, row, core)
        taken = {name: [] for name in names}
        for _ in range(rounds):
            for name, rival in rivals.items():
                taken[name].append(rival.ask())
        about = {name: rival.about for name, rival in rivals.items()}
    finally:
        for rival in rivals.values():
            rival.end()
    return {"row": row, "rounds": taken, "about": about}


def first_thousand(row, numpyro, core):
    """Seconds from the call to the end of the first 1000 steps, in a new process each."""
    found = {}

    def once(rival, **more):
        run = subprocess.run(
            pinned(core, [*command(rival, numpyro, row), "first"]),
            capture_output=True, text=True, env=environ(**more), check=True,
        )  # fmt: skip
        return json.loads(run.stdout.splitlines()[-1])

    with tempfile.TemporaryDirectory() as folder:
        found["ours, cold"] = once("ours", XDG_CACHE_HOME=folder)
        found["ours, warm"] = once("ours", XDG_CACHE_HOME=folder)
    found["pyro"] = once("pyro")
    if numpyro:
        found["numpyro"] = once("numpyro")
    return {"row": row, "seconds": found}


def ratios(result, rival, clock="cpu"):
    rounds = result["rounds"]
    return sorted(b[clock] / a[clock] for a, b in zip(rounds["ours"], rounds[rival]))


def spread(values):
    quarter = values[len(values) // 4]
    return (
        f"**{statistics.median(values):.2f}** [{values[0]:.2f}, {values[-1]:.2f}], q1 {quarter:.2f}"
    )


def micro(result, rival):
    times = sorted(1e6 * x["cpu"] for x in result["rounds"][rival])
    return f"{statistics.median(times):.3g} [{times[0]:.3g}, {times[-1]:.3g}]"


def page(results, firsts, numpyro):
    header = ["Model", "Flow", "Particles", "Parameters, ours / NumPyro's", "Ours, µs", "Pyro, µs"]
    header += ["Pyro / ours"] + (
        ["NumPyro, µs", "NumPyro / ours", "by the clock"] if numpyro else []
    )
    lines = []
    for result in results:
        name, flow, particles = result["row"]
        numbers = result["rounds"]["ours"][0]["numbers"]
        theirs = result["rounds"]["numpyro"][0]["numbers"] if numpyro else "-"
        pyro = ratios(result, "pyro")
        line = [MODELS[name][1], flow, particles, f"{numbers} / {theirs}", micro(result, "ours")]
        line += [
            micro(result, "pyro"),
            f"{statistics.median(pyro):.0f} [{pyro[0]:.0f}, {pyro[-1]:.0f}]",
        ]
        if numpyro:
            line += [micro(result, "numpyro"), spread(ratios(result, "numpyro"))]
            line += [f"{statistics.median(ratios(result, 'numpyro', 'wall')):.2f}"]
        lines.append(line)
    first_lines = []
    for first in firsts:
        name, flow, particles = first["row"]
        seconds = first["seconds"]
        first_lines.append(
            [MODELS[name][1], flow, particles, *(f"{x['seconds']:.1f}" for x in seconds.values())]
        )
    rivals = ["ours, cold", "ours, warm", "Pyro", *(["NumPyro"] if numpyro else [])]
    about = results[0]["about"].get("numpyro", {})
    versions = (
        f"NumPyro {about['numpyro']}, JAX {about['jax']}." if about else "NumPyro was absent."
    )
    rounds = len(results[0]["rounds"]["ours"])
    return f"""
`python benchmarks/engine.py --numpyro PYTHON`: {in_words(environment())} {versions}

Microseconds of processor time per step, medians over {rounds} rounds with their range; ratios
within rounds: median, range, lower quartile (q1). All rivals were pinned to one core and asked in
turn; other work ran on the machine, and rows may be of different days, so compare within a row.
Float32, total gradient, Adam. IAF is
two layers with two hidden layers of twice the latents (as many as the latents at 501) and ReLU,
the same nets for all (`skip_connections=False`; ours has an outer affine map besides). "iaf with
skip" is ours with its default, a matrix past the hidden layers in each layer, against the rivals'
smaller nets: the fourth column says how much larger it is.

{table(header, lines)}

## Time to the first 1000 steps

Seconds by the clock in a new process, from the call of `run` (imports before it, those that PyTorch
makes on the way not) to the end of the first 1000 steps, one try each. Cold: nothing compiled
before. `precondition=False`, since the others fit no Gaussian first.

{table(["Model", "Flow", "Particles", *rivals], first_lines)}
"""


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--numpyro", default=None, help="a Python that has NumPyro")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--only",
        default="",
        help="measure again the rows whose name, as logistic-iaf-1, contains this",
    )
    parser.add_argument("--first", default="schools", help="models for the first steps")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.numpyro is None:
        print("NO NUMPYRO: no --numpyro PYTHON was given, its columns will be missing.")
    rows = [row for row in ROWS if given.only in "-".join(map(str, row))]
    rounds = 2 if given.smoke else given.rounds
    rows = rows[:2] if given.smoke else rows
    results, firsts = [], []
    if given.only and not given.smoke:
        held = json.loads((DOCS / "engine.json").read_text())
        results, firsts = held["steps"], held["first"]

    def keep():  # after each row: what was measured is not lost if the rest is cut short
        if not given.smoke:
            data = {"environment": environment(), "steps": results, "first": firsts}
            write("engine", "The engine", data, page(results, firsts, given.numpyro))

    for row in rows:
        result = compare(row, given.numpyro, given.core, rounds)
        place = next((k for k, old in enumerate(results) if tuple(old["row"]) == row), None)
        if place is None:
            results.append(result)
        else:
            results[place] = result
        against = statistics.median(ratios(result, "pyro"))
        text = f"ours {micro(result, 'ours')} us, Pyro / ours {against:.0f}"
        if given.numpyro:
            text += f", NumPyro / ours {spread(ratios(result, 'numpyro'))}"
        print(*row, text, flush=True)
        keep()
    for name in () if given.smoke or given.only else given.first.split(","):
        for flow in ("iaf", "planar"):
            firsts.append(first_thousand((name, flow, 32), given.numpyro, given.core))
            print(firsts[-1], flush=True)
            keep()


if __name__ == "__main__":
    main()
