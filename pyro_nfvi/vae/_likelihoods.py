"""Likelihoods of images: what a decoder's numbers mean."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.transforms import SigmoidTransform
from torch.nn import functional as F

from pyro_nfvi._autocast import in_full_precision
from pyro_nfvi._math import soft_clamp
from pyro_nfvi.errors import DataError, OptionError, ShapeError
from pyro_nfvi.vae._recipe import NETWORKS

#: Methods that compute in full precision.
_SCORED = (
    "distribution", "observe", "pixel_log_prob", "log_prob", "mean", "reconstruction", "sample",
)  # fmt: skip


class Likelihood(ABC):
    """Likelihoods: the meaning of a decoder's numbers, and the images that they can describe.

    A likelihood of your own is a frozen dataclass that defines ``name``, ``num_params``,
    ``distribution`` and ``check``. What it computes is in full precision, under autocast too, and
    where a decoder's numbers come in half precision.

    Shape:
        Images are ``(B, *shape)``. A decoder gives ``(N, *shape)`` where ``num_params`` is 1, else
        ``(N, *shape, num_params)``.
    """

    name: ClassVar[str]
    #: A pixel that the likelihood describes, to stand where one is missing.
    filler: ClassVar[float] = 0.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        in_full_precision(cls, _SCORED, always=True)

    @property
    @abstractmethod
    def num_params(self) -> int:
        """Numbers per pixel that the decoder has to give."""

    @abstractmethod
    def distribution(self, params: Tensor) -> Any:
        """Return the distribution of single pixels, batch shape ``(*b, *shape)``."""

    @abstractmethod
    def check(self, x: Tensor) -> None:
        """Refuse images that the likelihood does not describe, saying what to do."""

    def observe(self, params: Tensor, x: Tensor) -> tuple[Any, Tensor]:
        """Return the distribution of the pixels of these images, and the values that it scores.

        They are ``distribution(params)`` and ``x``, unless the former depends on the images (sums
        of counts, missing pixels).
        """
        return self.distribution(params), x

    def pixel_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log density or probability of each pixel, in nats: ``(*b, B, *shape)``."""
        pixels, values = self.observe(params, x)
        log_p: Tensor = pixels.log_prob(values)
        return log_p

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log density or probability of each image, in nats: ``(*b, B, ...) -> (*b, B)``."""
        log_p = self.pixel_log_prob(params, x)
        return log_p.flatten(1 - x.dim()).sum(-1) if x.dim() > 1 else log_p

    def mean(self, params: Tensor) -> Tensor:
        """Return the expected image, to look at: ``(*b, *shape)``."""
        mean: Tensor = self.distribution(params).mean
        return mean

    def reconstruction(self, params: Tensor, x: Tensor) -> Tensor:
        """Return the expected image where these images were observed: ``mean(params)``.

        Another one where :meth:`observe` depends on the images: counts have the sums of their own.
        """
        return self.mean(params)

    def sample(self, params: Tensor) -> Tensor:
        """Draw images."""
        drawn: Tensor = self.distribution(params).sample()
        return drawn

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return the encoder's input for images."""
        return x

    def spec(self) -> dict[str, Any]:
        """Describe the likelihood with what JSON can hold."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]

    def check_params(self, params: Tensor, x: Tensor) -> None:
        """Refuse a decoder's output of the wrong size."""
        shape = tuple(x.shape[1:])
        want = shape if self.num_params == 1 else (*shape, self.num_params)
        found = tuple(params.shape[1:]) if isinstance(params, Tensor) else type(params).__name__
        if found != want:
            raise ShapeError(
                f"The {self.name} likelihood needs a decoder that gives (N, "
                f"{', '.join(map(str, want))}) for images of shape {shape}; it gave {found} after "
                "the first axis."
            )


# The class itself has no ``__init_subclass__`` call: its own methods join here.
in_full_precision(Likelihood, _SCORED, always=True)


