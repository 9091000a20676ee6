"""A flow VAE on 8 x 8 handwritten digits, trained through Pyro's SVI, judged by its NLL.

The number: nats that a flow saves on test images against the plain VAE, by importance sampling.
Needs scikit-learn for the digits: pip install 'pyro-nfvi[vae]'.
"""

import matplotlib.pyplot as plt
import pyro
import torch
from _cli import check, options
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from pyro_nfvi.vae import (
    Bernoulli,
    DenseDecoder,
    DenseEncoder,
    FlowVAE,
    choose_preparation,
    load_data,
    plot_reconstructions,
    plot_samples,
)

LATENT, WIDTH = 10, 100


def make(flow):
    torch.manual_seed(0)
    encoder = DenseEncoder((8, 8), LATENT, (WIDTH,), context_dim=WIDTH)
    decoder = DenseDecoder(LATENT, (8, 8), (WIDTH,))
    return FlowVAE(encoder, decoder, LATENT, WIDTH, flow)


def main():
    run = options(__doc__, "vae_digits")
    torch.set_default_dtype(torch.float32)  # as images are trained
    data = load_data("digits")
    pixels = choose_preparation(data, Bernoulli())
    train, _, test = pixels.images(data)
    epochs, images = (1, 20) if run.smoke else (60, 100)
    torch.manual_seed(0)
    rows = torch.randperm(len(test))[:images]  # the same images for both flows
    nll = {}
    for flow in ("none", "iaf*2"):
        pyro.clear_param_store()
        vae = make(flow)
        svi = SVI(vae.model, vae.guide, Adam({"lr": 2e-3}), Trace_ELBO())
        for epoch in range(epochs):
            loss = 0.0
            for batch in torch.randperm(len(train)).split(100):
                x = pixels.draw(train[batch], torch.rand(len(batch), 8, 8))
                loss += svi.step(x, num_data=len(train)) * len(batch) / len(train)
            if epoch % 20 == 0 or epoch == epochs - 1:
                print(f"{flow}: epoch {epoch + 1}, ELBO {-loss / len(train):.2f} nats per image")
        found = vae.nll(test[rows], num_samples=50 if run.smoke else 1000, first=rows.tolist())
        nll[flow] = found.value
        print(f"{flow}: {found}")  # with its effective draws and k-hat
    saved = nll["none"] - nll["iaf*2"]
    error = float(saved.std()) / len(saved) ** 0.5
    print(f"the flow saves {float(saved.mean()):.2f} ± {error:.2f} nats per image, paired")
    check("nats saved", float(saved.mean()), 0.0, 1.0, smoke=run.smoke)
    for name, figure in (
        ("reconstructions", plot_reconstructions(vae, test[:30])),
        ("samples", plot_samples(vae)),
    ):
        figure.savefig(run.out / f"{name}.png")
        plt.close(figure)
    print(f"pictures: {run.out}")


if __name__ == "__main__":
    main()
