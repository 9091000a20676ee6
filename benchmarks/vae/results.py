"""Test -ELBO and NLL(S) of flow VAEs, several seeds, beside the papers' rows.

    python benchmarks/vae/results.py                               # digits, minutes
    python benchmarks/vae/results.py --data mnist_static.npz       # 25 minutes of one core
    python benchmarks/vae/results.py --data freyfaces.npz --likelihood categorical --seeds 0
    python benchmarks/vae/results.py --data mnist_static.npz --papers   # their settings: a GPU
    python benchmarks/vae/results.py --data mnist_static.npz --page     # the page from its JSON
    python benchmarks/vae/results.py --smoke                       # seconds

Runs are kept in --runs: those that are done are not repeated, one that was cut off goes on.
Writes docs/benchmarks/vae_NAME.{md,json,png}.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for benchmarks/

from benchmarks._report import DOCS, ROOT, environment, in_words, write
from benchmarks.vae.sweep.pairs import differences
from benchmarks.vae.sweep.papers import published_for
from benchmarks.vae.sweep.plots import draw_points
from benchmarks.vae.sweep.table import Row, place_of, sweep, table, write_tables
from pyro_nfvi.vae import load_data
from pyro_nfvi.vae._nll_summary import NLLSummary, doubt_of
from pyro_nfvi.vae._pictures import save_figure
from pyro_nfvi.vae.train._options import Options, migrated
from pyro_nfvi.vae.train._run_folder import RunFolder

FLOWS = ("none", "planar*16", "iaf*4:hidden_dim=320", "sylvester*4:rank=8")
#: Pairs to compare; the papers find the first of each worse.
PAPERS_ORDER = (("none", "planar"), ("planar", "iaf"), ("planar", "sylvester"), ("none", "iaf"))


def given():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--likelihood", default="bernoulli")
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--flows", default=None, help="divided by spaces")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--latent-dim", type=int, default=None)
    parser.add_argument("--warmup", type=float, default=None, help="a share of the run")
    parser.add_argument("--nll-method", default=None, choices=("importance", "ais"))
    parser.add_argument("--nll-samples", type=int, default=None, help="or chains")
    parser.add_argument("--temperatures", type=int, default=None)
    parser.add_argument("--nll-images", type=int, default=None)
    parser.add_argument("--papers", action="store_true", help="z 64, convolutions, 2000 epochs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--page", action="store_true", help="write the page anew, run nothing")
    parser.add_argument("--smoke", action="store_true")
    return parser.parse_args()


def settings(run, name):
    """Options of every run of the table."""
    importance = {"nll_method": "importance", "nll_samples": 5000, "temperatures": 0,
                  "nll_images": 500}  # fmt: skip
    annealed = {"nll_method": "ais", "nll_samples": 64, "temperatures": 50, "nll_images": 40}
    chosen = {"epochs": 100, "latent_dim": 16, "warmup": 0.2, **importance}
    if name == "mnist_static":
        chosen = {"epochs": 10, "latent_dim": 40, "warmup": 0.2, **annealed}
    elif name != "digits":
        chosen = {"epochs": 50, "latent_dim": 40, "warmup": 0.2, **importance}
    if run.papers:
        chosen = {"epochs": 2000, "latent_dim": 64, "warmup": 0.05, **annealed}
    if run.smoke:
        chosen = {"epochs": 1, "latent_dim": 4, "warmup": 0.2, "nll_method": "importance",
                  "nll_samples": 50, "temperatures": 0, "nll_images": 50}  # fmt: skip
    for key in chosen:
        value = getattr(run, key)
        chosen[key] = chosen[key] if value is None else value
    more = {"nets": "conv", "patience": 100, "lr": 5e-4, "optimizer": "adamax"}
    usual = {"lr": 1e-3, "optimizer": "adam"}
    if name == "mnist_static":  # few epochs: a high rate that ends at none
        usual = {"lr": 2e-3, "optimizer": "adam", "decay": "cosine"}
    if run.smoke:
        usual["hidden"] = "16"
    return {**chosen, **(more if run.papers else usual)}


def order_in_words(rows):
    """Say the difference of -ELBO, and of the NLL where its weights can be relied on."""
    named = {row.flow.split("*")[0]: row for row in rows}
    said = []
    for worse, better in PAPERS_ORDER:
        if worse not in named or better not in named:
            continue
        pair = (named[worse], named[better])
        for key, label, sign in (("elbo", "-ELBO", -1.0), ("nll", "NLL", 1.0)):
            told = [one for row in pair for one in row.summaries]
            if key == "nll" and not told:
                continue
            said.append(
                f"- {label} of `{worse}` minus `{better}`: {_difference(pair, key, sign, told)}"
            )
    return "\n".join(said)


def _difference(pair, key, sign, told):
    if key == "nll" and not all(one.trusted for one in told):
        return f"not compared, since the NLLs are not reliable ({doubt_of(told)})."
    one, two = ([sign * result[key] for result in row.results] for row in pair)
    values = torch.tensor([a - b for a, b in zip(one, two, strict=True)], dtype=torch.float64)
    mean = float(values.mean())
    if len(values) == 1:
        return f"{mean:+.2f} nats with one seed, which does not settle their order."
    spread = float(values.std())
    if abs(mean) < 2 * spread / len(values) ** 0.5:
        return f"{mean:+.2f} ± {spread:.2f} nats over seeds, too close to call."
    return f"{mean:+.2f} ± {spread:.2f} nats over seeds."


def told(row):
    """The row with the warnings that its NLLs deserve, which runs of earlier versions left out."""
    results = []
    for result in row.results:
        summary = NLLSummary.from_record(result)
        warning = "" if summary is None else summary.warning
        known = result["warning"]
        results.append(
            {**result, "warning": known if warning in known else f"{known} {warning}".strip()}
        )
    return replace(row, results=tuple(results))


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
        pictures=False, device=run.device, **chosen,
    )  # fmt: skip
    target = ROOT / "out" / "benchmarks" if run.smoke else DOCS
    target.mkdir(parents=True, exist_ok=True)
    env = environment()
    if run.page:
        held = json.loads((target / f"vae_{name}.json").read_text("utf-8"))
        rows, env = [told(Row(**one)) for one in held["rows"]], held["environment"]
        chosen = held["settings"]
        # Runs before the warm-up was a share of the run told it in epochs.
        options = replace(options, **(chosen if "warmup_epochs" in chosen else migrated(chosen)))
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
    folder = RunFolder(runs)
    if not run.page:
        write_tables(folder, rows, published)
    save_figure(draw_points(rows), target / f"vae_{name}.png")
    first = rows[0].summaries[0]
    pairs = differences(rows, lambda flow, seed: place_of(str(folder.path), flow, seed))
    paired = "\n".join(f"- {pair.sentence()}" for pair in pairs)
    warm = (
        f"the first {options.warmup:.0%} of the run"
        if options.warmup_epochs < 0
        else f"{options.warmup_epochs:g} epochs"
    )
    named = [row.flow for row in rows]
    left = [flow for flow in FLOWS if flow not in named]
    asked = f" --flows '{' '.join(named)}'" * (named != list(FLOWS))
    asked += f" --seeds {','.join(map(str, rows[0].seeds))}" * (rows[0].seeds != (0, 1, 2))
    partly = ""
    if left and name == "mnist_static":
        partly = (
            f"\nOf the script's flows some were not run: {', '.join(f'`{flow}`' for flow in left)}."
        )
    size = "gated convolutions" if run.papers else "gated dense nets 300-300"
    body = f"""
{data}. {size}, latent size {options.latent_dim}, {options.epochs} epochs of batches of
{options.batch_size}, KL warm-up over {warm}, {options.optimizer} at rate
{options.lr:g}{" (cosine)" * (options.decay == "cosine")}; the epoch best on validation images.
-ELBO on all {len(data.test)} test images,
{first.label} on {first.which} (means over different images: compare NLL
with NLL, or with the -ELBO of its images beside it). Nats per image but for
bits/dim, ± the standard deviation between seeds.{partly}

**Weights of the NLL**: {doubt_of([one for row in rows for one in row.summaries])}. Where this says
that they are not reliable, the NLL is likely too large, by an unknown amount that differs from flow
to flow: nothing here says which flow has the better likelihood, nor that the papers' order holds.

{body_table}

{order_in_words(rows)}
{paired}

The papers trained far longer (column `source`): their rows say where such models end, not what
these runs should have reached, and they do not tell the weights of their NLLs.

![-ELBO and NLL](vae_{name}.png)

{in_words(env)} Written by `python benchmarks/vae/results.py --data {data.name}{asked}`.
"""
    results = {
        "environment": env,
        "settings": {"warmup_epochs": options.warmup_epochs, **chosen},
        "rows": [asdict(row) for row in rows],
    }
    print(write(f"vae_{name}", f"Flow VAEs on {name}", results, body, target))


if __name__ == "__main__":
    main()
