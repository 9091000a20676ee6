"""A log density with its gradient, in double precision whatever the model computes in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_nfvi._typing import TensorTriple

__all__ = ["Target"]


class Target:
    r"""A log density of row vectors, with gradients; rows that cannot be scored are marked.

    The arithmetic of the Gaussians around it is in float64; the density is called in its own
    dtype.

    Args:
        log_density: ``(N, D) -> (N,)``, in nats, differentiable, rows independent.
        like: Any tensor of the dtype and device that the density takes.

    Cost:
        One forward and one backward pass of the density for each call.

    Example:
        >>> import torch
        >>> from pyro_nfvi.gaussian import Target
        >>> target = Target(lambda z: -0.5 * z.square().sum(-1), torch.zeros(2))
        >>> log_p, score, ok = target(torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]))
        >>> score[0].tolist(), ok.tolist()
        ([-1.0, -2.0], [True, False])
    """

    def __init__(self, log_density: Callable[[Tensor], Tensor], like: Tensor) -> None:
        self.log_density = log_density
        self.dtype, self.device = like.dtype, like.device
        #: Rows evaluated so far, each with its gradient.
        self.num_rows = 0

    def __call__(self, z: Tensor) -> TensorTriple:
        """Evaluate ``z (*b, D)``: log density ``(*b,)``, score ``(*b, D)``, and which are finite.

        Rows that are not finite have score 0 and log density -inf.
        """
        rows = z.reshape(-1, z.shape[-1]).detach().to(self.dtype).requires_grad_()
        self.num_rows += len(rows)
        with torch.enable_grad():
            log_p = self.log_density(rows)
            (score,) = torch.autograd.grad(log_p.sum(), rows)
        log_p, score = log_p.detach().double(), score.double()
        ok = torch.isfinite(log_p) & torch.isfinite(score).all(-1)
        log_p = torch.where(ok, log_p, torch.full_like(log_p, -torch.inf))
        score = torch.where(ok.unsqueeze(-1), score, torch.zeros_like(score))
        batch = z.shape[:-1]
        return log_p.reshape(batch), score.reshape(z.shape), ok.reshape(batch)
