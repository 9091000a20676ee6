"""Test -ELBO and NLL(S) of flow VAEs, several seeds, beside the papers' rows.

    python benchmarks/vae/results.py                               # digits, minutes
    python benchmarks/vae/results.py --data mnist_static.npz       # hours on a CPU
    python benchmarks/vae/results.py --data freyfaces.npz --likelihood categorical --seeds 0
    python benchmarks/vae/results.py --data mnist_static.npz --papers   # their settings: a GPU
    python benchmarks/vae/results.py --data mnist_static.npz --page     # the page from its JSON
    python benchmarks/vae/results.py --smoke                       # seconds

Runs are kept in --runs: those that are done are not repeated, one that was cut off goes on.
Writes docs/benchmarks/vae_NAME.{md,json,png}.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for benchmarks/

from benchmarks._report import DOCS, ROOT, environment, in_words, write
from pyro_nfvi.vae import load_data
from pyro_nfvi.vae.checkpoint import RunFolder
from pyro_nfvi.vae.options import Options
from pyro_nfvi.vae.papers import published_for
from pyro_nfvi.vae.sweep import Row, sweep, table, write_tables

FLOWS = ("none", "iaf*4:hidden_dim=320", "planar*16", "sylvester*4:rank=8", "radial*16")
#: Order that the papers find, the worst first.
PAPERS_ORDER = (("none", "planar"), ("planar", "iaf"), ("planar", "sylvester"), ("none", "iaf"))


def given():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--likelihood", default="bernoulli")
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--flows", default=None, help="divided by spaces")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--latent-dim", type=int, default=None)
    parser.add_argument("--warmup", type=float, default=None)
    parser.add_argument("--nll-samples", type=int, default=None)
    parser.add_argument("--nll-images", type=int, default=500)
    parser.add_argument("--papers", action="store_true", help="z 64, convolutions, 2000 epochs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--page", action="store_true", help="write the page anew, run nothing")
    parser.add_argument("--smoke", action="store_true")
    return parser.parse_args()


def settings(run, name):
    """Options of every run of the table."""
    chosen = {"epochs": 100, "latent_dim": 16, "warmup": 20.0, "nll_samples": 5000}
    if name != "digits":
        chosen = {"epochs": 50, "latent_dim": 40, "warmup": 10.0, "nll_samples": 5000}
    if run.papers:
        chosen = {"epochs": 2000, "latent_dim": 64, "warmup": 100.0, "nll_samples": 5000}
    if run.smoke:
        chosen = {"epochs": 1, "latent_dim": 4, "warmup": 1.0, "nll_samples": 50}
    for key in chosen:
        value = getattr(run, key)
        chosen[key] = chosen[key] if value is None else value
    more = {"nets": "conv", "patience": 100, "lr": 5e-4, "optimizer": "adamax"}
    usual = {"lr": 1e-3, "optimizer": "adam"}
    if run.smoke:
        usual["hidden"] = "16"
    return {**chosen, **(more if run.papers else usual)}


def order_in_words(rows):
    """Say of each pair whether the NLL is in the papers' order, with its error."""
    named = {row.flow.split("*")[0]: row for row in rows}
    said = []
    for worse, better in PAPERS_ORDER:
        if worse not in named or better not in named:
            continue
        differences = []
        for one, two in zip(named[worse].results, named[better].results, strict=True):
            differences.append(one["nll"] - two["nll"])
        values = torch.tensor(differences)
        mean = float(values.mean())
        if len(values) == 1:
            errors = [f"{named[flow].results[0]['nll_se']:.1f}" for flow in (worse, better)]
            said.append(
                f"- NLL of `{worse}` minus `{better}`: {mean:+.2f} nats with one seed, which does "
                f"not settle their order (standard errors over images {' and '.join(errors)}; the "
                f"papers find `{worse}` worse)."
            )
            continue
        spread = float(values.std())
        error = spread / len(values) ** 0.5
        verdict = "as in the papers" if mean > 0 else "**not** as in the papers"
        if abs(mean) < 2 * error:
            verdict = f"too close to call (the papers find `{worse}` worse)"
        said.append(
            f"- NLL of `{worse}` minus `{better}`: {mean:+.2f} ± {spread:.2f} nats over seeds, "
            f"{verdict}."
        )
    return "\n".join(said)


def main():
    run = given()
    data = load_data(run.data)
    name = data.name.removesuffix(".npz").replace("-", "_").replace(".", "_")
    flows = run.flows.split() if run.flows else list(FLOWS[: 2 if run.smoke else None])
    seeds = [int(seed) for seed in run.seeds.split(",")][: 2 if run.smoke else None]
    runs = run.runs or ROOT / "out" / "benchmarks" / f"vae-{name}{'-smoke' * run.smoke}"
    chosen = settings(run, name)
    options = Options(
        data=run.data, out=str(runs), likelihood=run.likelihood, threads=1, quiet=True,
        pictures=False, nll_images=min(run.nll_images, 50) if run.smoke else run.nll_images,
        device=run.device, **chosen,
    )  # fmt: skip
    target = ROOT / "out" / "benchmarks" if run.smoke else DOCS
    target.mkdir(parents=True, exist_ok=True)
    env = environment()
    if run.page:
        held = json.loads((target / f"vae_{name}.json").read_text("utf-8"))
        rows, env = [Row(**one) for one in held["rows"]], held["environment"]
        chosen = held["settings"]
        options = replace(options, **chosen)
    else:
        rows = sweep(options, flows, seeds)
    as_is = data.levels == 2 or run.likelihood == "categorical"
    kind = "as-is" if as_is else "dynamic"
    published = published_for(data.shape, kind, run.likelihood, data)
    lines = table(rows, published)
    keys = list(lines[0])
    body_table = "\n".join(
        "| " + " | ".join(cells) + " |"
        for cells in (keys, ["---"] * len(keys), *([line[key] for key in keys] for line in lines))
    )
    if not run.page:
        folder = RunFolder(runs)
        write_tables(folder, rows, published)
        picture = folder.path / "sweep.png"
        if picture.exists():
            shutil.copy(picture, target / f"vae_{name}.png")
    seen = rows[0].results[0]["nll_images"]
    size = "gated convolutions" if run.papers else "gated dense nets 300-300"
    body = f"""
{data}. {size}, latent size {options.latent_dim}, {options.epochs} epochs of batches of
{options.batch_size}, KL warm-up over {options.warmup:g} epochs, {options.optimizer} at rate
{options.lr:g}; the epoch best on validation images. -ELBO on all {len(data.test)} test images,
NLL({options.nll_samples}) on the first {seen} of them (means over different images: compare NLL
with NLL, or with the -ELBO of the same images in the column `quantity`). Nats per image but for
bits/dim, ± the standard deviation between seeds.

{body_table}

{order_in_words(rows)}

The papers trained far longer (column `source`): their rows say where such models end, not what
these runs should have reached.

![-ELBO and NLL](vae_{name}.png)

{in_words(env)} Written by `python benchmarks/vae/results.py --data {data.name}`.
"""
    results = {
        "environment": env,
        "settings": chosen,
        "rows": [asdict(row) for row in rows],
    }
    print(write(f"vae_{name}", f"Flow VAEs on {name}", results, body, target))


if __name__ == "__main__":
    main()
