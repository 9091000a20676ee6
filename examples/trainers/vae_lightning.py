"""A flow VAE with Lightning, by two processes: python examples/trainers/vae_lightning.py."""

import lightning
import torch
from torch.utils.data import DataLoader

from pyro_nfvi.vae import DenseDecoder, DenseEncoder, FlowVAE


class Lit(lightning.LightningModule):
    """A flow VAE as Lightning trains it."""

    def __init__(self):
        super().__init__()
        encoder = DenseEncoder((16,), latent_dim=2, hidden=(32,), context_dim=32)
        self.vae = FlowVAE(encoder, DenseDecoder(2, (16,), hidden=(32,)), 2, 32, "planar*2")

    def training_step(self, x, index):
        loss = self.vae(x)
        self.log("bound", loss.bound.mean())
        return loss.surrogate.mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


if __name__ == "__main__":
    data = torch.bernoulli(torch.full((200, 16), 0.3))
    lightning.seed_everything(0)
    module = Lit()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, 20))
    print(f"{trainer.global_rank}: {sum(float(p.detach().sum()) for p in module.parameters()):.6f}")
