"""Base distributions with parameters of their own, for :class:`pyro_nfvi.FlowDensity`."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_nfvi._autocast import in_full_precision
from pyro_nfvi._math import log_gamma_step, soft_clamp, standard_normal_log_prob
from pyro_nfvi._validation import number, sizes, whole
from pyro_nfvi.distributions._recipe import BASES as RECIPE
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows._affine import DiagonalAffine, LowerTriangular
from pyro_nfvi.flows._base import Flow

Shape = int | Sequence[int]


class Base(nn.Module, ABC):
    """Noise over vectors of size D whose shape is learned: parameters, draws and a density.

    A base of your own defines ``rsample`` and ``log_prob``.

    Args:
        dim: Event size D.

    Shape:
        Draws are ``(*shape, D)``, log densities of ``(*b, D)`` are ``(*b,)``, in nats.

    Raises:
        OptionError: ``dim`` is not an integer of at least 1.
    """

    #: Whether it is known to be symmetric about its location.
    symmetric = False
    #: Whether its points are angles, the same a whole turn further.
    periodic = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        in_full_precision(cls, ("rsample", "log_prob"))

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = whole(f"{type(self).__name__}: dim", dim)

    @property
    def event_shape(self) -> torch.Size:
        """``(D,)``, as distributions have it."""
        return torch.Size((self.dim,))

    @abstractmethod
    def rsample(self, shape: Shape = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``(*shape, D)``, differentiable in the parameters where the class says so."""

    @abstractmethod
    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, ``(*b, D) -> (*b,)``."""

    def sample(self, shape: Shape = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw without gradient."""
        with torch.no_grad():
            return self.rsample(shape, generator=generator)

    def divide(self) -> tuple[Flow | None, Base | None]:
        """Return ``(map, noise)``: a map that trains, behind noise whose shape is held; both new.

        Location, scale and correlations are the map; degrees of freedom and mixtures, which
        cannot be one, stay in the noise. None stands for the identity and the standard normal.
        """
        return None, _held(self)

    def enter(self, value: Tensor) -> None:
        """Raise unless a value is a tensor ``(*b, D)``; a narrower one would broadcast."""
        if not isinstance(value, Tensor) or value.shape[-1:] != (self.dim,):
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(f"{type(self).__name__} needs values (*b, {self.dim}); got {came}.")

    # So that functional_call can score with other parameters.
    def forward(self, value: Tensor) -> Tensor:
        """Score a value, as ``log_prob`` does."""
        return self.log_prob(value)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class _LocationScale(Base):
    """Location and bounded scale per coordinate around a standard distribution."""

    symmetric = True

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    @abstractmethod
    def _standard_sample(
        self, size: tuple[int, ...], generator: torch.Generator | None
    ) -> Tensor: ...

    @abstractmethod
    def _standard_log_prob(self, t: Tensor) -> Tensor:
        """Log density per coordinate."""

    def divide(self) -> tuple[Flow | None, Base | None]:
        place = DiagonalAffine(self.dim).to(self.loc)
        with torch.no_grad():
            place.set_affine(self.loc, _bounded(self.log_scale).exp())
        noise = _held(self)
        for name in ("loc", "log_scale"):
            noise.get_buffer(name).zero_()
        return place, noise

    def rsample(self, shape: Shape = (), *, generator: torch.Generator | None = None) -> Tensor:
        standard = self._standard_sample((*sizes(shape), self.dim), generator)
        return self.loc + _bounded(self.log_scale).exp() * standard

    def log_prob(self, value: Tensor) -> Tensor:
        self.enter(value)
        log_scale = _bounded(self.log_scale)
        t = (value - self.loc) * (-log_scale).exp()
        return (self._standard_log_prob(t) - log_scale).sum(-1)


