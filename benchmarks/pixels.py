"""Pixels: bits per dimension of a flow, what integers do to it undequantised, strangers' scores.

    python benchmarks/pixels.py                                   # scikit-learn's digits
    python benchmarks/pixels.py --data mnist.npz --other faces.npz  # arrays x_train, x_test
    python benchmarks/pixels.py --smoke                           # seconds, to out/benchmarks

Data are integers from 0 to levels - 1 of shape (n, height, width). Of two data sets the middle
parts of equal size are compared. Pages go to docs/benchmarks/pixels_NAME.{md,json}.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks._report import DOCS, ROOT, environment, in_words, table, write
from pyro_nfvi import FlowDensity
from pyro_nfvi.distributions import UniformDequantize
from pyro_nfvi.distributions._data_checks import log_density_ceiling
from pyro_nfvi.errors import DataWarning, DivergedError
from pyro_nfvi.flows import ActNorm, Chain, Elementwise, SplineTransformer, make_flow

#: Images that are scored, at most.
SCORED = 2000
#: Without dequantisation: part of the images in which a pixel differs from its median, at least;
#: and how many pixels are fitted alone.
MOVING, FEW = 0.01, 16


def digits():
    """scikit-learn's 1797 digits, 8 x 8 pixels of 17 levels."""
    from sklearn.datasets import load_digits

    x = torch.as_tensor(load_digits().images).long()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return x[:1400], x[1400:], 17


def images(path):
    """Arrays ``x_train`` and ``x_test`` of an npz file."""
    with np.load(path) as file:
        train, test = (torch.as_tensor(file[key]).long() for key in ("x_train", "x_test"))
    levels = 2 if int(train.max()) == 1 else 256
    return train, test, levels


def middle(x, height, width):
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]


def auroc(inside, outside):
    """Chance that a score of outside is above one of inside."""
    both = torch.cat([inside, outside])
    rank = torch.empty(len(both), dtype=torch.float64)
    rank[both.argsort()] = torch.arange(1, len(both) + 1, dtype=torch.float64)
    n, m = len(inside), len(outside)
    return ((rank[n:].sum() - m * (m + 1) / 2) / (n * m)).item()


def build(dim, formula, hidden):
    # The data pass the ActNorm first; it takes their mean and spread from them.
    return FlowDensity(Chain(make_flow(formula, dim, hidden_dim=hidden), ActNorm(dim)))


def fitted(train, levels, formula, hidden, steps):
    """A density of the images, dequantised; with the seconds that it took."""
    dim = train[0].numel()
    pixels, density = UniformDequantize(levels, dim), build(dim, formula, hidden)
    began = time.perf_counter()
    report = density.fit(
        train.reshape(len(train), -1), dequantize=pixels, batch_size=128, lr=1e-3,
        max_steps=steps, seed=0, progress=False,
    )  # fmt: skip
    return density, pixels, report, time.perf_counter() - began


def bits_of(density, pixels, x, samples):
    """Bits per dimension of each image, the same noise in every call."""
    generator = torch.Generator().manual_seed(1)
    parts = [
        density.bits_per_dim(part, dequantize=pixels, num_samples=samples, generator=generator)
        for part in x.flatten(1).split(500)
    ]
    return torch.cat(parts).double()


def undequantised(train, levels, formula, hidden, steps):
    """What happens to the likelihood of the pixels as they are, scaled to [0, 1]."""
    x = train.reshape(len(train), -1).float() / (levels - 1)
    moving = moves(x) > MOVING
    return exact(x[:, moving], lambda dim: build(dim, formula, hidden), steps)


def at_the_edge(train, levels, steps):
    """The same of a few pixels that seldom differ, with flows that make steep slopes fast."""
    x = train.reshape(len(train), -1).float() / (levels - 1)
    share = moves(x)
    few = share.masked_fill(share <= MOVING, 2.0).argsort()[:FEW]

    def splines(dim):
        layers = [Elementwise(dim, transformer=SplineTransformer(bins=16)) for _ in range(3)]
        return FlowDensity(Chain(*layers, ActNorm(dim)))

    return exact(x[:, few], splines, steps)


