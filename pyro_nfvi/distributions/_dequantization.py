"""Integer data under continuous densities: noise, and the bound that it gives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_nfvi._autocast import full_precision
from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._typing import TensorPair
from pyro_nfvi._validation import whole
from pyro_nfvi.distributions._density import Density
from pyro_nfvi.distributions._recipe import DEQUANTIZATION as RECIPE
from pyro_nfvi.errors import DataError, OptionError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._registry import make_flow


class Dequantizer(nn.Module, ABC):
    r"""Turns integers into points of :math:`\mathbb{R}^D` by noise u in the unit cube.

    With noise of density r(u | x) and the map :math:`y = g((x + u)/L)`,

    .. math::
        \log P(x) \ge \mathbb{E}_{u \sim r}\Bigl[
        \log q(y) + \log\Bigl|\frac{\partial y}{\partial x}\Bigr| - \log r(u \mid x)\Bigr]

    where P is the distribution of integers that the density implies: the mass of q over the
    unit cube at x. Averaging the weights of several u inside the logarithm tightens the bound.

    Args:
        levels: Number of levels L, so that data are 0 .. L-1: one number, or one per dimension.
        dim: D.
        logit: Map the unit cube to all of :math:`\mathbb{R}^D` by a logit; else leave y in it.

    Source: Theis et al. 2016, arXiv:1511.01844, section 3.1 (the bound); Dinh et al. 2017,
    arXiv:1605.08803, section 4.1 (the logit).
    """

    def __init__(self, levels: int | Sequence[int], dim: int, *, logit: bool = True) -> None:
        super().__init__()
        dim = whole(f"{type(self).__name__}: dim", dim)
        try:
            counts = torch.as_tensor(levels)
        except (TypeError, ValueError, RuntimeError):
            counts = torch.empty(0)  # refused below
        real = not (counts.is_floating_point() or counts.is_complex())
        fits = counts.shape in (torch.Size(), (dim,)) and real
        if not fits or counts.dtype == torch.bool or int(counts.min()) < 2:
            raise OptionError(
                f"{type(self).__name__} needs levels of at least 2, one number or {dim}; "
                f"got {levels!r}."
            )
        self.dim, self.logit = dim, logit
        self.register_buffer("levels", counts.expand(dim).clone())
        self.levels: Tensor
        self._most = int(counts.max())

    @abstractmethod
    def noise(self, x: Tensor, generator: torch.Generator | None) -> TensorPair:
        """Draw ``(u, log r(u | x))`` for rows of integers, given as floating-point numbers."""

    def forward(
        self, x: Tensor, *, generator: torch.Generator | None = None, like: Tensor | None = None
    ) -> TensorPair:
        """Map integers ``(*b, D)`` to ``(y, log_weight)``.

        The bound for a row is the density's ``log_prob(y) + log_weight``, in nats.

        Args:
            x: The data, integer or integer-valued.
            generator: Where the noise comes from; torch's global state if None.
            like: A tensor with the dtype and device of the result.

        Raises:
            DataError: Data that are not integers from 0 to L-1, of another width, or of more
                levels than the result's dtype tells apart.
        """
        x = self._check(x)
        like = torch.empty((), device=x.device) if like is None else like
        if self._most * torch.finfo(like.dtype).eps > RECIPE.resolved:
            raise DataError(
                f"{self._most} levels are more than {like.dtype} tells apart. Take the density in "
                "float64: density.double()."
            )
        u, log_r = self.noise(x.to(like), generator)
        wide = self._wide(like)
        levels = self.levels.to(wide)
        v = (x.to(wide) + u.to(wide)) / levels
        log_volume = -levels.log().sum(-1)
        if not self.logit:
            return v.to(like), log_volume.to(like) - log_r.to(like)
        s = RECIPE.margin + (1 - 2 * RECIPE.margin) * v
        log_s, log_rest = s.log(), torch.log1p(-s)
        slope = math.log1p(-2 * RECIPE.margin) - log_s - log_rest
        return (log_s - log_rest).to(like), (log_volume + slope.sum(-1)).to(like) - log_r.to(like)

    def _wide(self, like: Tensor) -> Tensor:
        """A tensor of the dtype to compute in: many levels in float64, as cells get small."""
        return like.new_empty((), dtype=torch.float64) if self._most > RECIPE.fine else like

    def quantize(self, y: Tensor) -> Tensor:
        """Map points back to the integers whose cube they are in: draws of the density to data.

        Rounding may take a point at the edge of a cube for one of the next: about one in a hundred
        thousand at 256 levels in float32, more with more levels.

        Raises:
            DataError: Points of another width, or not finite.
        """
        if not isinstance(y, Tensor) or y.shape[-1:] != (self.dim,):
            came = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise DataError(f"quantize needs points (*b, {self.dim}); got {came}.")
        if not bool(y.isfinite().all()):
            raise DataError("quantize needs finite points; got NaN or infinity.")
        y = y.to(self._wide(y))
        v = (torch.sigmoid(y) - RECIPE.margin) / (1 - 2 * RECIPE.margin) if self.logit else y
        levels = self.levels.to(y)
        return (v * levels).floor().clamp_min(0).minimum(levels - 1).long()

    @full_precision
    def log_bound(
        self,
        density: Density,
        x: Tensor,
        context: Tensor | None = None,
        *,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""Lower bound of :math:`\log P(x)` in nats, ``(*b, D) -> (*b,)``, differentiable.

        With S samples the weights are averaged inside the logarithm (Burda et al. 2016,
        arXiv:1509.00519, equation 8); S = 1 is the bound of the class.
        """
        num_samples = whole("log_bound: num_samples", num_samples)
        x = self._check(x)
        like = next((p for p in density.parameters()), torch.empty((), device=x.device))
        rows = []
        with scoring(self, density):
            for _ in range(num_samples):
                y, log_weight = self(x, generator=generator, like=like)
                rows.append(density.log_prob(y, context) + log_weight)
        return torch.logsumexp(torch.stack(rows), 0) - math.log(num_samples)

    def _check(self, x: Tensor) -> Tensor:
        name = type(self).__name__
        if not isinstance(x, Tensor):
            raise DataError(
                f"{name} needs a tensor (*b, {self.dim}); got {type(x).__name__}: "
                "torch.as_tensor(x)."
            )
        if x.is_complex():
            raise DataError(f"{name} needs integers; got {x.dtype}.")
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise DataError(f"{name} needs data of shape (*b, {self.dim}); got {tuple(x.shape)}.")
        whole = not x.is_floating_point() or bool((x == x.round()).all())
        levels = self.levels.to(x.device)
        if not whole or bool(((x < 0) | (x >= levels)).any()):
            raise DataError(
                f"{name} needs integers from 0 to levels - 1; got {x.dtype} with values from "
                f"{x.min().item():g} to {x.max().item():g}. Scaled pixels go back to integers with "
                "(x * 255).round()."
            )
        return x

    def extra_repr(self) -> str:
        low, high = int(self.levels.min()), int(self.levels.max())
        return f"dim={self.dim}, levels={low if low == high else (low, high)}"


