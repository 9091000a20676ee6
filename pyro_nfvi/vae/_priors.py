"""Priors of a VAE with parameters of their own: a mixture of Gaussians, and of posteriors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_nfvi._autocast import full_precision, lift
from pyro_nfvi._math import standard_normal_log_prob
from pyro_nfvi._random import seeded
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import DataError, OptionError
from pyro_nfvi.vae._generative_model import GenerativeModel
from pyro_nfvi.vae._posterior import Posterior


class Prior(nn.Module, ABC):
    """Priors of the latents; one of your own defines ``log_prob`` and ``sample``.

    Its parameters are trained with the VAE's.

    Attributes:
        dim: Latent size D.
    """

    dim: int

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of points, ``(*b, D) -> (*b,)``, in nats, differentiable."""

    @abstractmethod
    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw points ``(n, D)``."""

    def bind(self, vae: GenerativeModel) -> None:
        """Get to know the VAE, at its construction."""

    def distribution(self, rows: int) -> TorchDistribution:
        """Return the prior for ``pyro.sample``: batch shape ``(rows,)``, event shape ``(D,)``."""
        return _PriorDistribution(self, torch.Size((rows,)))


class _PriorDistribution(TorchDistribution):
    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(self, prior: Prior, batch: torch.Size) -> None:
        self.prior = prior
        super().__init__(batch, torch.Size((prior.dim,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _PriorDistribution:
        """Return the distribution with another batch shape."""
        return _PriorDistribution(self.prior, torch.Size(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw ``(*sample, *batch, D)``."""
        shape = (*sample_shape, *self.batch_shape)
        count = int(torch.Size(shape).numel())
        with torch.no_grad():
            return self.prior.sample(count).reshape(*shape, self.prior.dim)

    def log_prob(self, value: Tensor) -> Tensor:
        """Score ``(*sample, *batch, D)``."""
        return self.prior.log_prob(value)


class MixturePrior(Prior):
    r"""A mixture of K Gaussians with diagonal covariances.

    .. math:: p(z) = \sum_k w_k\, N(z; m_k, \mathrm{diag}\, s_k^2)

    By name: ``FlowVAE(..., prior="mixture*10")``.

    Args:
        dim: Latent size D.
        components: Number K; the locations begin as draws of a standard normal.
        seed: Of these draws.

    Source: Dilokthanakul et al. 2016, arXiv:1611.02648.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import MixturePrior
        >>> MixturePrior(2, components=5).log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    def __init__(self, dim: int, components: int = 10, seed: int = 0) -> None:
        super().__init__()
        self.dim = whole("MixturePrior: dim", dim)
        count = whole("MixturePrior: components", components)
        with seeded(seed, "mixture prior"):
            self.loc = nn.Parameter(torch.randn(count, dim))
        self.log_scale = nn.Parameter(torch.zeros(count, dim))
        self.logits = nn.Parameter(torch.zeros(count))

    @full_precision
    def log_prob(self, z: Tensor) -> Tensor:
        loc, log_scale = lift(self.loc), lift(self.log_scale)
        noise = (lift(z).unsqueeze(-2) - loc) * (-log_scale).exp()
        each = (standard_normal_log_prob(noise) - log_scale).sum(-1)
        return torch.logsumexp(each + torch.log_softmax(lift(self.logits), 0), -1)

    @full_precision
    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        weights = torch.softmax(lift(self.logits), 0)
        chosen = torch.multinomial(weights, num_samples, replacement=True, generator=generator)
        loc = lift(self.loc)
        noise = torch.randn(
            num_samples, self.dim, dtype=loc.dtype, device=loc.device, generator=generator
        )
        return loc[chosen] + lift(self.log_scale)[chosen].exp() * noise


class VampPrior(Prior):
    r"""The mixture of the posteriors of K pseudo-images, which are trained.

    .. math:: p(z) = \frac1K \sum_k q(z \mid u_k)

    The posteriors are the VAE's own, flow included.

    Args:
        start: Pseudo-images to begin with ``(K, *shape)``, as the encoder sees them, such as the
            first 500 images of the data.
        latent_dim: D.
        bounds: Bounds between which pseudo-images stay, such as ``(0.0, 1.0)`` for pixels; None for
            none.

    Cost:
        A point is scored under K posteriors: K inverses of the flow for each, which are cheap
        without one and for planar and Sylvester flows, and D passes each for ``iaf``.

    Raises:
        OptionError: The VAE is conditional.
        DataError: Pseudo-images that are none, or outside of the bounds.

    Source: Tomczak and Welling 2018, arXiv:1705.07120.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import DenseDecoder, DenseEncoder, FlowVAE, VampPrior
        >>> x = torch.bernoulli(torch.full((30, 8), 0.5))
        >>> prior = VampPrior(x[:5], latent_dim=2)
        >>> encoder, decoder = DenseEncoder((8,), 2, (16,)), DenseDecoder(2, (8,), (16,))
        >>> vae = FlowVAE(encoder, decoder, latent_dim=2, flow=None, prior=prior)
        >>> vae.elbo(x).bound.shape
        torch.Size([30])
    """

    def __init__(
        self, start: Tensor, latent_dim: int, bounds: tuple[float, float] | None = (0.0, 1.0)
    ) -> None:
        super().__init__()
        self.dim = whole("VampPrior: latent_dim", latent_dim)
        self.bounds = bounds
        if not isinstance(start, Tensor) or start.dim() < 2 or not len(start):
            raise DataError("VampPrior begins with pseudo-images, a tensor (K, *shape).")
        real = start.detach().clone()
        real = real if real.is_floating_point() else real.to(torch.get_default_dtype())
        if bounds is not None and bool(((real < bounds[0]) | (real > bounds[1])).any()):
            raise DataError(
                f"VampPrior: pseudo-images are from {float(real.min()):g} to "
                f"{float(real.max()):g}, outside of the bounds {bounds}. Pass others, or None."
            )
        self.pseudo = nn.Parameter(real)

    def bind(self, vae: GenerativeModel) -> None:
        if getattr(vae, "condition_dim", 0):
            raise OptionError("A VampPrior has no labels: take another prior for condition_dim.")
        if vae.latent_dim != self.dim:
            raise OptionError(f"VampPrior has latent_dim={self.dim}, the VAE {vae.latent_dim}.")
        # Not as a part: the VAE's parameters are not the prior's.
        self.__dict__["_vae"] = vae

    def _posterior(self) -> Posterior:
        vae = self.__dict__.get("_vae")
        if vae is None:
            raise OptionError("This VampPrior belongs to no VAE: pass it to FlowVAE(prior=...).")
        images = self.pseudo if self.bounds is None else self.pseudo.clamp(*self.bounds)
        found: Posterior = vae.posterior_of(images)
        return found

    @full_precision
    def log_prob(self, z: Tensor) -> Tensor:
        posterior = self._posterior()
        count = len(posterior)
        rows = lift(z).reshape(-1, 1, self.dim).expand(-1, count, -1)
        each = posterior.log_prob(rows)
        mean = torch.logsumexp(each, -1) - torch.log(each.new_tensor(float(count)))
        return mean.reshape(z.shape[:-1])

    @full_precision
    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        posterior = self._posterior()
        device = posterior.loc.device
        shape = (num_samples,)
        chosen = torch.randint(len(posterior), shape, device=device, generator=generator)
        noise = posterior.noise(num_samples, generator=generator)[:, 0]
        some = posterior.rows(chosen)
        return some.push(noise).z