def moves(x):
    """Part of the images in which a pixel differs from its median."""
    return (x != x.median(0)[0]).float().mean(0)


def exact(x, make, steps):
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        try:
            density = make(x.shape[1])
            report, words = density.fit(x, max_steps=steps, seed=0, progress=False), None
        except DivergedError as error:
            report, words = error.fit, str(error)
    return {
        "pixels": x.shape[1],
        "ceiling": log_density_ceiling(x),
        "steps": report.steps,
        "log_density": [-value for value in report.train],
        "warned": [str(one.message) for one in told if one.category is DataWarning],
        "error": words,
    }


def strangers(train, test, other, levels):
    """Sets to score: more of the same, others, and what a flow likes though it is no image."""
    generator = torch.Generator().manual_seed(0)
    n = min(len(test), SCORED)
    flat = test[:n].reshape(n, -1)
    mixed = flat[:, torch.randperm(flat.shape[1], generator=generator)]
    grey = flat.double().mean(1, keepdim=True).round().long().expand_as(flat)
    found = {"test rows": flat}
    if other is not None:
        found["the other data"] = other[:SCORED].reshape(min(len(other), SCORED), -1)
    found |= {
        "pixels in another order": mixed,
        "each row's mean grey": grey,
        "black": torch.zeros_like(flat),
        "uniform noise": torch.randint(0, levels, flat.shape, generator=generator),
    }
    return found


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few steps")
    parser.add_argument("--data", type=Path, help="npz with x_train and x_test")
    parser.add_argument("--other", type=Path, help="npz of strangers, of the same kind")
    parser.add_argument("--formula", default="realnvp*6")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--edge-only", action="store_true", help="refit the last part of a page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps = 60 if options.smoke else options.steps
    train, test, levels = images(options.data) if options.data else digits()
    title = options.data.stem if options.data else "digits"
    whole, other = (train, test), None
    if options.other:
        other, _, other_levels = images(options.other)
        other = other * (levels - 1) // (other_levels - 1)
        size = [min(train.shape[i], other.shape[i]) for i in (1, 2)]
        train, test, other = (middle(x, *size) for x in (train, test, other))
    dim, hidden = train[0].numel(), tuple(options.hidden)
    folder = ROOT / "out" / "benchmarks" if options.smoke else DOCS
    if options.edge_only:
        results = json.loads((folder / f"pixels_{title}.json").read_text())
        results["edge"] = at_the_edge(train, levels, steps)
        print(write(f"pixels_{title}", f"Pixels: {title}", results, page(results), folder))
        return
    density, pixels, report, seconds = fitted(train, levels, options.formula, hidden, steps)

    def bits(x, samples):
        return bits_of(density, pixels, x, samples)

    rows = test[:SCORED].reshape(-1, dim)
    bounds = {samples: bits(rows, samples).mean().item() for samples in (1, 16)}
    print(f"{report.steps} steps, {seconds:.0f} s, {bounds} bits per dimension", flush=True)
    uncut = None
    if whole[0].shape != train.shape:
        other_density, other_pixels, _, _ = fitted(whole[0], levels, options.formula, hidden, steps)
        uncut = {
            samples: bits_of(other_density, other_pixels, whole[1][:SCORED], samples).mean().item()
            for samples in (1, 16)
        }
        print(f"whole images: {uncut}", flush=True)
    usual = bits(train[:SCORED].reshape(-1, dim), 1)
    centre = usual.median()
    scored = {}
    for name, x in strangers(train, test, other, levels).items():
        score = bits(x, 1)
        if name == "test rows":
            inside = score
        scored[name] = {
            "bits": score.mean().item(),
            "auroc": auroc(inside, score),
            "auroc_typical": auroc((inside - centre).abs(), (score - centre).abs()),
        }
        print(name, {key: round(value, 3) for key, value in scored[name].items()}, flush=True)
    raw = undequantised(train, levels, options.formula, hidden, steps)
    print("undequantised:", raw["steps"], "steps,", raw["error"], flush=True)

    results = {
        "about": {
            "data": options.data.name if options.data else None,
            "other": options.other.name if options.other else None,
            "size": list(train.shape), "whole": list(whole[0].shape[1:]), "levels": levels,
            "formula": options.formula, "hidden": hidden, "scored": len(rows),
        },
        "environment": environment(), "steps": report.steps, "seconds": seconds,
        "bits": {str(key): value for key, value in bounds.items()},
        "bits_whole": uncut and {str(key): value for key, value in uncut.items()},
        "strangers": scored, "undequantised": raw, "edge": at_the_edge(train, levels, steps),
    }  # fmt: skip
    print(write(f"pixels_{title}", f"Pixels: {title}", results, page(results), folder))