def check_real(name: str, x: Tensor, cure: str) -> None:
    if not x.is_floating_point():
        raise DataError(f"The {name} likelihood needs floating-point images; got {x.dtype}. {cure}")
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise DataError(
            f"{bad} of {x.numel()} pixels are not finite. Drop those images, or fill the pixels in."
        )


def _span(x: Tensor) -> str:
    return f"from {float(x.min()):g} to {float(x.max()):g}"


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    r"""Pixels that are 0 or 1; the decoder gives logits.

    .. math:: \log p(x \mid z) = \sum_i x_i l_i - \log(1 + e^{l_i})

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import Bernoulli
        >>> Bernoulli().log_prob(torch.zeros(5, 2, 2), torch.ones(5, 2, 2)).shape
        torch.Size([5])
    """

    name: ClassVar[str] = "bernoulli"

    @property
    def num_params(self) -> int:
        return 1

    def distribution(self, params: Tensor) -> Any:
        return dist.Bernoulli(logits=params, validate_args=False)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        # Two passes over the logits; the library's cross entropy takes four. (A matrix product for
        # the first costs twice as much with its gradient.)
        rows = params.flatten(params.dim() - x.dim() + 1)
        inner: Tensor = (rows * x.flatten(1).to(rows)).sum(-1)
        return inner - F.softplus(rows).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        return torch.sigmoid(params)

    def check(self, x: Tensor) -> None:
        # Every step of a training comes here: one pass where all is well.
        if x.is_floating_point() and bool(((x == 0) | (x == 1)).all()):
            return
        check_real(
            self.name, x, "Convert 0/1 pixels with x.float(); binarise grey ones (vae.binarize)."
        )
        raise DataError(
            f"The bernoulli likelihood needs pixels that are 0 or 1; got values {_span(x)}. "
            "Binarise them with pyro_nfvi.vae.binarize(x, levels, seed), or take the "
            "likelihood 'categorical', 'gaussian' or 'logit-normal' for grey levels."
        )


@dataclass(frozen=True)
class Categorical(Likelihood):
    r"""Pixels that are one of L levels; the decoder gives L logits per pixel.

    .. math:: \log p(x \mid z) = \sum_i \log \mathrm{softmax}(l_i)_{x_i}

    Args:
        levels: Number of levels L: pixels are 0 .. L-1.
        ordered: Levels are grey levels, which the encoder sees scaled to -1 .. 1. False: categories
            without an order, such as answers or letters; the encoder sees the integers and embeds
            them (``DenseEncoder(..., levels=L)``), and the most probable one stands for the mean.

    Source: van den Oord et al. 2016, arXiv:1601.06759, section 3.4 (256 ways).

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import Categorical
        >>> x = torch.tensor([[0, 2], [1, 1]])
        >>> Categorical(3).log_prob(torch.zeros(2, 2, 3), x).exp()
        tensor([0.1111, 0.1111])
    """

    levels: int = 256
    ordered: bool = True
    name: ClassVar[str] = "categorical"

    def __post_init__(self) -> None:
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or self.levels < 2:
            raise OptionError(f"Categorical needs levels of at least 2; got {self.levels!r}.")

    @property
    def num_params(self) -> int:
        return self.levels

    def distribution(self, params: Tensor) -> Any:
        return dist.Categorical(logits=params, validate_args=False)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        logits = torch.log_softmax(params, -1)
        index = x.long().expand(params.shape[:-1]).unsqueeze(-1)
        picked = logits.gather(-1, index).squeeze(-1)
        return picked.flatten(params.dim() - x.dim()).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        if not self.ordered:
            return params.argmax(-1).to(params)
        values = torch.arange(self.levels, dtype=params.dtype, device=params.device)
        return torch.softmax(params, -1) @ values

    def encoder_input(self, x: Tensor) -> Tensor:
        if not self.ordered:
            return x.long()
        return x.to(torch.get_default_dtype()) / (self.levels - 1) * 2 - 1

    def spec(self) -> dict[str, Any]:
        # Files of ordered levels, the usual ones, say nothing of the order.
        return super().spec() if not self.ordered else {"name": self.name, "levels": self.levels}

    def check(self, x: Tensor) -> None:
        whole = not x.is_floating_point() or bool((x == x.round()).all())
        # Compared as Python numbers: a uint8 tensor knows no 256.
        if not whole or float(x.min()) < 0 or float(x.max()) >= self.levels:
            raise DataError(
                f"The categorical likelihood needs integers from 0 to {self.levels - 1}; got "
                f"{x.dtype} {_span(x)}. Scaled pixels go back with (x * {self.levels - 1}).round()."
            )