@final
class UniformDequantize(Dequantizer):
    r"""Uniform noise in the unit cube: r(u | x) = 1.

    .. math:: \log P(x) = \log \int_{[0,1)^D} q(x + u)\,du \ge \int_{[0,1)^D} \log q(x + u)\,du

    Args:
        levels: Number of levels, one number or one per dimension; data are 0 .. L-1.
        dim: D.
        logit: Map the unit cube to all of :math:`\mathbb{R}^D`.

    Shape:
        ``x (*b, D)`` integer -> ``y (*b, D)``, ``log_weight (*b,)`` in nats.

    Cost:
        O(D) per row.

    Raises:
        OptionError: Fewer than two levels, or a wrong number of them.

    Source: Theis et al. 2016, arXiv:1511.01844, section 3.1; Uria et al. 2013, arXiv:1306.0186.

    Example:
        >>> import torch
        >>> from pyro_nfvi.distributions import UniformDequantize
        >>> pixels = UniformDequantize(256, dim=4)
        >>> x = torch.tensor([[0, 17, 128, 255]])
        >>> y, log_weight = pixels(x)
        >>> bool((pixels.quantize(y) == x).all()), log_weight.shape
        (True, torch.Size([1]))
    """

    def noise(self, x: Tensor, generator: torch.Generator | None) -> TensorPair:
        u = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return u, x.new_zeros(x.shape[:-1])


