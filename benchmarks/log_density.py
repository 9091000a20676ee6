"""How long the log joint with its gradient takes, compiled and by the model in Python.

    python benchmarks/log_density.py           # writes docs/benchmarks/log_density.md
    python benchmarks/log_density.py --smoke   # two posteriors, prints only

The public posteriors of benchmarks/posteriordb, in double precision. Processor time of one call
with N rows, both ways in turn in one process; a compile counts its child processes.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pyro
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import environment, in_words, table, write
from benchmarks.posteriordb import MODELS, load
from pyro_nfvi import AutoFlow
from pyro_nfvi._engine.compiled_density import CompiledDensity
from pyro_nfvi._engine.native.compiler import find_compiler
from pyro_nfvi._pyro_model.log_joint import LogJoint

#: Rows of a call: a step of L-BFGS, a step of a Gaussian from several starts, a set of draws.
ROWS = (1, 64, 512)
#: Draws whose log likelihoods are evaluated, all observations apart, as LOO needs them.
DRAWS = 4000
#: Processor seconds that one measurement takes at least.
LEAST = 0.05


def seconds_of(call, least):
    """Processor seconds of a call, from as many as ``least`` seconds hold."""
    call()
    begin, count = time.process_time(), 0
    while time.process_time() - begin < least or not count:
        call()
        count += 1
    return (time.process_time() - begin) / count


def processor():
    """Processor seconds of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(name, rounds, least):
    """Measure one posterior."""
    posterior = load(name)
    with pyro.get_param_store().scope():
        guide = AutoFlow(posterior.model, "affine")
        guide.setup(**posterior.data)
        log_joint = LogJoint(posterior.model, (), posterior.data, guide.latent)
        begin = processor()
        compiled = CompiledDensity(log_joint)
        first = processor() - begin
        begin = processor()
        CompiledDensity(log_joint)
        again = processor() - begin
        calls = {}
        for rows in ROWS:
            noise = torch.randn(rows, log_joint.latent.dim, generator=torch.Generator())
            z = log_joint.latent.init_loc + 0.1 * noise
            ways = {
                "python": lambda z=z: log_joint.value_and_grad(z, {}),
                "compiled": lambda z=z: compiled.value_and_grad(z, {}),
            }
            found = {way: [] for way in ways}
            for _ in range(rounds):
                for way, call in ways.items():
                    found[way].append(seconds_of(call, least))
            calls[rows] = found
        z = log_joint.latent.init_loc + 0.1 * torch.randn(DRAWS, log_joint.latent.dim)
        log_joint.evaluate(z[:64], log_likelihood=True, deterministic=False)  # chooses how
        apart = min(
            seconds_of(
                lambda: log_joint.evaluate(z, log_likelihood=True, deterministic=False), least
            )
            for _ in range(rounds)
        )
    return {
        "name": name,
        "apart": apart,
        "dim": log_joint.latent.dim,
        "first": first,
        "again": again,
        "calls": calls,
    }


def shown(one):
    """One line of the table."""
    line = [one["name"].split("-")[-1], one["dim"]]
    for found in one["calls"].values():
        python, own = (statistics.median(found[way]) for way in ("python", "compiled"))
        line += [f"{1e6 * python:.0f}", f"{1e6 * own:.0f}", f"{python / own:.0f}"]
    return [*line, f"{one['first']:.1f}", f"{one['again']:.2f}", f"{one['apart']:.2f}"]


def worth(results):
    """Say how often a compile takes less than the evaluation that it would save."""
    less = sum(one["first"] < one["apart"] for one in results)
    return f"less than that on {less} of {len(results)}"


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="two posteriors, prints only")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    names = list(MODELS)[:2] if options.smoke else list(MODELS)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # nothing is found there
        find_compiler()  # is tried out once for each machine, which belongs to no model
        for name in names:
            results.append(
                measured(
                    name,
                    1 if options.smoke else options.rounds,
                    0.01 if options.smoke else LEAST,
                )
            )
            print(*shown(results[-1]), flush=True)
    if options.smoke:
        return
    env = environment()
    header = ["posterior", "D"]
    for rows in ROWS:
        header += [f"Python, µs, {rows} row{'s' * (rows > 1)}", "compiled, µs", "ratio"]
    header += ["made, s", "found, s", "log likelihoods, s"]
    body = f"""
Processor time of one evaluation of the log joint with its gradient, by the model in Python and
compiled, medians of {options.rounds} rounds in turn. The next columns are the processor time of
capture, compile and comparison with the model where nothing was compiled before, child processes
included, and where the object was found in the cache. The last is that of the log likelihoods of
all observations apart at {DRAWS:,} draws, by the model in Python: they are evaluated once, by few
runs of it, and a compile would take {worth(results)}.

{table(header, [shown(one) for one in results])}

{in_words(env)} Written by `python benchmarks/log_density.py`.
"""
    page = {"environment": env, "rows": results}
    print(write("log_density", "The log joint, compiled and in Python", page, body))


if __name__ == "__main__":
    main()
