"""Per-coordinate normalisation with statistics of data, taken by an explicit call."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points, TensorPair
from pyro_nfvi._validation import number
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows._base import Flow


def _moments(x: Tensor, like: Tensor, name: str, *, inverse: bool) -> TensorPair:
    """Mean and scale of rows in the dtype of a buffer; of what undoes them if ``inverse``."""
    if not isinstance(x, Tensor):
        raise ShapeError(f"{name} needs a tensor (n, {len(like)}); got {type(x).__name__}.")
    few = x.dim() < 2 or x.shape[-1] != len(like) or x[..., 0].numel() < 2
    if few or not x.is_floating_point():
        raise ShapeError(
            f"{name} needs at least two rows (n, {len(like)}) of floating-point data; got "
            f"{x.dtype} of shape {tuple(x.shape)}."
        )
    # In float64: squares of small numbers would be 0, and sums of large ones would lose the rest.
    rows = x.detach().reshape(-1, len(like)).double()
    if not bool(rows.isfinite().all()):
        raise ShapeError(f"{name} needs finite data; got NaN or infinity.")
    mean, std = rows.mean(0), rows.std(0)
    limits = torch.finfo(like.dtype)
    if bool((torch.maximum(mean.abs(), std) > limits.max).any()):
        raise ShapeError(f"{name}: the data are too large for {like.dtype}; take flow.double().")
    # Off 0: at what the dtype resolves beside the mean, and at 1 beside 0.
    least = (limits.eps * mean.abs()).clamp_min(limits.tiny)
    none = (std == 0) & (mean == 0)
    std = torch.where(none, torch.ones_like(std), torch.maximum(std, least))
    if inverse:
        mean, std = -mean / std, 1 / std
    return mean.to(like), std.to(like)


@final
class ActNorm(Flow):
    r"""Shift and scale per coordinate: :math:`y = \hat\mu + \hat\sigma\,(m + e^{s} x)`.

    It starts as the identity. ``initialize(y)`` takes :math:`\hat\mu` and :math:`\hat\sigma` from
    a batch in the space of y, so that the inverse of the batch has mean 0 and standard deviation
    1; nothing happens at a first call by itself. What is trained, m and s, has no unit: steps of
    an optimiser mean the same whatever the data's unit.

    Args:
        dim: Event size D.

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        O(D) per row both ways.

    Source: Kingma and Dhariwal 2018, arXiv:1807.03039, section 3.1; there data to base.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import ActNorm
        >>> flow = ActNorm(2)
        >>> flow.initialize(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
        >>> flow.inverse(torch.tensor([2.0, 20.0]))[0].tolist()
        [0.0, 0.0]
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.mean: Tensor
        self.std: Tensor

    @torch.no_grad()
    def initialize(self, y: Tensor, *, inverse: bool = False) -> None:
        """Take mean and scale from data ``(n, D)`` in the space of y.

        Args:
            y: The data.
            inverse: Let ``forward`` normalise data instead: for a layer inside an ``Inverse``.

        Raises:
            ShapeError: Fewer than two rows, another width, or data that are not finite.
        """
        mean, std = _moments(y, self.mean, "ActNorm.initialize", inverse=inverse)
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.loc.zero_()
        self.log_scale.zero_()

    def _scale(self) -> TensorPair:
        """Scale of y per x, and the log-determinant."""
        scale = self.std * self.log_scale.exp()
        return scale, (self.std.log() + self.log_scale).sum()

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, _ = self.enter(x, context)
        scale, ladj = self._scale()
        return self.mean + self.std * self.loc + scale * x, ladj.expand(x.shape[:-1])

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, _ = self.enter(y, context)
        scale, ladj = self._scale()
        return (y - self.mean - self.std * self.loc) / scale, -ladj.expand(y.shape[:-1])

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        y, ladj = self(x, context)
        return y, ladj, (score.expand_as(x) / self._scale()[0]).detach()


@final
class BatchNorm(Flow):
    r"""Batch normalisation as a flow: :math:`y = \hat\mu + \hat\sigma\, e^{-\gamma} (x - \beta)`.

    Its inverse, :math:`x = \beta + e^{\gamma} (y - \hat\mu)/\hat\sigma`, normalises data with
    the running statistics and then shifts and scales by trained numbers. ``update(y)`` is the
    only thing that moves the statistics: a call in training mode changes nothing.

    Args:
        dim: Event size D.
        momentum: Weight of a new batch in the running statistics.

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        O(D) per row both ways.

    Source: Dinh et al. 2017, arXiv:1605.08803, section 3.7 and appendix E. Differs: rows stay
    independent, since the statistics are constants within a call.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import BatchNorm
        >>> flow = BatchNorm(1, momentum=1.0)
        >>> flow.update(torch.tensor([[4.0], [6.0]]))
        >>> flow.inverse(torch.tensor([5.0]))[0].tolist()
        [0.0]
    """

    def __init__(self, dim: int, *, momentum: float = 0.1) -> None:
        super().__init__(dim)
        self.momentum = number("BatchNorm: momentum", momentum, above=0)
        if self.momentum > 1:
            raise OptionError(f"BatchNorm needs a momentum in (0, 1]; got {momentum!r}.")
        self.beta = nn.Parameter(torch.zeros(dim))
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_std", torch.ones(dim))
        self.running_mean: Tensor
        self.running_std: Tensor

    @torch.no_grad()
    def update(self, y: Tensor, *, inverse: bool = False) -> None:
        """Move the running statistics towards those of a batch ``(n, D)`` in the space of y.

        Args:
            y: The batch.
            inverse: Let ``forward`` normalise data instead: for a layer inside an ``Inverse``.

        Raises:
            ShapeError: Fewer than two rows, another width, or data that are not finite.
        """
        mean, std = _moments(y, self.running_mean, "BatchNorm.update", inverse=inverse)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_std.lerp_(std, self.momentum)

    def _scale(self) -> TensorPair:
        log_scale = self.running_std.log() - self.gamma
        return log_scale.exp(), log_scale.sum()

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, _ = self.enter(x, context)
        scale, ladj = self._scale()
        return self.running_mean + scale * (x - self.beta), ladj.expand(x.shape[:-1])

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, _ = self.enter(y, context)
        scale, ladj = self._scale()
        return self.beta + (y - self.running_mean) / scale, -ladj.expand(y.shape[:-1])

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        y, ladj = self(x, context)
        return y, ladj, (score.expand_as(x) / self._scale()[0]).detach()
