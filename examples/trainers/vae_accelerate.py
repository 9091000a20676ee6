"""A flow VAE with Accelerate: torchrun --nproc-per-node 2 examples/trainers/vae_accelerate.py."""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from pyro_nfvi.vae import DenseDecoder, DenseEncoder, FlowVAE

torch.manual_seed(0)
data = torch.bernoulli(torch.full((200, 16), 0.3))
encoder = DenseEncoder((16,), latent_dim=2, hidden=(32,), context_dim=32)
vae = FlowVAE(encoder, DenseDecoder(2, (16,), hidden=(32,)), 2, 32, "planar*2")
accelerator = Accelerator(cpu=True)
optimizer = torch.optim.Adam(vae.parameters(), lr=5e-3)
wrapped, optimizer, loader = accelerator.prepare(vae, optimizer, DataLoader(data, 20))
torch.manual_seed(accelerator.process_index)  # noise of its own in each process
for x in loader:
    optimizer.zero_grad()
    accelerator.backward(wrapped(x).surrogate.mean())
    optimizer.step()
print(f"{accelerator.process_index}: {sum(float(p.detach().sum()) for p in vae.parameters()):.6f}")