@dataclass(frozen=True)
class Gaussian(Likelihood):
    r"""Real-valued pixels: :math:`x_i \sim N(m_i, s_i^2)`.

    With ``scale`` given the decoder gives the mean alone; else two numbers per pixel on the last
    axis, the mean and the logarithm of the standard deviation (bounded smoothly at 5).

    Args:
        scale: The standard deviation of every pixel, or None where the decoder gives it.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import Gaussian
        >>> Gaussian(scale=0.5).num_params, Gaussian().num_params
        (1, 2)
    """

    scale: float | None = None
    name: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise OptionError(f"{type(self).__name__} needs a positive scale; got {self.scale!r}.")

    @property
    def num_params(self) -> int:
        return 2 if self.scale is None else 1

    def _normal(self, params: Tensor) -> Any:
        if self.scale is not None:
            return dist.Normal(params, self.scale, validate_args=False)
        loc, raw = params.unbind(-1)
        return dist.Normal(loc, soft_clamp(raw, NETWORKS.log_scale).exp(), validate_args=False)

    def distribution(self, params: Tensor) -> Any:
        return self._normal(params)

    def check(self, x: Tensor) -> None:
        check_real(
            self.name, x, "Dequantise integers with pyro_nfvi.vae.dequantize(x, levels, seed)."
        )


@dataclass(frozen=True)
class LogitNormal(Gaussian):
    r"""Pixels strictly between 0 and 1: :math:`\mathrm{logit}\, x_i \sim N(m_i, s_i^2)`.

    .. math:: \log p(x \mid z) = \sum_i \log N(\mathrm{logit}\, x_i; m_i, s_i^2)
        - \log x_i (1 - x_i)

    The decoder gives what it gives for :class:`Gaussian`.

    Source: Rezende and Mohamed 2015, arXiv:1505.05770, section 6.3 (pixels in
    :math:`[\epsilon, 1-\epsilon]`, :math:`\epsilon = 10^{-4}`).

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import LogitNormal
        >>> LogitNormal(1.0).log_prob(torch.zeros(5, 2), torch.full((5, 2), 0.5)).shape
        torch.Size([5])
    """

    name: ClassVar[str] = "logit-normal"
    filler: ClassVar[float] = 0.5

    def distribution(self, params: Tensor) -> Any:
        return dist.TransformedDistribution(
            self._normal(params), [SigmoidTransform()], validate_args=False
        )

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        slope = (x.log() + torch.log1p(-x)).flatten(1).sum(-1)
        log_p: Tensor = self._normal(params).log_prob(torch.logit(x))
        return log_p.flatten(1 - x.dim()).sum(-1) - slope

    def mean(self, params: Tensor) -> Tensor:
        # The median, which has a closed form; the mean has none.
        loc: Tensor = self._normal(params).loc
        return torch.sigmoid(loc)

    def encoder_input(self, x: Tensor) -> Tensor:
        return 2 * x - 1

    def check(self, x: Tensor) -> None:
        check_real(
            self.name, x, "Dequantise integers with pyro_nfvi.vae.dequantize(x, levels, seed)."
        )
        if not bool(((x > 0) & (x < 1)).all()):
            raise DataError(
                f"The logit-normal likelihood needs pixels strictly between 0 and 1; got {_span(x)}"
                ". Dequantise integers with pyro_nfvi.vae.dequantize(x, levels, seed, margin=1e-4)."
            )
