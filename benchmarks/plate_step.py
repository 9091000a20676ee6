"""How long a step of a mini-batch takes: plate guides compiled and eager, and Pyro's AutoNormal.

    python benchmarks/plate_step.py           # writes docs/benchmarks/plate_step.md
    python benchmarks/plate_step.py --smoke   # one model, prints only

The models of ``benchmarks/plates.py``, 2,000 rows, mini-batches of 200, one particle, single
precision. Processor time, all ways in turn in one process; without compiling.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import environment, in_words, table, write
from benchmarks.plate_rivals.cases import CASES
from benchmarks.plate_rivals.models import ARGUMENTS, MODELS
from pyro_nfvi import AutoPlateFlow
from pyro_nfvi._engine.capture import capture
from pyro_nfvi._engine.native.runner import build_native
from pyro_nfvi._engine.program import OptimizerSpec
from pyro_nfvi._optim.rowwise_adam import RowwiseAdam
from pyro_nfvi._train.recipe import TRAINING
from pyro_nfvi._train.step import EagerRunner, EagerStep
from pyro_nfvi.infer._rows_log_joint import rows_log_joint
from pyro_nfvi.objectives._make_objective import make_objective

ROWS, BATCH, STEPS = 2_000, 200, 20
WAYS = ("Pyro AutoNormal", "plate guide, eager", "compiled", "normal rows, compiled")


def milliseconds(call, steps):
    """Processor time of a step, from calls that take so many."""
    begin = time.process_time()
    call()
    return (time.process_time() - begin) / steps * 1e3


def ours(model, data, eager, **options):
    """Return functions that take ``STEPS`` steps each: compiled, and eager if asked for."""
    guide = AutoPlateFlow(model, **options).setup(*data, batch=BATCH)
    guide.sparse_gradients = True
    log_joint = rows_log_joint(model, data, {"batch": BATCH}, guide)
    params, objective = list(guide.parameters()), make_objective("path")
    optimizer = RowwiseAdam(params, lr=1e-4, fused=True)
    step = EagerStep(guide, log_joint, objective, params, 0, optimizer)
    rows = log_joint.draw_subsample()
    eps = guide.density(rows).sample_base((STEPS, 1))
    program = capture(guide, log_joint, objective, params, 0, eps[0], rows)
    optimizer.zero_grad(set_to_none=True)
    spec = OptimizerSpec.of(optimizer, program.held, TRAINING.clip_norm)
    compiled = build_native(program, spec, eager=True)
    inputs = eps, log_joint.draw_subsamples(STEPS), torch.full((STEPS, 1), 1e-4).double()

    def run(runner):
        runner.push()
        return lambda: runner.run(*inputs)

    return run(compiled), run(EagerRunner(step)) if eager else None


def pyros(model, data):
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 1e-4}), Trace_ELBO())

    def run():
        for _ in range(STEPS):
            svi.step(*data, batch=BATCH)

    return run


def measured(name, rounds):
    """Measure the ways of one model, in turn; medians in milliseconds."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    made = CASES[name].make(ROWS, 0)
    data = tuple(torch.as_tensor(made[key]).float() for key in ARGUMENTS[name])
    with pyro.get_param_store().scope():
        normal = pyros(MODELS[name], data)
        compiled, eager = ours(MODELS[name], data, True)
        pyro.clear_param_store()
        plain, _ = ours(MODELS[name], data, False, local=None)
        pyro.clear_param_store()
        calls = dict(zip(WAYS, (normal, eager, compiled, plain), strict=True))
        for call in calls.values():
            call()
        taken = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, call in calls.items():
                count = 20 if "compiled" in way else 1
                times = lambda call=call, count=count: [call() for _ in range(count)]  # noqa: E731
                taken[way].append(milliseconds(times, STEPS * count))
    return {way: statistics.median(found) for way, found in taken.items()}


def page(results):
    """Write the page of results, and return its path."""
    rows = [
        [CASES[name].title, *(f"{found[way]:.3g}" for way in WAYS)]
        for name, found in results["ms"].items()
    ]
    body = f"""{in_words(results["env"])}

Processor time of a step in milliseconds, medians of {results["rounds"]} rounds: {ROWS:,} rows,
mini-batches of {BATCH}, one particle, single precision. *Eager* and *compiled* are steps of `NFVI`
with `AutoPlateFlow`, whose rows have flows (an `nsf*2|affine` each); with `local=None` they are
normal, as those of Pyro's `AutoNormal` are, whose step is `SVI.step`. Without compiling.

{table(["model", *WAYS], rows)}"""
    return write("plate_step", "Steps of latents in plates", results, body)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = ["normal"] if args.smoke else [name for name in MODELS if name != "funnel"]
    results = {"env": environment(), "rounds": args.rounds, "ms": {}}
    for name in names:
        results["ms"][name] = measured(name, 1 if args.smoke else args.rounds)
        print(name, results["ms"][name], flush=True)
    if args.smoke:
        return
    print(page(results))


if __name__ == "__main__":
    main()
