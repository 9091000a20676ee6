"""Semi-supervised digits: a model with a label that is summed out where it is not known.

An ordinary Pyro model: y ~ Categorical, z ~ N(0, I), x ~ Bernoulli(decoder(z, y)). The guide has a
classifier q(y | x), enumerated where the label is not observed, and q(z | x, y), a flow whose
context an encoder gives. Of 1297 digits 50 have a label. The number: right labels of test digits
that the rest adds, paired with the same model trained on the labelled digits alone.

Needs scikit-learn for the digits: pip install 'pyro-nfvi[vae]'.

Source: Kingma et al. 2014, arXiv:1406.5298, model M2.
"""

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from torch import nn

import pyro_nfvi as nfvi

LATENT, WIDTH, CLASSES, LABELLED, WEIGHT = 2, 64, 10, 50, 5.0


class Digits(nn.Module):
    """Model and guide; ``y`` is None where no label is known."""

    def __init__(self):
        super().__init__()
        self.decoder = nfvi.vae.DenseDecoder(LATENT, (64,), (WIDTH,), condition_dim=CLASSES)
        self.encoder = nfvi.vae.DenseEncoder(
            (64,), LATENT, (WIDTH,), context_dim=WIDTH, condition_dim=CLASSES
        )
        self.flow = nfvi.flows.make_flow("planar*4", LATENT, WIDTH)
        self.classifier = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))

    def model(self, x, y=None):
        pyro.module("digits", self)
        with pyro.plate("images", len(x)):
            label = pyro.sample("y", dist.Categorical(torch.ones(CLASSES)), obs=y)
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            logits = rowwise(self.decoder, z, label)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)
            if y is not None:  # the classifier learns from known labels too
                with poutine.scale(scale=WEIGHT):
                    pyro.sample("told", dist.Categorical(logits=self.classifier(x)), obs=y)

    def guide(self, x, y=None):
        with pyro.plate("images", len(x)):
            if y is None:
                q = dist.Categorical(logits=self.classifier(x))
                y = pyro.sample("y", q, infer={"enumerate": "parallel"})
            loc, spread, code = rowwise(self.encoder, x, y)
            base = dist.Normal(loc, spread).to_event(1)
            bent = dist.TransformedDistribution(base, [self.flow.condition(code)])
            pyro.sample("z", bent)


def rowwise(net, first, labels):
    """Call a net of rows; enumeration gives labels an axis in front."""
    one_hot = nn.functional.one_hot(labels, CLASSES).to(first)
    shape = torch.broadcast_shapes(first.shape[:-1], one_hot.shape[:-1])
    rows = (part.expand(*shape, part.shape[-1]).flatten(0, -2) for part in (first, one_hot))
    found = net(*rows)
    if isinstance(found, tuple):
        return tuple(part.unflatten(0, shape) for part in found)
    return found.unflatten(0, shape)


def train(labelled, unlabelled, epochs, seed):
    """Train; without unlabelled digits the model is supervised alone, for as many steps."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    digits = Digits()
    optim = pyro.optim.ClippedAdam({"lr": 3e-3, "lrd": 0.1 ** (1 / (epochs * 13))})
    svi = SVI(digits.model, digits.guide, optim, TraceEnum_ELBO(max_plate_nesting=1))
    x, y = labelled
    for _ in range(epochs):
        for rows in torch.randperm(1247).split(100):
            if unlabelled is not None:
                svi.step(unlabelled[rows])
            svi.step(x, y)
    return digits


def main():
    run = options(__doc__, "vae_semi_supervised")
    torch.set_default_dtype(torch.float32)
    data = nfvi.vae.load_data("digits")
    pixels = nfvi.vae.choose_preparation(data, nfvi.vae.Bernoulli(), "static")
    train_x, _, test_x = (part.flatten(1) for part in pixels.images(data))
    train_y, _, test_y = data.labels
    epochs, seeds = (1, 1) if run.smoke else (80, 3)
    gains = []
    for seed in range(seeds):
        order = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(seed))
        known, rest = order[:LABELLED], order[LABELLED:]
        labelled = (train_x[known], train_y[known])
        right = {}
        for name, unlabelled in (("supervised only", None), ("semi-supervised", train_x[rest])):
            digits = train(labelled, unlabelled, epochs, seed)
            found = digits.classifier(test_x).argmax(-1)
            right[name] = (found == test_y).double()
            print(f"seed {seed}, {name}: {right[name].mean():.1%} of test digits right")
        gains.append(right["semi-supervised"] - right["supervised only"])
    each = torch.stack(gains).mean(0)
    error = float(each.std()) / len(each) ** 0.5
    print(f"more by the digits without labels: {each.mean():+.1%} ± {error:.1%} (paired)")
    check("share more", float(each.mean()) - 2 * error, 0.0, 1.0, smoke=run.smoke)
    z = torch.randn(1, CLASSES, LATENT).expand(4, -1, -1) * torch.linspace(0, 1, 4)[:, None, None]
    with torch.no_grad():
        logits = rowwise(digits.decoder, z, torch.arange(CLASSES))
        drawn = torch.sigmoid(logits).reshape(4, CLASSES, 8, 8)
    figure, axis = plt.subplots(figsize=(5, 2.2), layout="constrained")
    axis.imshow(drawn.permute(0, 2, 1, 3).reshape(32, 80), cmap="gray")
    axis.set_axis_off()
    axis.set_title("A column for each label, a row for each style")
    figure.savefig(run.out / "labels.png")
    print(f"picture: {run.out / 'labels.png'}")


if __name__ == "__main__":
    main()
