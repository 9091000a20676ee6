"""A flow VAE under DDP: torchrun --nproc-per-node 2 examples/trainers/vae_ddp.py."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from pyro_nfvi.vae import DenseDecoder, DenseEncoder, FlowVAE

dist.init_process_group("gloo")
torch.manual_seed(0)
data = torch.bernoulli(torch.full((200, 16), 0.3))
encoder = DenseEncoder((16,), latent_dim=2, hidden=(32,), context_dim=32)
vae = FlowVAE(encoder, DenseDecoder(2, (16,), hidden=(32,)), 2, 32, "planar*2")
wrapped = DistributedDataParallel(vae)
optimizer = torch.optim.Adam(vae.parameters(), lr=5e-3)
torch.manual_seed(dist.get_rank())  # noise of its own in each process
for x in DataLoader(data, 20, sampler=DistributedSampler(data)):
    optimizer.zero_grad()
    wrapped(x).surrogate.mean().backward()
    optimizer.step()
print(f"{dist.get_rank()}: {sum(float(p.detach().sum()) for p in vae.parameters()):.6f}")
dist.destroy_process_group()
