"""The engine as a process: ``special_worker.py PARTICLES``.

A line ``start ours NAME`` or ``start wide NAME`` builds the step of a distribution; each line
``steps N`` then takes steps of it and prints seconds per step. ``wide`` is the same with broadcasts
left where they are captured. Blocks of 200 steps: noise, gradient, clipping, Adam.
"""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import time

import pyro
import pyro.distributions as dist
import torch

from benchmarks.engine_rivals.special_models import model, observations, serve
from pyro_nfvi import AutoFlow
from pyro_nfvi._engine.broadcast_sinking import sink_broadcasts
from pyro_nfvi._engine.native import runner
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._train.engine_selection import choose
from pyro_nfvi._train.step import EagerStep
from pyro_nfvi.objectives._make_objective import make_objective

BLOCK, RATE = 200, 1e-3
ARRAYS = SimpleNamespace(
    exp=torch.exp,
    sigmoid=torch.sigmoid,
    cholesky=torch.linalg.cholesky,
    array=lambda x: torch.as_tensor(x, dtype=torch.float32),
)
#: Pyro's distributions, called as in ``special_models``.
NAMES = SimpleNamespace(
    **{
        **vars(dist),
        "NegativeBinomial": lambda n, logits: dist.NegativeBinomial(n, logits=logits),
        "ZeroInflatedPoisson": lambda gate, rate: dist.ZeroInflatedPoisson(rate, gate=gate),
        "ZeroInflatedNegativeBinomial": lambda n, logits, gate: dist.ZeroInflatedNegativeBinomial(
            n, logits=logits, gate=gate
        ),
    }
)


class One:
    """The native engine's steps of one distribution, with a diagonal Gaussian as the guide.

    The step is compared with an eager one before it is timed, as in every fit.
    """

    def __init__(self, name, particles, *, wide):
        self.particles = particles
        of, args = model(name, pyro, NAMES, ARRAYS), (torch.tensor(observations(name)),)
        pyro.clear_param_store()
        torch.manual_seed(0)
        self.guide = AutoFlow(of, "affine").setup(*args)
        log_joint = LogJoint(of, args, {}, self.guide.latent)
        params = [p for p in self.guide.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(params, lr=RATE)
        step = EagerStep(self.guide, log_joint, make_objective("total"), params, 0, optimizer)
        runner.sink_broadcasts = (lambda graph, _: graph) if wide else sink_broadcasts
        self.runner = choose("native", step, particles, 10**6).runner

    def steps(self, count):
        rates = torch.full((BLOCK, 1), RATE, dtype=torch.float64)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count // BLOCK):
            with torch.no_grad():
                eps = self.guide.density().sample_base((BLOCK, self.particles))
            found = self.runner.run(eps, {}, rates)
            if len(found.ok) < BLOCK or not bool(found.ok.all()):
                raise RuntimeError("a step was refused")
        return time.perf_counter() - wall, time.process_time() - cpu, float(found.bounds[-1])


def main():
    (particles,) = sys.argv[1:]
    warnings.simplefilter("error", UserWarning)
    torch.set_num_threads(1)
    serve(lambda kind, name: One(name, int(particles), wide=kind == "wide"), {})


if __name__ == "__main__":
    main()
