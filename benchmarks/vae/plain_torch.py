"""VAEs in plain PyTorch, as one writes them after the papers: the rivals of speed.py.

Gated dense nets of two linear layers each, log densities by hand, the library's cross entropy.
Flows as their papers say: planar and Sylvester parameters linear in the encoder's last layer,
Sylvester's matrices orthogonalised by iteration, IAF by masked layers that see that layer too.

Source: Rezende and Mohamed 2015, arXiv:1505.05770; Kingma et al. 2016, arXiv:1606.04934; van den
Berg et al. 2018, arXiv:1803.05649, section 4.1.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Gated(nn.Module):
    """A linear layer times a gate of its own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.value, self.gate = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.value(x) * torch.sigmoid(self.gate(x))


class Planar(nn.Module):
    """Planar layers whose parameters are linear in the context."""

    def __init__(self, dim, context, count):
        super().__init__()
        self.dim, self.count = dim, count
        self.u, self.w = nn.Linear(context, dim * count), nn.Linear(context, dim * count)
        self.b = nn.Linear(context, count)

    def forward(self, z, h):
        u, w = (net(h).view(len(h), self.count, self.dim) for net in (self.u, self.w))
        b, total = self.b(h), 0.0
        for k in range(self.count):
            uw = (u[:, k] * w[:, k]).sum(-1, keepdim=True)
            norm = w[:, k].square().sum(-1, keepdim=True)
            bent = u[:, k] + (F.softplus(uw) - 1 - uw) * w[:, k] / norm
            inner = torch.tanh((w[:, k] * z).sum(-1, keepdim=True) + b[:, k : k + 1])
            slope = (1 - inner.square()) * w[:, k]
            total = total + torch.log((1 + (slope * bent).sum(-1)).abs())
            z = z + bent * inner
        return z, total


class Masked(nn.Linear):
    """A linear layer that sees the inputs of lower degrees."""

    def __init__(self, degrees_in, degrees_out, *, strict):
        super().__init__(len(degrees_in), len(degrees_out))
        low, high = degrees_in[None, :], degrees_out[:, None]
        self.register_buffer("mask", ((low < high) if strict else (low <= high)).float())

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


class IAF(nn.Module):
    """Inverse autoregressive layers with the papers' gate."""

    def __init__(self, dim, context, count, hidden):
        super().__init__()
        order = torch.arange(1, dim + 1)
        inner = torch.arange(hidden) % (dim - 1) + 1
        self.steps = nn.ModuleList()
        for _ in range(count):
            self.steps.append(
                nn.ModuleList([
                    Masked(order, inner, strict=False), nn.Linear(context, hidden),
                    Masked(inner, inner, strict=False),
                    Masked(inner, order, strict=True), Masked(inner, order, strict=True),
                ])
            )  # fmt: skip

    def forward(self, z, h):
        total = 0.0
        for first, seen, second, mean, gate in self.steps:
            code = F.elu(second(F.elu(first(z) + seen(h))))
            log_gate = F.logsigmoid(gate(code) + 1)
            kept = log_gate.exp()
            z = (kept * z + (1 - kept) * mean(code)).flip(-1)
            total = total + log_gate.sum(-1)
        return z, total


class Sylvester(nn.Module):
    """Orthogonal: Q (D, M) by iteration from the context, triangular R of size M."""

    def __init__(self, dim, context, count, rank):
        super().__init__()
        self.dim, self.count, self.rank = dim, count, rank
        self.q = nn.Linear(context, count * dim * rank)
        self.full = nn.Linear(context, count * rank * rank)
        self.one, self.two = (nn.Linear(context, count * rank) for _ in range(2))
        self.b = nn.Linear(context, count * rank)
        self.register_buffer("upper", torch.triu(torch.ones(rank, rank), 1))
        self.register_buffer("eye", torch.eye(rank))

    def orthogonal(self, q):
        q = q / q.flatten(-2).norm(dim=-1)[..., None, None]
        for _ in range(100):
            gram = q.mT @ q
            q = q @ (1.5 * self.eye - 0.5 * gram)
            if float((q.mT @ q - self.eye).flatten(-2).norm(dim=-1).max()) < 1e-6:
                break
        return q

    def forward(self, z, h):
        rows, k, m = len(h), self.count, self.rank
        q = self.orthogonal(self.q(h).view(rows, k, self.dim, m))
        full = self.full(h).view(rows, k, m, m)
        one, two = (torch.tanh(net(h)).view(rows, k, m) for net in (self.one, self.two))
        r1 = full * self.upper + torch.diag_embed(one)
        r2 = full.mT * self.upper + torch.diag_embed(two)
        b, total = self.b(h).view(rows, k, m), 0.0
        for i in range(k):
            inner = torch.einsum("bdm,bd->bm", q[:, i], z)
            code = torch.tanh(torch.einsum("bmn,bn->bm", r2[:, i], inner) + b[:, i])
            z = z + torch.einsum("bdm,bm->bd", q[:, i], torch.einsum("bmn,bn->bm", r1[:, i], code))
            total = total + torch.log((1 + (1 - code.square()) * one[:, i] * two[:, i]).abs()).sum(
                -1
            )
        return z, total


class PlainVAE(nn.Module):
    """The VAE; calling it gives its loss."""

    def __init__(self, pixels, latent, width, flow=None):
        super().__init__()
        self.encoder = nn.Sequential(Gated(pixels, width), Gated(width, width))
        self.loc, self.raw = nn.Linear(width, latent), nn.Linear(width, latent)
        self.flow = flow
        self.decoder = nn.Sequential(
            Gated(latent, width), Gated(width, width), nn.Linear(width, pixels)
        )

    def forward(self, x):
        """The negative ELBO of a batch, nats per image; constants of the densities cancel."""
        x = x.flatten(1)
        h = self.encoder(x)
        loc, scale = self.loc(h), F.softplus(self.raw(h)) + 1e-4
        eps = torch.randn_like(loc)
        z = loc + scale * eps
        log_q = -(0.5 * eps.square() + scale.log()).sum(-1)
        if self.flow is not None:
            z, log_det = self.flow(z, h)
            log_q = log_q - log_det
        log_p = -0.5 * z.square().sum(-1)
        lost = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        return (lost + (log_q - log_p).sum()) / len(x)