@final
class FlowDequantize(Dequantizer):
    r"""Noise from a flow that sees the data: variational dequantisation.

    .. math:: u = \sigma(f(\varepsilon; x)), \qquad \varepsilon_i \sim \mathrm{Logistic}, \qquad
        \log r(u \mid x) = \sum_i \log\frac{\sigma'(\varepsilon_i)}{\sigma'(f_i)} - \log|\det f'|

    Trained together with the density by ``density.fit(x, dequantize=...)``. With the logistic base
    it starts as the uniform dequantiser, exactly.

    Args:
        levels: Number of levels, one number or one per dimension; data are 0 .. L-1.
        dim: D.
        flow: A formula, or a flow with ``context_dim=D``.
        logit: Map the unit cube to all of :math:`\mathbb{R}^D`.
        hidden_dim: Hidden width of the nets of a formula.

    Shape:
        ``x (*b, D)`` integer -> ``y (*b, D)``, ``log_weight (*b,)`` in nats.

    Cost:
        One pass of the flow per draw.

    Raises:
        OptionError: A flow of another size, or without context.

    Source: Ho et al. 2019, arXiv:1902.00275, section 3.1. Differs: the logistic base.

    Example:
        >>> import torch
        >>> from pyro_nfvi.distributions import FlowDequantize
        >>> y, log_weight = FlowDequantize(2, dim=3)(torch.tensor([[0, 1, 1]]))
        >>> y.shape, log_weight.shape
        (torch.Size([1, 3]), torch.Size([1]))
    """

    def __init__(
        self,
        levels: int | Sequence[int],
        dim: int,
        *,
        flow: str | Flow = "affine|iaf*1",
        logit: bool = True,
        hidden_dim: int = 32,
    ) -> None:
        super().__init__(levels, dim, logit=logit)
        built = make_flow(flow, dim, dim, hidden_dim=hidden_dim) if isinstance(flow, str) else flow
        if not isinstance(built, Flow):
            raise OptionError(f"FlowDequantize needs a formula or a Flow; got {flow!r}.")
        if (built.dim, built.context_dim) != (dim, dim):
            raise OptionError(
                f"FlowDequantize needs a flow of dim={dim} and context_dim={dim}; got "
                f"dim={built.dim}, context_dim={built.context_dim}."
            )
        self.flow = built

    def noise(self, x: Tensor, generator: torch.Generator | None) -> TensorPair:
        x = x.to(next(self.flow.parameters(), x).dtype)  # the density may have another dtype
        tiny = torch.finfo(x.dtype).eps
        start = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        eps = torch.logit(start.clamp(tiny, 1 - tiny))
        # The flow sees the data centred, of unit size.
        f, ladj = self.flow(eps, 2 * x / (self.levels.to(x) - 1) - 1)
        # One would round up to the next integer.
        u = torch.sigmoid(f).clamp_max(1 - tiny)
        return u, (_log_slope(eps) - _log_slope(f)).sum(-1) - ladj


def check_dequantizer(dequantize: object) -> None:
    """Raise for what is neither a dequantiser nor None."""
    if not (dequantize is None or isinstance(dequantize, Dequantizer)):
        raise OptionError(
            "dequantize is a Dequantizer, such as UniformDequantize(levels, dim), or None; got "
            f"{dequantize!r}."
        )


def _log_slope(t: Tensor) -> Tensor:
    """Log of the sigmoid's derivative."""
    return F.logsigmoid(t) + F.logsigmoid(-t)
