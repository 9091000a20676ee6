"""Digits in a latent space of two dimensions: nats that a flow posterior saves, image by image.

    python benchmarks/vae/digits_2d.py            # writes docs/benchmarks/vae_digits_2d.*: a minute
    python benchmarks/vae/digits_2d.py --smoke

The 8 x 8 digits of scikit-learn, binarised once. The nets are the same for every flow of a seed,
and so is the noise of the evaluation: differences are paired, and their errors are over images.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for benchmarks/

from benchmarks._report import DOCS, ROOT, environment, in_words, table, write
from pyro_nfvi import vae as flow_vae

FLOWS = (None, "planar*16", "sylvester*4")
WIDTH, EPOCHS, RATE, DRAWS, SAMPLES = 100, 100, 2e-3, 200, 1000


def make(flow, seed):
    torch.manual_seed(seed)
    encoder = flow_vae.DenseEncoder((8, 8), 2, (WIDTH,), context_dim=WIDTH)
    decoder = flow_vae.DenseDecoder(2, (8, 8), (WIDTH,))
    return flow_vae.FlowVAE(encoder, decoder, 2, WIDTH, flow)


def measure(flow, seed, images, epochs):
    train, valid, test = images
    start = time.process_time()
    run = flow_vae.fit(
        # Without a flow the context is not used.
        make(flow, seed), train, valid=valid, epochs=epochs, lr=RATE, seed=seed, progress=False
    )  # fmt: skip
    seconds = time.process_time() - start
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        bound = run.vae.elbo(test, num_samples=DRAWS, generator=generator).bound
    nll = run.vae.nll(test, num_samples=SAMPLES)
    return run.vae, {
        "flow": flow, "seed": seed, "cpu": seconds, "best_epoch": run.progress.best_epoch,
        "negative_elbo": (-bound.double()).tolist(), "nll": nll.value.tolist(),
        "khat_bad": nll.summary().khat_bad,
    }  # fmt: skip


def gain(found, flow, name):
    """Mean over images of the nats that a flow saves, its paired error, and the gain by seed."""
    mine, plain = ({row["seed"]: torch.tensor(row[name], dtype=torch.float64)
                    for row in found if row["flow"] == one} for one in (flow, None))  # fmt: skip
    apart = torch.stack([plain[seed] - mine[seed] for seed in sorted(mine)])
    each = apart.mean(0)
    return float(each.mean()), float(each.std()) / math.sqrt(len(each)), apart.mean(1).tolist()


def mean_of(found, flow, name):
    rows = [torch.tensor(row[name]).mean() for row in found if row["flow"] == flow]
    return float(torch.stack(rows).mean())


def lines_of(found):
    lines = []
    for flow in FLOWS:
        line = [flow or "none"]
        for name in ("negative_elbo", "nll"):
            line.append(f"{mean_of(found, flow, name):.2f}")
            if flow is None:
                line.append("")
                continue
            mean, error, seeds = gain(found, flow, name)
            line.append(f"{mean:.2f} ± {error:.2f} ({', '.join(f'{one:.2f}' for one in seeds)})")
        mine = [row for row in found if row["flow"] == flow]
        line.append(f"{max(row['khat_bad'] for row in mine):.0%}")
        line.append(f"{sum(row['cpu'] for row in mine) / len(mine):.0f}")
        lines.append(line)
    return lines


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    torch.set_num_threads(1)
    folder = ROOT / "out" / "benchmarks" if smoke else DOCS
    folder.mkdir(parents=True, exist_ok=True)
    data = flow_vae.load_data("digits")
    images = flow_vae.choose_preparation(data, flow_vae.Bernoulli(), "static").images(data)
    found, kept = [], {}
    for seed in range(1 if smoke else 3):
        for flow in FLOWS:
            vae, row = measure(flow, seed, images, 1 if smoke else EPOCHS)
            found.append(row)
            kept.setdefault(flow, vae)
            print(flow or "none", seed, mean_of([row], flow, "negative_elbo"), flush=True)
    plain, bent = (torch.tensor(found[i]["negative_elbo"]) for i in (0, 1))
    most = int((plain - bent).argmax())
    for name, flow in (("gaussian", None), ("flow", FLOWS[1])):
        figure = flow_vae.plot_posterior(kept[flow], images[2][most : most + 1])
        figure.savefig(folder / f"vae_digits_2d_{name}.png")
    env = environment()
    header = [
        "flow", "-ELBO", "saved (by seed)", f"NLL({SAMPLES})", "saved (by seed)",
        "k-hat too large", "CPU s",
    ]  # fmt: skip
    body = f"""
The 8 x 8 digits of scikit-learn, binarised once, {len(images[0])} to train; gated dense nets of
{WIDTH} units, latent size 2, {EPOCHS} epochs of Adam at {RATE}. Nats per image on
{len(images[2])} test images, means over {len({row["seed"] for row in found})} seeds, the best epoch
by the validation images. Saved: -ELBO (of {DRAWS} draws) or NLL without a flow less that with it,
image by image; ± is the standard error over images of the means over seeds.

{table(header, lines_of(found))}

A posterior of the test image on which {FLOWS[1]} saves most, seed 0: the Gaussian (lines) and the
exact one (areas):

![Gaussian](vae_digits_2d_gaussian.png)

The flow's:

![Flow](vae_digits_2d_flow.png)

{in_words(env)} `python benchmarks/vae/digits_2d.py` writes this page.
"""
    results = {"environment": env, "image": most, "found": found}
    print(write("vae_digits_2d", "Digits in two dimensions", results, body, folder))


if __name__ == "__main__":
    main()
