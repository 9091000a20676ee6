"""A rival in PyTorch as a process: ``worker.py pyro|ours MODEL FLOW PARTICLES``.

Prints a line of JSON when it is ready, then for each line ``steps N`` read one with seconds of
wall clock and of processor time per step. ``first`` as a fifth argument instead times the first
1000 steps from the call on, and ends.
"""

import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import functools

import pyro
import torch
from pyro.distributions.transforms import iterated, planar
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoNormalizingFlow

from benchmarks.engine_rivals.data import hidden
from benchmarks.engine_rivals.pyro_models import load
from pyro_nfvi import NFVI, AutoFlow
from pyro_nfvi._train import loop

torch.set_num_threads(1)
RATE = 1e-3


class Pyro:
    """Stock Pyro: ``SVI.step`` in a loop, validation off."""

    def __init__(self, name, flow, particles):
        pyro.enable_validation(False)
        self.model, self.args = load(name)
        if flow != "planar":
            width = hidden(name)
            guide = AutoIAFNormal(self.model, hidden_dim=[width, width], num_transforms=2)
        else:
            guide = AutoNormalizingFlow(self.model, functools.partial(iterated, 16, planar))
        self.guide = guide
        elbo = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1,
                          max_plate_nesting=1)  # fmt: skip
        self.svi = SVI(self.model, guide, pyro.optim.Adam({"lr": RATE}), elbo)

    def steps(self, count):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            loss = self.svi.step(*self.args)
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        return *seconds, loss, sum(p.numel() for p in self.guide.parameters())


def on(backend, recipe):
    """Let a recipe run on one back end by its name, which users do not choose."""
    recipe.engine = backend
    return recipe


class Ours:
    """``NFVI(...).run()`` with the native engine; its training loop is what is timed."""

    def __init__(self, name, flow, particles, engine="native"):
        self.model, self.args = load(name)
        width = hidden(name)
        options, formula = {}, "planar*16"
        if flow != "planar":
            options = {"hidden_dim": (width, width), "activation": "relu"}
            options["skip_connections"] = flow == "iaf with skip"
            formula = "iaf*2"
        self.make = lambda count: on(
            engine,
            NFVI(
                self.model,
                lambda model: AutoFlow(model, formula, **options),
                "total",
                optim=RATE,
                num_particles=particles,
                max_steps=count,
                stop=False,
                seed=0,
                progress=False,
                precondition=False,
            ),
        )

    def steps(self, count):
        taken = {}
        run = loop.Loop.run

        def timed(self):
            wall, cpu = time.perf_counter(), time.process_time()
            found = run(self)
            taken["time"] = time.perf_counter() - wall, time.process_time() - cpu
            return found

        loop.Loop.run = timed
        try:
            fit = self.make(count).run(*self.args)
        finally:
            loop.Loop.run = run
        numbers = sum(p.numel() for p in fit.guide.parameters())
        self.fit = fit
        return *taken["time"], float(fit.losses[-1]), numbers


def main():
    rival, name, flow, particles, *rest = sys.argv[1:]
    made = {"pyro": Pyro, "ours": Ours}[rival](name, flow, int(particles))
    if rest:
        torch.manual_seed(0)
        begin = time.perf_counter()
        if rival == "ours":
            made.steps(1000)
            timing = made.fit.timing
            seconds = timing.total - timing.scoring - timing.checks
            extra = {"capture": timing.capture, "compile": timing.compile, "fit": timing.training}
            extra["setup"] = seconds - timing.training
        else:
            made.steps(1000)
            seconds, extra = time.perf_counter() - begin, {}
        print(json.dumps({"seconds": seconds, **extra}), flush=True)
        return
    made.steps(1000 if rival == "ours" else 3)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        count = int(line.split()[1])
        wall, cpu, loss, numbers = made.steps(count)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            json.dumps({"wall": wall / count, "cpu": cpu / count, "loss": loss,
                        "numbers": numbers, "memory": memory}),
            flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
