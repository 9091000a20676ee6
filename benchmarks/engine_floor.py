"""How far the engine is from a loop that is written by hand for one model.

    python benchmarks/engine_floor.py           # writes docs/benchmarks/engine_floor.md
    python benchmarks/engine_floor.py --smoke   # seconds, prints only

Eight schools, sixteen planar layers, total gradient, clipping, Adam, float32, one thread, in C++
(benchmarks/engine_rivals/floor.cpp) with the engine's compiler, with its flags and with
-ffast-math, which the engine cannot take since it would not see NaN. Noise comes from PyTorch in
blocks of 200 steps on both sides. The gradient is compared with autograd's before anything is
timed. Ours is the whole loop of ``NFVI(...).run()``. Both take turns on one core.
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import ROOT, environment, in_words, table, write
from benchmarks.engine import Rival
from benchmarks.engine_rivals.data import data
from pyro_nfvi._engine.native.compiler import find_compiler

SOURCE = ROOT / "benchmarks" / "engine_rivals" / "floor.cpp"
D, K, BLOCK = 10, 16, 200
Y, SIGMA = (torch.as_tensor(x) for x in data("schools"))


def pointer(x):
    return ctypes.cast(x.data_ptr(), ctypes.POINTER(ctypes.c_float))


class Floor:
    """The hand-written loop for some number of particles."""

    def __init__(self, particles, folder, flags):
        name = Path(folder) / f"floor{particles}{len(flags)}.so"
        compiler = find_compiler()
        words = [*compiler.command, *compiler.flags, "-fvisibility=default", *flags]
        words += [f"-DP={particles}", str(SOURCE), "-o", str(name), *compiler.libraries]
        subprocess.run(words, check=True)
        self.library, self.particles = ctypes.CDLL(str(name)), particles
        self.library.gradient.restype = ctypes.c_float
        generator = torch.Generator().manual_seed(0)
        self.theta = 0.3 * torch.randn(self.library.size(), generator=generator)
        self.m, self.v = torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        self.taken = 0

    def gap(self):
        """Largest difference of bound and gradient from autograd's, relative."""
        eps = torch.randn(self.particles, D, generator=torch.Generator().manual_seed(1))
        theta = self.theta.double().requires_grad_()
        loss = reference(theta, eps.double())
        loss.backward()
        found = torch.zeros_like(self.theta)
        given = [pointer(x) for x in (self.theta, eps, Y, SIGMA, found)]
        value = self.library.gradient(*given)
        off = (found - theta.grad).abs().max() / theta.grad.abs().max()
        return max(float(off), abs(value - float(loss.detach())) / abs(float(loss.detach())))

    def steps(self, count):
        losses = torch.empty(BLOCK)
        cpu = time.process_time()
        for _ in range(count // BLOCK):
            eps = torch.randn(BLOCK, self.particles, D)
            given = [pointer(x) for x in (self.theta, self.m, self.v, eps, Y, SIGMA, losses)]
            self.library.steps(BLOCK, self.taken, ctypes.c_float(1e-3), *given)
            self.taken += BLOCK
        return (time.process_time() - cpu) / (count // BLOCK * BLOCK), float(losses.mean())


def reference(theta, eps):
    """The negative bound in PyTorch."""
    v, u = theta[: K * D].view(K, D), theta[K * D : 2 * K * D].view(K, D)
    b, loc, raw = theta[2 * K * D :].split([K, D, D])
    z, log_q = eps, -0.5 * eps.square().sum(-1)
    for k in range(K):
        n2, alpha = v[k].square().sum() + 1e-12, v[k] @ u[k]
        slope = F.softplus(alpha + 0.5413248546129181)
        t = torch.tanh(z @ v[k] + b[k])
        log_q = log_q - torch.log(1 + (slope - 1) * (1 - t.square()))
        z = z + (u[k] + (slope - 1 - alpha) / n2 * v[k]) * t.unsqueeze(-1)
    z = loc + raw.exp() * z
    log_q = log_q - raw.sum()
    mu, tau, eta = z[:, 0], z[:, 1].exp(), z[:, 2:]
    off = (Y.double() - mu.unsqueeze(-1) - tau.unsqueeze(-1) * eta) / SIGMA.double()
    log_p = -mu.square() / 50 + z[:, 1] - torch.log1p(tau.square() / 25)
    log_p = log_p - 0.5 * (eta.square() + off.square()).sum(-1)
    return (log_q - log_p).mean()


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few steps, prints only")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {options.core})
    rows, found = [], []
    with tempfile.TemporaryDirectory() as folder:
        for particles in (1, 32):
            ours = Rival("ours", None, ("schools", "planar", particles), options.core)
            floors = {
                "as the engine's": Floor(particles, folder, []),
                "-O3 -ffast-math": Floor(particles, folder, ["-O3", "-ffast-math"]),
            }
            gaps = {name: floor.gap() for name, floor in floors.items()}
            if max(gaps.values()) > 1e-4:
                raise RuntimeError(f"The hand-written gradient is wrong: {gaps}.")
            count = 2000 if options.smoke else 50_000
            taken = []
            for _ in range(2 if options.smoke else options.rounds):
                own = ours.ask(count)["cpu"]
                taken.append({"ours": own, **{n: f.steps(count)[0] for n, f in floors.items()}})
            ours.end()
            for name in floors:
                ratios = sorted(one["ours"] / one[name] for one in taken)
                micro = [1e6 * statistics.median(one[x] for one in taken) for x in ("ours", name)]
                spread = f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
                rows.append([str(particles), name, f"{micro[0]:.2f}", f"{micro[1]:.2f}", spread])
                print(*rows[-1], f"gradient off by {gaps[name]:.1e}", flush=True)
            found.append({"particles": particles, "rounds": taken, "gaps": gaps})
    if options.smoke:
        return
    env = environment()
    header = ["particles", "flags of the floor", "ours, µs", "floor, µs", "ours / floor"]
    body = f"""
A loop written by hand for eight schools and sixteen planar layers, against the training loop of
`NFVI(...).run()`: processor time per step, medians of {options.rounds} rounds in turn; ratios
within rounds, median [range]. The engine's own flags see NaN; `-ffast-math`
does not.

{table(header, rows)}

{in_words(env)} `python benchmarks/engine_floor.py` writes this page.
"""
    print(write("engine_floor", "The engine's floor", {"environment": env, "found": found}, body))


if __name__ == "__main__":
    main()
