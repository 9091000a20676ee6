"""Time of a training step with latent parameters of a distribution, one row for each.

    python benchmarks/special_functions.py --numpyro PATH/TO/python   # writes the page
    python benchmarks/special_functions.py --smoke                    # a minute, prints only

Two latents are parameters of 600 observations of one distribution; the guide is a diagonal
Gaussian, with 32 particles. Rivals are processes on one and the same core, asked in turn for blocks
of 200 steps: noise, gradient, Adam (ours clips besides). Ratios are taken within rounds, of
processor time. "Wide" is the engine with broadcasts left where ``torch.distributions`` has them,
so that special functions of the parameters are evaluated for every observation.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

import torch

from benchmarks._report import DOCS, environment, in_words, table, write
from benchmarks.engine import RIVALS, environ, micro, pinned, ratios, spread
from benchmarks.engine_rivals.special_models import MODELS, ROWS

PARTICLES, ROUNDS = 32, 5
#: Seconds that a rival is given in a round, about; steps are taken in blocks.
SECONDS, BLOCK = 0.2, 200


class Process:
    """A rival that builds steps of a distribution and takes them when asked."""

    def __init__(self, words, core):
        self.process = subprocess.Popen(
            pinned(core, words), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environ(),
        )  # fmt: skip
        self.about = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a rival ended without an answer; run its command by hand")
        return json.loads(line)

    def ask(self, text):
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()
        found = self.read()
        if "error" in found:
            raise RuntimeError(found["error"])
        return found

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def compare(name, rivals, rounds):
    """Steps of a distribution by each rival, in turn."""
    taken, counts = {kind: [] for kind in rivals}, {}
    for kind, process in rivals.items():
        process.ask(f"start {kind} {name}")
        first = process.ask(f"steps {BLOCK}")["cpu"]
        counts[kind] = max(1, round(SECONDS / first / BLOCK)) * BLOCK
    for _ in range(rounds):
        for kind, process in rivals.items():
            taken[kind].append(process.ask(f"steps {counts[kind]}"))
    return {"row": name, "rounds": taken}


def page(results, about):
    header = ["Distribution", "Ours, µs", "Wide, µs", "Wide / ours", "NumPyro, µs"]
    header.append("NumPyro / ours")
    lines, against = [], []
    for result in results:
        wide = ratios(result, "wide")
        line = [result["row"], micro(result, "ours"), micro(result, "wide")]
        line.append(f"{statistics.median(wide):.1f} [{wide[0]:.1f}, {wide[-1]:.1f}]")
        if "numpyro" in result["rounds"]:
            theirs = ratios(result, "numpyro")
            against.append(statistics.median(theirs))
            line += [micro(result, "numpyro"), spread(theirs)]
        else:
            line += ["-", "-"]
        lines.append(line)
    said = ""
    if against:
        said = (
            f" NumPyro {about['numpyro']}, JAX {about['jax']}. A step is faster than NumPyro's in "
            f"{sum(x > 1 for x in against)} of {len(against)} rows, by a factor of "
            f"{statistics.median(against):.1f} in the median, from {min(against):.1f} to "
            f"{max(against):.1f}."
        )
    return f"""
`python benchmarks/special_functions.py --numpyro PYTHON`: {in_words(environment())}{said}

Microseconds of processor time per training step, medians over rounds with their range; ratios
within rounds: median, range, lower quartile (q1). {ROWS} observations of the distribution, whose
parameters depend on two latents; {PARTICLES} particles, a diagonal Gaussian, float32, Adam. All
rivals were pinned to one core and asked in turn; other work ran on the machine, so compare within
a row. "Wide" is the same engine with broadcasts where `torch.distributions` has them.

{table(header, lines)}
"""


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--numpyro", default=None, help="a Python that has NumPyro")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", default="", help="distributions to measure again, with commas")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.numpyro is None:
        print("NO NUMPYRO: no --numpyro PYTHON was given, its columns will be missing.")
    names = given.only.split(",") if given.only else list(MODELS)
    names, rounds = (names[:1], 2) if given.smoke else (names, given.rounds)
    held, about = {}, {}
    if given.only and not given.smoke:
        old = json.loads((DOCS / "special_functions.json").read_text())
        held, about = {result["row"]: result for result in old["steps"]}, old["about"]
    worker = [sys.executable, str(RIVALS / "special_worker.py"), str(PARTICLES)]
    commands = {"ours": worker, "wide": worker}
    if given.numpyro:
        commands["numpyro"] = [given.numpyro, str(RIVALS / "special_numpyro.py"), str(PARTICLES)]
    rivals = {kind: Process(words, given.core) for kind, words in commands.items()}
    if given.numpyro:
        about = rivals["numpyro"].about
    try:
        for name in names:
            try:
                held[name] = compare(name, rivals, rounds)
            except RuntimeError as error:
                print(name, error, flush=True)
                continue
            text = f"ours {micro(held[name], 'ours')} us, wide {micro(held[name], 'wide')}"
            if given.numpyro:
                text += f", NumPyro / ours {spread(ratios(held[name], 'numpyro'))}"
            print(name, text, flush=True)
            if not given.smoke:  # after each row: what was measured is not lost
                steps = [held[one] for one in MODELS if one in held]
                data = {"environment": environment(), "about": about, "steps": steps}
                title = "Distributions with latent parameters"
                write("special_functions", title, data, page(steps, about))
    finally:
        for process in rivals.values():
            process.end()


if __name__ == "__main__":
    main()