@final
class DiagonalNormal(_LocationScale):
    r"""Independent normals with learned location and scale; the standard normal at the start.

    .. math:: \log q_0(\varepsilon) = \sum_i \log N(\varepsilon_i; \mu_i, \sigma_i^2)

    Args:
        dim: Event size D.

    Cost:
        O(D) per draw and score.

    Example:
        >>> import torch
        >>> from pyro_nfvi.distributions import DiagonalNormal
        >>> round(float(DiagonalNormal(2).log_prob(torch.zeros(2)).detach()), 4)
        -1.8379
    """

    def divide(self) -> tuple[Flow | None, Base | None]:
        return super().divide()[0], None

    def _standard_sample(self, size: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return _randn(size, self.loc, generator)

    def _standard_log_prob(self, t: Tensor) -> Tensor:
        return standard_normal_log_prob(t)


@final
class Logistic(_LocationScale):
    r"""Independent logistics with learned location and scale: heavier than normal, and smooth.

    .. math:: \log q_0(\varepsilon) = \sum_i -t_i - 2\,\mathrm{softplus}(-t_i) - \log\sigma_i,
        \qquad t_i = (\varepsilon_i - \mu_i)/\sigma_i

    Args:
        dim: Event size D.

    Cost:
        O(D) per draw and score.

    Source: Dinh et al. 2015, arXiv:1410.8516, section 3.4 (NICE's prior, standard there).

    Example:
        >>> import torch
        >>> from pyro_nfvi.distributions import Logistic
        >>> round(float(Logistic(1).log_prob(torch.zeros(1)).detach()), 4)  # log(1/4)
        -1.3863
    """

    def _standard_sample(self, size: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        # The midpoints of a grid finer than the dtype near 1/2: neither end is ever drawn.
        tiny = torch.finfo(self.loc.dtype).eps
        u = torch.empty(size, dtype=self.loc.dtype, device=self.loc.device)
        u = u.uniform_(generator=generator).clamp(tiny, 1 - tiny)
        return u.log() - torch.log1p(-u)

    def _standard_log_prob(self, t: Tensor) -> Tensor:
        # Symmetric: written in |t|, so that nothing cancels.
        return -t.abs() - 2 * F.softplus(-t.abs())


@final
class StudentT(_LocationScale):
    r"""Independent Student t's whose degrees of freedom are learned, one per coordinate.

    A flow that is asymptotically linear keeps the tails of its base; this is how a density gets
    heavy ones.

    .. math:: \nu_i = 1 + \mathrm{softplus}(r_i), \qquad
        \log q_0 = \sum_i \log\frac{\Gamma(\frac{\nu+1}2)}{\Gamma(\frac\nu2)\sqrt{\nu\pi}}
        - \frac{\nu+1}2 \log\Bigl(1 + \frac{t_i^2}{\nu}\Bigr) - \log\sigma_i

    Args:
        dim: Event size D.
        df: Degrees of freedom at the start, above 1: a number or D numbers.

    Cost:
        O(D) per draw and score. Draws carry gradients to the degrees of freedom (implicit
        gradients of the gamma distribution).

    Raises:
        OptionError: ``df`` is not above 1, or of another length.

    Source: Jaini et al. 2020, arXiv:1907.04481 (tails pass through Lipschitz maps); Laszkiewicz
    et al. 2022, arXiv:2206.10311 (one tail per coordinate).

    Example:
        >>> import torch
        >>> from pyro_nfvi.distributions import StudentT
        >>> base = StudentT(2, df=3.0)
        >>> [round(float(df), 3) for df in base.df.detach()]
        [3.0, 3.0]
    """

    def __init__(self, dim: int, *, df: float | Sequence[float] | Tensor = 10.0) -> None:
        super().__init__(dim)
        try:
            start = torch.as_tensor(df, dtype=torch.float64).detach()
        except (TypeError, ValueError, RuntimeError):
            start = torch.zeros(())  # refused below
        fits = start.shape in (torch.Size(), (dim,)) and bool((start > 1).all())
        if not (fits and bool(start.to(self.loc.dtype).isfinite().all())):
            raise OptionError(f"StudentT needs finite df above 1, one or {dim}; got {df!r}.")
        excess = start.expand(dim) - 1
        self.raw_df = nn.Parameter((excess + torch.log(-torch.expm1(-excess))).to(self.loc.dtype))

    @property
    def df(self) -> Tensor:
        """Degrees of freedom, ``(D,)``."""
        return 1 + F.softplus(self.raw_df)

    def _standard_sample(self, size: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        half = (0.5 * self.df).expand(size)
        gamma = torch._standard_gamma(half, generator=generator)
        gamma = gamma.clamp_min(torch.finfo(gamma.dtype).tiny)
        return _randn(size, self.loc, generator) * (half / gamma).sqrt()

    def _standard_log_prob(self, t: Tensor) -> Tensor:
        df = self.df
        constant = log_gamma_step(0.5 * df) - 0.5 * (df * math.pi).log()
        return constant - 0.5 * (df + 1) * torch.log1p(t.square() / df)


@final
class FullRankNormal(Base):
    r"""A normal with learned location and Cholesky factor; the standard normal at the start.

    .. math:: \log q_0(\varepsilon) = \log N(\varepsilon; \mu, L L^\top)

    Args:
        dim: Event size D.

    Cost:
        O(D^2) per draw and score.

    Example:
        >>> import torch
        >>> from pyro_nfvi.distributions import FullRankNormal
        >>> round(float(FullRankNormal(2).log_prob(torch.zeros(2)).detach()), 4)
        -1.8379
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_diagonal = nn.Parameter(torch.zeros(dim))
        self.lower = nn.Parameter(torch.zeros(dim, dim))

    @property
    def scale_tril(self) -> Tensor:
        """The Cholesky factor L, ``(D, D)``."""
        return self.lower.tril(-1) + torch.diag_embed(_bounded(self.log_diagonal).exp())

    def divide(self) -> tuple[Flow | None, Base | None]:
        place = LowerTriangular(self.dim).to(self.loc)
        with torch.no_grad():
            place.set_affine(self.loc, self.scale_tril)
        return place, None

    def rsample(self, shape: Shape = (), *, generator: torch.Generator | None = None) -> Tensor:
        standard = _randn((*sizes(shape), self.dim), self.loc, generator)
        return self.loc + standard @ self.scale_tril.mT

    def log_prob(self, value: Tensor) -> Tensor:
        self.enter(value)
        rest = (value - self.loc).unsqueeze(-1)
        t = torch.linalg.solve_triangular(self.scale_tril, rest, upper=False).squeeze(-1)
        return (standard_normal_log_prob(t) - _bounded(self.log_diagonal)).sum(-1)


@final
class GaussianMixture(Base):
    r"""A mixture of K normals with learned weights, locations and scales; its density is exact.

    .. math:: \log q_0(\varepsilon) =
        \log \sum_k \pi_k \prod_i N(\varepsilon_i; \mu_{ki}, \sigma_{ki}^2)

    Modes that lie apart need no bridge: a flow alone is a homeomorphism and cannot tear one
    normal into two pieces.

    Draws carry gradients to locations and scales, but **not to the weights**: which component a
    draw comes from is a choice, without a path. Maximum likelihood trains the weights exactly;
    under reverse KL they stay as they are.

    Args:
        dim: Event size D.
        num_components: K.
        spread: Standard deviation of the locations at the start. They start apart, since equal
            components get equal gradients for ever.

    Cost:
        O(D) per draw, O(K D) per score.

    Raises:
        OptionError: ``num_components`` is below 1.

    Example:
        >>> import torch
        >>> from pyro_nfvi.distributions import GaussianMixture
        >>> base = GaussianMixture(2, num_components=3)
        >>> base.rsample((5,)).shape, base.log_prob(torch.zeros(5, 2)).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(self, dim: int, num_components: int = 8, *, spread: float = 1.0) -> None:
        super().__init__(dim)
        self.num_components = num_components = whole(
            "GaussianMixture: num_components", num_components
        )
        number("GaussianMixture: spread", spread, least=0)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(spread * torch.randn(num_components, dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, dim))

    @property
    def weights(self) -> Tensor:
        """The weights of the components, ``(K,)``."""
        return torch.softmax(self.logits, -1)

    def rsample(self, shape: Shape = (), *, generator: torch.Generator | None = None) -> Tensor:
        size = sizes(shape)
        count = math.prod(size)
        if count == 0:
            return self.loc.new_zeros(*size, self.dim)
        chosen = torch.multinomial(
            self.weights.detach(), count, replacement=True, generator=generator
        )
        standard = _randn((count, self.dim), self.loc, generator)
        drawn = self.loc[chosen] + _bounded(self.log_scale)[chosen].exp() * standard
        return drawn.reshape(*size, self.dim)

    def log_prob(self, value: Tensor) -> Tensor:
        self.enter(value)
        log_scale = _bounded(self.log_scale)
        t = (value.unsqueeze(-2) - self.loc) * (-log_scale).exp()
        parts = (standard_normal_log_prob(t) - log_scale).sum(-1)
        return torch.logsumexp(torch.log_softmax(self.logits, -1) + parts, -1)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", num_components={self.num_components}"


def _held(base: Base) -> Base:
    """Return a copy whose parameters are buffers: saved with its state, trained by nobody."""
    copied = copy.deepcopy(base)
    for part in copied.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach())
    return copied


def _bounded(log_scale: Tensor) -> Tensor:
    return soft_clamp(log_scale, RECIPE.log_scale)


def _randn(size: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(size, dtype=like.dtype, device=like.device, generator=generator)


#: Bases by the name that a fit's file has for them.
BASES = {
    one.__name__: one
    for one in (DiagonalNormal, FullRankNormal, GaussianMixture, Logistic, StudentT)
}
