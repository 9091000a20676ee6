"""First fit and steps by the code of several compilers.

    python benchmarks/compilers.py --compilers c++ ZIG   # writes docs/benchmarks/compilers.md
    python benchmarks/compilers.py --compilers c++ --smoke   # few steps, prints only

Non-centred eight schools in double precision, one thread, each fit in a process of its own. ZIG is
a script that calls ``python -m ziglang c++ "$@"``, where the wheel ``ziglang`` is installed. The
first fit finds empty caches, those of the compiler too; later ones take turns.
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

from benchmarks._report import environment, in_words, table, write

STEPS, ROUNDS = 3000, 3


def fit(steps):
    """One fit; prints its cost, and that of its compiled steps."""
    import time

    import torch

    from benchmarks.posteriordb import load
    from benchmarks.time_rivals.costs import Clock
    from pyro_nfvi import NFVI
    from pyro_nfvi._engine.native.runner import NativeRunner

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    spent, real = [0.0, 0], NativeRunner.run

    def run(self, eps, streams, rates):
        begin = time.process_time()
        found = real(self, eps, streams, rates)
        spent[0] += time.process_time() - begin
        spent[1] += len(eps)
        return found

    NativeRunner.run = run
    posterior = load("eight_schools-eight_schools_noncentered")
    options = {"max_steps": steps, "num_particles": 64, "seed": 0, "progress": False}
    clock = Clock()
    done = NFVI(posterior.model, "iaf*2", explore="off", **options).run(**posterior.data)
    step = spent[0] / spent[1] if spent[1] else None
    print(json.dumps({**clock.read(), "step": step, "reason": done.engine_reason}))


def asked(compiler, folder, steps):
    variables = {"CXX": compiler, "XDG_CACHE_HOME": folder, "ZIG_GLOBAL_CACHE_DIR": folder}
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--fit", str(steps)],
        capture_output=True, text=True, check=True, env={**os.environ, **threads, **variables},
    )  # fmt: skip
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--compilers", nargs="+", default=["c++"])
    parser.add_argument("--fit", type=int, help="one fit of so many steps, prints its cost")
    parser.add_argument("--smoke", action="store_true", help="few steps, prints only")
    given = parser.parse_args()
    if given.fit:
        fit(given.fit)
        return
    steps, rounds = (600, 1) if given.smoke else (STEPS, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        found = {name: [] for name in given.compilers}
        for _ in range(1 + rounds):
            for number, name in enumerate(given.compilers):
                own = Path(folder) / str(number)
                own.mkdir(exist_ok=True)
                found[name].append(asked(name, str(own), steps))
                print(name, found[name][-1], flush=True)
    lines = []
    for name, fits in found.items():
        later = [one["step"] for one in fits[1:] if one["step"]]
        micro = f"{1e6 * statistics.median(later):.1f}" if later else "none compiled"
        seconds = [f"{one['seconds']:.1f} / {one['cpu']:.1f}" for one in (fits[0], fits[-1])]
        lines.append([Path(name).name, *seconds, micro, fits[0]["reason"]])
    header = ["compiler", "first fit, s / CPU s", "last, s / CPU s", "step, µs", "first fit said"]
    body = f"""
`python benchmarks/compilers.py --compilers ...`: {in_words(environment())}

Non-centred eight schools, two IAF layers, 64 particles, float64, up to {steps:,} steps. The first
fit finds empty caches, those of the compiler too; {rounds} more follow in turn, of whose steps the
median is given, in processor time.

{table(header, lines)}
"""
    if given.smoke:
        print(body)
        return
    results = {"environment": environment(), "fits": {Path(n).name: f for n, f in found.items()}}
    print(write("compilers", "Compilers", results, body))


if __name__ == "__main__":
    main()
