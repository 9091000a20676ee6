"""The prior of a hierarchical VAE: an upper layer, and a lower one given it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_nfvi._autocast import full_precision, lift
from pyro_nfvi._math import soft_clamp, standard_normal_log_prob
from pyro_nfvi._nn.mlp import MLP
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.vae._priors import Prior
from pyro_nfvi.vae._recipe import NETWORKS


class HierarchicalPrior(Prior):
    r"""The prior :math:`p(z_2)\, N(z_1; m(z_2), \mathrm{diag}\, s^2(z_2))`.

    A net with one hidden layer and a linear skip gives m and log s (bounded smoothly at 5); it
    starts at an orthogonal map of the upper layer and scales of one.

    Args:
        sizes: Sizes ``(D1, D2)`` of lower and upper layer; points are ``(lower, upper)``.
        upper: Prior of the upper layer; None for the standard normal.
        hidden: Width of the net.
    """

    def __init__(
        self, sizes: tuple[int, int], upper: FlowDensity | Prior | None, *, hidden: int
    ) -> None:
        super().__init__()
        self.sizes, self.dim = sizes, sum(sizes)
        self.upper = upper
        self.net = MLP(sizes[1], 2 * sizes[0], hidden=(hidden,))
        # At zero the upper layer would get no gradient, and would stay unused.
        assert self.net.skip is not None
        nn.init.orthogonal_(self.net.skip.weight[: sizes[0]])

    def _given(self, upper: Tensor) -> TensorPair:
        loc, raw = self.net(upper).chunk(2, -1)
        return loc, soft_clamp(raw, NETWORKS.log_scale)

    @full_precision
    def parts(self, z: Tensor) -> TensorPair:
        """Return ``(log p(z_1 | z_2), log p(z_2))``, in nats."""
        lower, upper = lift(z).split(self.sizes, -1)
        loc, log_scale = self._given(upper)
        noise = (lower - loc) * (-log_scale).exp()
        given = (standard_normal_log_prob(noise) - log_scale).sum(-1)
        if self.upper is None:
            return given, standard_normal_log_prob(upper).sum(-1)
        return given, self.upper.log_prob(upper)

    def log_prob(self, z: Tensor) -> Tensor:
        lower, upper = self.parts(z)
        return lower + upper

    @full_precision
    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        like = next(self.net.parameters())

        def noise(size: int) -> Tensor:
            return torch.randn(
                num_samples, size, dtype=like.dtype, device=like.device, generator=generator
            )

        if isinstance(self.upper, Prior):
            upper = self.upper.sample(num_samples, generator=generator)
        else:
            upper = noise(self.sizes[1])
            upper = upper if self.upper is None else self.upper.push(upper)[0]
        loc, log_scale = self._given(upper)
        return torch.cat([loc + log_scale.exp() * noise(self.sizes[0]), upper], -1)
