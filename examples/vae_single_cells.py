"""Single cells: counts of genes from two laboratories, negative binomial, with library sizes.

The counts are simulated: five kinds of cells, each along a curve of states, in two batches whose
genes are read with factors of their own. The VAE sees the batch as a covariate. Numbers on cells
that it was not trained on: how well k-means on its latent means finds the kinds (adjusted Rand
index, 1 for all) and how far the laboratories mix, with and without the batch; and the nats of a
cell that the flow saves, and that zero inflation does, paired.

Needs scikit-learn for k-means: pip install 'pyro-nfvi[vae]'.
"""

import matplotlib.pyplot as plt
import torch
from _cli import check, options
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import pyro_nfvi as nfvi

GENES, KINDS, LATENT, WIDTH = 120, 5, 5, 64


def simulate(cells, seed):
    """Counts ``(cells, GENES)``, batches and kinds ``(cells,)``."""
    world = torch.Generator().manual_seed(0)  # genes are the same for every seed
    centres = 2.0 * torch.eye(KINDS)
    loadings = 0.7 * torch.randn(KINDS + 2, GENES, generator=world)
    base = torch.randn(GENES, generator=world)
    factor = 1.0 * torch.randn(2, GENES, generator=world)  # of a laboratory
    dispersion = torch.exp(0.5 + 0.5 * torch.randn(GENES, generator=world))
    ours = torch.Generator().manual_seed(seed)
    kind = torch.randint(KINDS, (cells,), generator=ours)
    batch = torch.randint(2, (cells,), generator=ours)
    angle = 2 * torch.randn(cells, 1, generator=ours)
    state = torch.cat([centres[kind], 0.7 * angle.sin(), 0.7 * angle.cos()], -1)
    share = torch.softmax(state @ loadings + base + factor[batch], -1)
    size = torch.exp(5.3 + 0.4 * torch.randn(cells, 1, generator=ours))
    torch.manual_seed(seed)  # distributions draw from torch's own state
    rate = torch.distributions.Gamma(dispersion, dispersion / (size * share)).sample()
    return torch.poisson(rate), batch, kind


def train(counts, batch, flow, likelihood, epochs):
    """Train on nine tenths; the rest chooses the epoch. Without a batch nothing is conditional."""
    torch.manual_seed(0)
    labels = {"condition_dim": 0 if batch is None else 2}
    encoder = nfvi.vae.DenseEncoder((GENES,), LATENT, (WIDTH,), context_dim=WIDTH, **labels)
    decoder = nfvi.vae.DenseDecoder(
        LATENT, (GENES,), (WIDTH,), num_params=likelihood.num_params, **labels
    )
    vae = nfvi.vae.FlowVAE(
        encoder, decoder, LATENT, WIDTH, flow, likelihood, **labels
    )  # fmt: skip
    held = len(counts) // 10

    def part(rows):
        return counts[rows] if batch is None else (counts[rows], batch[rows])

    nfvi.vae.fit(
        vae, part(slice(held, None)), valid=part(slice(held)), epochs=epochs, lr=3e-3,
        scheduler=lambda one: torch.optim.lr_scheduler.CosineAnnealingLR(one, epochs),
        progress=False,
    )  # fmt: skip
    return vae


def bound(vae, counts, batch):
    """-ELBO of each cell, 50 draws, the same noise for every VAE."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        return -vae.elbo(counts, batch, num_samples=50, generator=generator).bound.double()


def saved(worse, better):
    """Mean difference over cells and its paired standard error."""
    apart = worse - better
    return float(apart.mean()), float(apart.std()) / len(apart) ** 0.5


def kinds_found(latent, kind):
    """Adjusted Rand index of k-means; that of the labels against themselves is 1."""
    found = KMeans(KINDS, n_init=10, random_state=0).fit_predict(latent.numpy())
    return float(adjusted_rand_score(kind.numpy(), found))


def from_own_laboratory(latent, batch, neighbours=15):
    """Share of a cell's nearest neighbours that are of its own laboratory: 1/2 where they mix."""
    near = torch.cdist(latent, latent).topk(neighbours + 1, largest=False).indices[:, 1:]
    return float((batch[near] == batch[:, None]).double().mean())


def main():
    run = options(__doc__, "vae_single_cells")
    torch.set_default_dtype(torch.float32)
    epochs = 1 if run.smoke else 40
    counts, batch, _ = simulate(300 if run.smoke else 1500, seed=1)
    new, new_batch, kind = simulate(100 if run.smoke else 600, seed=2)
    library = float(counts.sum(1).median())
    cells = nfvi.vae.NegativeBinomial(library)
    flow = train(counts, batch, "planar*8", cells, epochs)
    plain = train(counts, batch, None, cells, epochs)
    zeros = train(counts, batch, "planar*8", nfvi.vae.ZeroInflatedNegativeBinomial(library), epochs)
    blind = train(counts, None, "planar*8", cells, epochs)
    latent = flow.get_latent(new, new_batch)
    score = kinds_found(latent, kind)
    for name, found in (("with", latent), ("without", blind.get_latent(new))):
        print(
            f"{name} the batch: kinds found {kinds_found(found, kind):.2f}, neighbours from the "
            f"own laboratory {from_own_laboratory(found, new_batch):.2f}"
        )
    ours = bound(flow, new, new_batch)
    for name, other in (("no flow", plain), ("zero inflation, flow", zeros)):
        mean, error = saved(bound(other, new, new_batch), ours)
        print(f"-ELBO of {name} minus that of planar*8: {mean:+.2f} ± {error:.2f} nats (paired)")
    shown = torch.pca_lowrank(latent - latent.mean(0), 2)[2]
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained", sharey=True)
    for axis, color, title in zip(axes, (kind, new_batch), ("kind", "laboratory"), strict=True):
        axis.scatter(*((latent - latent.mean(0)) @ shown).T, c=color, s=6, cmap="tab10")
        axis.set_title(f"Latent means by {title}")
    figure.savefig(run.out / "latent.png")
    check("kinds found", score, 0.8, 1.0, smoke=run.smoke)
    print(f"picture: {run.out / 'latent.png'}")


if __name__ == "__main__":
    main()
