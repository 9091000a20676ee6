"""The interface of a VAE's generative part, for functions that score images under it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from pyro_nfvi.vae._likelihoods import Likelihood
from pyro_nfvi.vae._posterior import Posterior


class GenerativeModel(Protocol):
    """A VAE: prior, decoder, likelihood, and the posterior that its encoder gives."""

    latent_dim: int
    likelihood: Likelihood
    decoder: nn.Module

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield its parameters."""

    def check(self, x: Tensor) -> Any:
        """Refuse images that it cannot describe."""

    def condition(self, y: Tensor | None, x: Tensor) -> Tensor | None:
        """Turn labels into rows ``(B, C)``."""

    def encode(self, x: Tensor, y: Tensor | None = None) -> Posterior:
        """Return the posteriors of images."""

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Return the likelihood's parameters, ``(*b, D) -> (*b, ...)``."""

    def prior_log_prob(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Return log densities of the prior, ``(*b, D) -> (*b,)``, in nats."""
