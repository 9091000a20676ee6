"""Time of a training step and of an NLL: our flows, plain PyTorch, and Pyro's own in SVI.

    python benchmarks/vae/speed.py            # writes docs/benchmarks/vae_speed.{md,json}
    python benchmarks/vae/speed.py --page     # the page from its JSON
    python benchmarks/vae/speed.py --smoke

Batches of 100 random binary images of 28 x 28, gated dense nets 300-300, latent size 64, one
thread, Adam. All variants take turns within one run, one step each per round; CPU time, median
and least over rounds.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.infer import SVI, Trace_ELBO
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for benchmarks/

from benchmarks._report import DOCS, ROOT, environment, in_words, table, write
from benchmarks.vae.plain_torch import IAF, PlainVAE, Planar, Sylvester
from pyro_nfvi.vae import DenseDecoder, DenseEncoder, ELBOLoss
from pyro_nfvi.vae._architecture import Architecture
from pyro_nfvi.vae.train._fit import adam

SHAPE, LATENT, WIDTH, BATCH = (28, 28), 64, 300, 100
OURS = {
    "none": ("none", {}),
    "planar*4": ("planar*4", {}),
    "planar*16": ("planar*16", {}),
    "radial*4": ("radial*4", {}),
    "iaf*4": ("iaf*4", {"hidden_dim": 320}),
    "sylvester*4": ("sylvester*4", {"rank": 8}),
    "sylvester*4 householder": ("sylvester*4", {"kind": "householder", "rank": LATENT}),
    "sylvester*4 triangular": ("sylvester*4", {"kind": "triangular"}),
}


class PlainPyro(nn.Module):
    """A VAE as a Pyro user writes it, with Pyro's conditional flows."""

    def __init__(self, kind, count):
        super().__init__()
        self.encoder = DenseEncoder(SHAPE, LATENT, (WIDTH, WIDTH), context_dim=WIDTH)
        self.decoder = DenseDecoder(LATENT, SHAPE, (WIDTH, WIDTH))
        make = {
            "planar": lambda: transforms.conditional_planar(LATENT, WIDTH, [WIDTH]),
            "radial": lambda: transforms.conditional_radial(LATENT, WIDTH, [WIDTH]),
            "iaf": lambda: transforms.conditional_affine_autoregressive(LATENT, WIDTH, [320]),
        }
        self.flows = nn.ModuleList([make[kind]() for _ in range(count)] if count else [])

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(2), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        pyro.module("flows", self.flows)
        with pyro.plate("data", len(x)):
            loc, scale, h = self.encoder(x)
            base = dist.Normal(loc, scale).to_event(1)
            bound = [flow.condition(h) for flow in self.flows]
            pyro.sample("z", dist.TransformedDistribution(base, bound) if bound else base)


PYRO = {
    "Pyro, none": (None, 0),
    "Pyro, planar*4": ("planar", 4),
    "Pyro, planar*16": ("planar", 16),
    "Pyro, radial*4": ("radial", 4),
    "Pyro, iaf*4": ("iaf", 4),
}


TORCH = {
    "none": lambda: None,
    "planar*16": lambda: Planar(LATENT, WIDTH, 16),
    "iaf*4": lambda: IAF(LATENT, WIDTH, 4, 320),
    "sylvester*4": lambda: Sylvester(LATENT, WIDTH, 4, 8),
}


def torch_step(vae, *, fused):
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-4, fused=fused)

    def step(x):
        optimizer.zero_grad()
        vae(x).backward()
        optimizer.step()

    return step


def our_step(vae):
    optimizer = adam(vae, 5e-4)  # that of vae.fit
    loss = ELBOLoss()

    def step(x):
        optimizer.zero_grad()
        loss(vae, x).surrogate.mean().backward()
        optimizer.step()

    return step


def pyro_step(vae, *, model, guide):
    store = {"params": {}, "constraints": {}}
    options = {"lr": 5e-4, "fused": True}
    svi = SVI(model, guide, pyro.optim.PyroOptim(torch.optim.Adam, options), Trace_ELBO())

    def step(x):
        # A store of its own, so that the variants do not train each other's tensors.
        with pyro.get_param_store().scope(store) as held:
            svi.step(x)
        store.update(held)

    return step


