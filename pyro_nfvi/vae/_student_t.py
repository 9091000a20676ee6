"""Student's t as the likelihood of real pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
from torch import Tensor
from torch.nn import functional as F

from pyro_nfvi._math import soft_clamp
from pyro_nfvi.errors import OptionError
from pyro_nfvi.vae._likelihoods import Likelihood, check_real
from pyro_nfvi.vae._recipe import NETWORKS


@dataclass(frozen=True)
class StudentT(Likelihood):
    r"""Real-valued pixels with outliers: :math:`(x_i - m_i)/s_i \sim t_\nu`.

    The decoder gives the location and the logarithm of the scale on the last axis, bounded smoothly
    at 5; with ``df=None`` also a number from which :math:`\nu_i = 1 + \mathrm{softplus}`.

    Args:
        df: Degrees of freedom :math:`\nu`, or None where the decoder gives them.

    Source: Takahashi et al. 2018, Student-t variational autoencoder, IJCAI.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import StudentT
        >>> StudentT().num_params, StudentT(df=None).num_params
        (2, 3)
    """

    df: float | None = 4.0
    name: ClassVar[str] = "student-t"

    def __post_init__(self) -> None:
        if self.df is not None and not 0 < self.df < math.inf:
            raise OptionError(f"StudentT needs a positive df, or None; got {self.df!r}.")

    @property
    def num_params(self) -> int:
        return 2 if self.df is not None else 3

    def distribution(self, params: Tensor) -> Any:
        scale = soft_clamp(params[..., 1], NETWORKS.log_scale).exp()
        df = 1 + F.softplus(params[..., 2]) if self.df is None else self.df
        return dist.StudentT(df, params[..., 0], scale, validate_args=False)

    def mean(self, params: Tensor) -> Tensor:
        # The location, which is the median too; up to one degree of freedom there is no mean.
        return params[..., 0]

    def check(self, x: Tensor) -> None:
        check_real(
            self.name, x, "Dequantise integers with pyro_nfvi.vae.dequantize(x, levels, seed)."
        )
