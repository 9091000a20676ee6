"""Priors of a VAE compared by NLL, image by image: normal, flow, mixture, VampPrior, two layers.

    python benchmarks/vae/priors.py            # writes docs/benchmarks/vae_priors.*: minutes
    python benchmarks/vae/priors.py --smoke

The 8 x 8 digits of scikit-learn, binarised once. Encoder and decoder have the same sizes for every
prior. The NLL is annealed (AIS), of the same test images for all. What is done is kept in --runs:
a run that was cut off goes on.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for benchmarks/

from benchmarks._report import DOCS, ROOT, environment, in_words, table, write
from pyro_nfvi import vae as flow_vae
from pyro_nfvi.vae._evaluation import subset_of

PRIORS = {
    "normal": "the standard normal",
    "maf*2": "a flow, `maf*2`",
    "mixture*30": "a mixture of 30 Gaussians",
    "vamp*30": "a VampPrior of 30 pseudo-images",
    "two layers": "two layers, 8 and 4, a flow in the posterior of each",
}
FLOW, LATENT, UPPER, WIDTH, EPOCHS, RATE = "realnvp*2", 8, 4, 100, 150, 2e-3
IMAGES, CHAINS, TEMPERATURES = 150, 32, 40


def make(prior, seed, train):
    torch.manual_seed(seed)
    layers = prior == "two layers"
    encoder = flow_vae.DenseEncoder(
        (8, 8), LATENT + UPPER * layers, (WIDTH,), context_dim=WIDTH
    )  # fmt: skip
    decoder = flow_vae.DenseDecoder(LATENT, (8, 8), (WIDTH,))
    if layers:
        return flow_vae.HierarchicalVAE(encoder, decoder, (LATENT, UPPER), WIDTH, FLOW)
    kinds = {
        "normal": lambda: None,
        "vamp*30": lambda: flow_vae.VampPrior(train[:30], LATENT),
    }
    chosen = kinds.get(prior, lambda: prior)()
    return flow_vae.FlowVAE(encoder, decoder, LATENT, WIDTH, FLOW, prior=chosen)


def measure(prior, seed, images, epochs, temperatures, folder):
    """Train and evaluate, or read what an earlier call found."""
    place = folder / f"{prior.replace('*', '_').replace(' ', '_')}-seed{seed}"
    done = place / "found.json"
    if done.exists():
        return json.loads(done.read_text("utf-8"))
    train, valid, test = images
    start = time.process_time()
    run = flow_vae.fit(
        make(prior, seed, train), train, valid=valid, out=place, resume=True, epochs=epochs,
        lr=RATE, scheduler=lambda one: torch.optim.lr_scheduler.CosineAnnealingLR(one, epochs),
        seed=seed, progress=False,
    )  # fmt: skip
    if run.progress.done == "interrupted":
        raise KeyboardInterrupt
    trained = time.process_time() - start
    index = subset_of(len(test), IMAGES)
    nll = run.vae.nll(
        test[index], method="ais", num_samples=CHAINS, temperatures=temperatures,
        first=index.tolist(),
    )  # fmt: skip
    told = nll.summary()
    found = {
        "prior": prior, "seed": seed, "cpu": trained, "best_epoch": run.progress.best_epoch,
        "parameters": sum(one.numel() for one in run.vae.parameters()),
        "nll": nll.value.tolist(), "negative_elbo": nll.bound.tolist(), "label": told.label,
        "khat_bad": told.khat_bad, "acceptance": float(nll.acceptance.mean()),
        "cpu_nll": time.process_time() - start - trained,
    }  # fmt: skip
    done.write_text(json.dumps(found), "utf-8")
    return found


def gain(found, prior, name):
    """Nats that a prior saves against the normal one, with its paired error, and by seed."""
    mine, plain = (
        {row["seed"]: torch.tensor(row[name], dtype=torch.float64)
         for row in found if row["prior"] == one} for one in (prior, "normal")
    )  # fmt: skip
    apart = torch.stack([plain[seed] - mine[seed] for seed in sorted(mine)])
    each = apart.mean(0)
    return float(each.mean()), float(each.std()) / math.sqrt(len(each)), apart.mean(1).tolist()


def lines_of(found):
    lines = []
    for prior, words in PRIORS.items():
        mine = [row for row in found if row["prior"] == prior]
        line = [words]
        for name in ("nll", "negative_elbo"):
            mean = sum(sum(row[name]) / len(row[name]) for row in mine) / len(mine)
            line.append(f"{mean:.2f}")
            if prior == "normal":
                line.append("")
                continue
            saved, error, seeds = gain(found, prior, name)
            line.append(f"{saved:.2f} ± {error:.2f} ({', '.join(f'{one:.2f}' for one in seeds)})")
        line.append(f"{max(row['khat_bad'] for row in mine):.0%}")
        line.append(f"{mine[0]['parameters']:,}")
        line.append(f"{sum(row['cpu'] for row in mine) / len(mine):.0f}")
        lines.append(line)
    return lines


def order_in_words(found):
    """Say which differences are beyond two paired standard errors in every seed."""
    said = []
    for prior, words in list(PRIORS.items())[1:]:
        saved, error, seeds = gain(found, prior, "nll")
        clear = abs(saved) > 2 * error and all(one * saved > 0 for one in seeds)
        verdict = (
            f"{'better' if saved > 0 else 'worse'} than the standard normal in every seed"
            if clear
            else "no order against the standard normal follows"
        )
        said.append(f"- {words}: {verdict}.")
    return "\n".join(said)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--runs", type=Path)
    run = parser.parse_args()
    torch.set_num_threads(1)
    folder = ROOT / "out" / "benchmarks" if run.smoke else DOCS
    runs = run.runs or ROOT / "out" / "benchmarks" / f"vae-priors{'-smoke' * run.smoke}"
    folder.mkdir(parents=True, exist_ok=True)
    data = flow_vae.load_data("digits")
    images = flow_vae.choose_preparation(data, flow_vae.Bernoulli(), "static").images(data)
    found = []
    for seed in range(1 if run.smoke else 3):
        for prior in PRIORS:
            row = measure(
                prior, seed, images, 1 if run.smoke else EPOCHS, 2 if run.smoke else TEMPERATURES,
                runs,
            )  # fmt: skip
            found.append(row)
            mean = sum(row["nll"]) / len(row["nll"])
            print(prior, seed, f"{mean:.2f}", f"{row['cpu']:.0f} {row['cpu_nll']:.0f}", flush=True)
    env = environment()
    header = ["prior", found[0]["label"], "saved (by seed)", "-ELBO", "saved (by seed)",
              "k-hat too large", "parameters", "CPU s"]  # fmt: skip
    body = f"""
The 8 x 8 digits of scikit-learn, binarised once, {len(images[0])} to train; gated dense nets of
{WIDTH} units, latent size {LATENT}, posterior `{FLOW}`, {EPOCHS} epochs of Adam at {RATE} (cosine),
the epoch best on the validation images. Nats per image on {len(found[0]["nll"])} random test
images, the same for all; means over {len({row["seed"] for row in found})} seeds. Saved: the number
under the standard normal less that under the prior, image by image; ± is the standard error over
images of the means over seeds, and does not hold the spread between trainings: the seeds show that.

{table(header, lines_of(found))}

An annealed NLL is on average above the true one, and below -ELBO; where k-hat, itself rough from so
few chains, is too large, it may be too large by a part of the gap between the two. By NLL, beyond
two standard errors and with one sign in all seeds:

{order_in_words(found)}

{in_words(env)} `python benchmarks/vae/priors.py` writes this page.
"""
    results = {"environment": env, "found": found}
    print(write("vae_priors", "Priors of a VAE", results, body, folder))


if __name__ == "__main__":
    main()