def size_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def encode_copies(vae, x, samples):
    """Compute the NLL in the straightforward way: encode S copies of each image."""
    for image in x:
        total = []
        for start in range(0, samples, 1000):
            copies = image.expand(min(1000, samples - start), *SHAPE)
            total.append(vae.elbo(copies).log_w[0])
        torch.logsumexp(torch.cat(total), 0)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--page", action="store_true", help="write the page anew, run nothing")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--samples", type=int, default=5000)
    run = parser.parse_args()
    folder = ROOT / "out" / "benchmarks" if run.smoke else DOCS
    if run.page:
        held = json.loads((folder / "vae_speed.json").read_text("utf-8"))
        print(write("vae_speed", "Speed of flow VAEs", held, page(held), folder))
        return
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    rounds, samples = (2, 300) if run.smoke else (run.rounds, run.samples)
    x = torch.bernoulli(torch.full((BATCH, *SHAPE), 0.2))
    sizes, steps, vaes = {}, {}, {}
    for name, (flow, options) in OURS.items():
        architecture = Architecture(SHAPE, LATENT, flow, options, hidden=(WIDTH, WIDTH))
        vaes[name] = architecture.build(seed=0)
        steps[name], sizes[name] = our_step(vaes[name]), size_of(vaes[name])
    through = Architecture(SHAPE, LATENT, "iaf*4", {"hidden_dim": 320}).build(seed=0)
    name = "iaf*4 through SVI"
    steps[name] = pyro_step(through, model=through.model, guide=through.guide)
    sizes[name] = size_of(through)
    for name, (kind, count) in PYRO.items():
        vae = PlainPyro(kind, count)
        steps[name], sizes[name] = pyro_step(vae, model=vae.model, guide=vae.guide), size_of(vae)
    for flow, build in TORCH.items():
        for fused in (False, True):
            name = f"PyTorch, {flow}{', fused' * fused}"
            torch.manual_seed(0)
            vae = PlainVAE(SHAPE[0] * SHAPE[1], LATENT, WIDTH, build())
            steps[name], sizes[name] = torch_step(vae, fused=fused), size_of(vae)
    times = {name: [] for name in steps}
    for turn in range(rounds + 3):
        for name, step in steps.items():
            start = time.process_time()
            step(x)
            if turn >= 3:
                times[name].append(1000 * (time.process_time() - start))
        print(f"round {turn + 1} of {rounds + 3}", end="\r", flush=True)
    nll = []
    for name, vae in vaes.items():
        pair = []
        for call in (
            lambda v=vae: v.nll(x[: run.images], num_samples=samples),
            lambda v=vae: encode_copies(v, x[: run.images], samples),
        ):
            start = time.process_time()
            call()
            pair.append((time.process_time() - start) / run.images)
        nll.append([name, f"{pair[0]:.3f}", f"{pair[1]:.3f}", f"{pair[1] / pair[0]:.1f}"])
        print("NLL", *nll[-1], flush=True)
    results = {
        "environment": environment(), "ms": times, "parameters": sizes, "nll": nll,
        "samples": samples, "images": run.images,
    }  # fmt: skip
    print(write("vae_speed", "Speed of flow VAEs", results, page(results), folder))


def page(results):
    """The page from its numbers: all rows of one run, in which they take turns."""
    times, sizes, nll = results["ms"], results["parameters"], results["nll"]
    rounds, samples = len(times["none"]), results.get("samples", 5000)
    middle = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, values in times.items():
        ratio, goal = middle[name] / middle["none"], 1.2 * sizes[name] / sizes["none"]
        against = [
            f"{statistics.median(b / a for a, b in zip(values, times[twin], strict=True)):.2f}"
            if twin in times
            else ""
            for twin in (f"PyTorch, {name}", f"PyTorch, {name}, fused", f"Pyro, {name}")
        ]
        rows.append([
            name, f"{sizes[name] / 1e6:.2f}", f"{middle[name]:.1f} / {min(values):.1f}",
            f"{ratio:.2f}", f"{goal:.2f}" if name in OURS else "", *against,
        ])  # fmt: skip
    header = ["flow", "M parameters", "step, CPU ms (median / least)", "to none",
              "goal: 1.2 x parameters", "PyTorch takes x times", "with fused Adam",
              "Pyro takes x times"]  # fmt: skip
    return f"""
A training step (forward, backward, Adam) on {BATCH} images, gated dense 300-300, latent size
{LATENT}, one thread, float32; {rounds} rounds in which all rows take turns. Ours is the loss of
`vae.fit` with its optimiser, fused Adam. "PyTorch": the same model written by hand after the papers
(`benchmarks/vae/plain_torch.py`), with PyTorch's default Adam and with the fused one. "Pyro": the
same nets in a VAE written directly against `pyro.infer.SVI` with Pyro's conditional transforms and
fused Adam (Pyro has no conditional Sylvester flow). "Takes x times": the median over rounds of the
ratio to our step of the same round. All numbers are of one run: times of other codes, measured at
another time, are no rows of this table.

{table(header, rows)}

NLL of one image at S = {samples}, CPU seconds, means over {results.get("images", 3)}; "copies"
encodes S copies of the image, 1000 at a time, as the public codes do.

{table(["flow", "vae.nll", "copies", "ratio"], nll)}

{in_words(results["environment"])} `python benchmarks/vae/speed.py` writes this page.
"""


if __name__ == "__main__":
    main()