def page(results):
    """The page's text."""
    about, bounds, uncut = results["about"], results["bits"], results.get("bits_whole")
    number, height, width = about["size"]
    body = f"""
{number:,} images of {height} x {width} pixels, {about["levels"]} levels: `{about["data"]}`.
""" if about["data"] else f"""
scikit-learn's digits, {number:,} images of {height} x {width} pixels, {about["levels"]} levels.
"""  # fmt: skip
    if about["other"]:
        body += f"Strangers: `{about['other']}`; of both the middle {height} x {width} pixels.\n"
    cut = ""
    if uncut:
        size = " x ".join(map(str, about["whole"]))
        cut = (
            f"The same on the whole images of {size} pixels: {uncut['1']:.3f} and "
            f"{uncut['16']:.3f} bits per dimension."
        )
    against = [
        [
            name,
            f"{row['bits']:.3f}",
            *(("", "") if name == "test rows"
              else (f"{row['auroc']:.3f}", f"{row['auroc_typical']:.3f}")),
        ]
        for name, row in results["strangers"].items()
    ]  # fmt: skip
    raw, edge = results["undequantised"], results["edge"]
    shown = raw["log_density"]
    some = sorted({0, len(shown) // 4, len(shown) // 2, len(shown) - 1})
    course = ", ".join(f"{shown[i]:.0f}" for i in some)
    told = ""
    if raw["warned"]:
        told = f"It was announced before the first step: *{raw['warned'][0]}*"
    body += f"""
`{about["formula"]}` with nets of {"-".join(map(str, about["hidden"]))} and an ActNorm, uniform
dequantisation and a logit, {results["steps"]} steps of 128 images
({results["seconds"]:.0f} s): at most **{bounds["1"]:.3f} bits per dimension** on
{about["scored"]:,} test images with one draw of the noise, {bounds["16"]:.3f} with 16 (the bound
is on minus the log probability of the integers).
{cut}

## Strangers

Bits per dimension of other images (more is less likely), and the chance that a stranger scores
above a test image: by bits, and by the distance of the bits from the median of the training images.

{table(["images", "bits per dimension", "chance, by bits", "chance, by distance"], against)}

The pitfall: a density is no measure of belonging. Images that are simpler than all of the data get
*fewer* bits than the data have, so that a threshold on the likelihood lets them in (a chance
below 0.5). The distance from what is usual sees those, but not strangers whose likelihood happens
to be usual.

Nalisnick et al. 2019, arXiv:1810.09136 (the pitfall) and arXiv:1906.02994 (typicality).

## Without dequantisation

The same flow on the pixels as they are, scaled to [0, 1] (the {raw["pixels"]} that differ from
their median in more than 1 % of the images). Their mean log density, in which single rows far out
weigh much, was {course} nats at the first look, after a quarter and half of the steps, and at the
last. A distribution of data so rounded can have {raw["ceiling"]:.0f} at most; a density of their
points has no bound. {end_of(raw)}

{told}

Where pixels seldom differ it goes fast. Three layers of splines on the {edge["pixels"]} pixels that
differ least of these: {", ".join(f"{value:.0f}" for value in edge["log_density"])} nats in one look
after another, and {edge["ceiling"]:.0f} at most for anything so rounded. {end_of(edge)}

{in_words(results["environment"])} `python benchmarks/pixels.py` writes this page.
"""
    return body


def end_of(raw):
    if raw["error"]:
        return f"That was passed after {raw['steps']} steps, and the fit stopped: *{raw['error']}*"
    highest = max(raw["log_density"])
    return f"{raw['steps']} steps did not get there; the highest look was {highest:.0f} nats."


if __name__ == "__main__":
    main()
