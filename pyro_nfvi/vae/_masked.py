"""Missing pixels: a likelihood of what was observed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_nfvi.errors import DataError, OptionError
from pyro_nfvi.vae._likelihoods import Bernoulli, Likelihood


@dataclass(frozen=True)
class Masked(Likelihood):
    r"""Pixels of which some are missing (NaN): the marginal likelihood of the others.

    .. math:: \log p(x_{\text{obs}} \mid z) = \sum_{i\ \text{observed}} \log p(x_i \mid z)

    It is right where pixels are missing at random. The encoder sees zero in place of what is
    missing; ``vae.reconstruct(x)`` fills it in.

    Args:
        inner: The likelihood of a pixel that was observed.

    Source: Nazabal et al. 2020, arXiv:1807.03653; Mattei and Frellsen 2019, arXiv:1812.02633.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import Gaussian, Masked
        >>> x = torch.tensor([[0.0, torch.nan], [torch.nan, torch.nan]])
        >>> Masked(Gaussian(scale=1.0)).log_prob(torch.zeros(2, 2), x).round(decimals=3)
        tensor([-0.9190,  0.0000])
    """

    inner: Likelihood = field(default_factory=Bernoulli)
    name: ClassVar[str] = "masked"

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Likelihood):
            raise OptionError(f"Masked needs a Likelihood; got {type(self.inner).__name__}.")
        if not getattr(self.inner, "ordered", True):
            raise OptionError(
                "Categories have no number that stands for a missing one: count 'missing' as a "
                "category of its own."
            )
        if getattr(self.inner, "library", None) is not None:
            raise OptionError("A sum of counts is not known where some are missing: library=None.")

    @property
    def num_params(self) -> int:
        return self.inner.num_params

    def distribution(self, params: Tensor) -> Any:
        return self.inner.distribution(params)

    def _filled(self, x: Tensor) -> Tensor:
        """Return images with a pixel that the inner likelihood describes where one is missing."""
        return torch.where(x.isnan(), torch.full_like(x, self.inner.filler), x)

    def observe(self, params: Tensor, x: Tensor) -> tuple[Any, Tensor]:
        pixels, values = self.inner.observe(params, self._filled(x))
        return pixels.mask(~x.isnan()), values

    def pixel_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        found = self.inner.pixel_log_prob(params, self._filled(x))
        # Selected, not multiplied: nothing of a missing pixel reaches the gradient.
        return torch.where(x.isnan(), torch.zeros_like(found), found)

    def mean(self, params: Tensor) -> Tensor:
        return self.inner.mean(params)

    def reconstruction(self, params: Tensor, x: Tensor) -> Tensor:
        return self.inner.reconstruction(params, self._filled(x))

    def encoder_input(self, x: Tensor) -> Tensor:
        given = self.inner.encoder_input(self._filled(x))
        return torch.where(x.isnan(), torch.zeros_like(given), given)

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "inner": self.inner.spec()}

    def check(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise DataError(
                f"The masked likelihood needs floating-point images, NaN where a pixel is missing; "
                f"got {x.dtype}. Take the inner likelihood where none is."
            )
        self.inner.check(self._filled(x))
