"""Affine maps: a diagonal one, a triangular one, and one bound to given values."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_nfvi._math import RAW_ONE, bounded_below, bounded_rows, softplus_inverse
from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points, TensorDict, TensorPair
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._conditioning import FreeParams, ParamFlow
from pyro_nfvi.flows._recipe import BOUNDS


def _forward(x: Tensor, loc: Tensor, scale: Tensor, scale_tril: Tensor | None) -> TensorPair:
    ladj = scale.log().sum(-1).expand(x.shape[:-1])
    if scale_tril is None:
        return loc + scale * x, ladj
    return loc + (scale_tril @ x.unsqueeze(-1)).squeeze(-1), ladj


def _inverse(y: Tensor, loc: Tensor, scale: Tensor, scale_tril: Tensor | None) -> TensorPair:
    ladj = -scale.log().sum(-1).expand(y.shape[:-1])
    if scale_tril is None:
        return (y - loc) / scale, ladj
    x = torch.linalg.solve_triangular(scale_tril, (y - loc).unsqueeze(-1), upper=False)
    return x.squeeze(-1), ladj


def _pull(score: Tensor, scale: Tensor, scale_tril: Tensor | None) -> Tensor:
    if scale_tril is None:
        return score / scale
    return torch.linalg.solve_triangular(scale_tril.mT, score.unsqueeze(-1), upper=True).squeeze(-1)


@final
class DiagonalAffine(ParamFlow):
    r"""A shift and a positive scale per coordinate: :math:`y = \mu + \sigma x`.

    Args:
        dim: Event size D.
        context_dim: Size of the context; 0 for free parameters. A context drives the scale
            down to 0.0006.
        hidden_dim: Width of the hyper-net (with a context only).

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        O(D) per row both ways.

    Source: the mean-field Gaussian of Kucukelbir et al. 2017, arXiv:1603.00788; the scale is
    softplus-positive.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import DiagonalAffine
        >>> y, ladj = DiagonalAffine(3)(torch.ones(2, 3))
        >>> bool((y == 1).all())
        True
    """

    def limit(self, theta: TensorDict) -> TensorDict:
        return {**theta, "scale": bounded_below(theta["scale"], BOUNDS.lowest_scale)}

    def init_params(self) -> TensorDict:
        return {"loc": torch.zeros(self.dim), "scale": torch.zeros(self.dim)}

    def _forward(self, x: Tensor, theta: TensorDict) -> TensorPair:
        return _forward(x, theta["loc"], _positive(theta["scale"]), None)

    @torch.no_grad()
    def set_affine(self, loc: Tensor, scale: Tensor) -> None:
        """Set shift and positive scale ``(D,)``; not with a context, whose net gives them."""
        _check_positive(scale)
        numbers = free_numbers(self)
        numbers["loc"].copy_(loc)
        numbers["scale"].copy_(_free(scale))

    def _inverse(self, y: Tensor, theta: TensorDict) -> TensorPair:
        return _inverse(y, theta["loc"], _positive(theta["scale"]), None)

    def _pull_score(self, x: Tensor, score: Tensor, theta: TensorDict) -> Tensor:
        return _pull(score, _positive(theta["scale"]), None)


@final
class LowerTriangular(ParamFlow):
    r"""A full-rank affine map: :math:`y = \mu + L x`, L lower triangular, positive diagonal.

    Args:
        dim: Event size D.
        context_dim: Size of the context; 0 for free parameters. A context drives the diagonal
            down to 0.0006, and the rest of a row to a length of up to 3 times its diagonal.
        hidden_dim: Width of the hyper-net (with a context only).

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        O(D^2) per row both ways; D(D+3)/2 numbers that matter.

    Source: the full-rank Gaussian of Kucukelbir et al. 2017, arXiv:1603.00788. Rows are scaled
    by the diagonal, so that the free numbers are relative to it.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import LowerTriangular
        >>> y, ladj = LowerTriangular(3)(torch.ones(2, 3))
        >>> bool((y == 1).all())
        True
    """

    def limit(self, theta: TensorDict) -> TensorDict:
        scale = bounded_below(theta["scale"], BOUNDS.lowest_scale)
        tril = bounded_rows(theta["tril"].tril(-1), BOUNDS.triangular_row)
        return {"loc": theta["loc"], "scale": scale, "tril": tril}

    def init_params(self) -> TensorDict:
        return {
            "loc": torch.zeros(self.dim),
            "scale": torch.zeros(self.dim),
            "tril": torch.zeros(self.dim, self.dim),
        }

    @torch.no_grad()
    def set_affine(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Set shift ``(D,)`` and factor ``(D, D)``; not with a context, whose net gives them."""
        numbers, scale = free_numbers(self), scale_tril.diagonal()
        _check_positive(scale)
        numbers["loc"].copy_(loc)
        numbers["scale"].copy_(_free(scale))
        numbers["tril"].copy_((scale_tril / scale.unsqueeze(-1)).tril(-1))

    def _matrix(self, theta: TensorDict) -> tuple[Tensor, Tensor]:
        scale = _positive(theta["scale"])
        unit = theta["tril"].tril(-1) + torch.eye(self.dim, dtype=scale.dtype, device=scale.device)
        return scale, scale.unsqueeze(-1) * unit

    def _forward(self, x: Tensor, theta: TensorDict) -> TensorPair:
        return _forward(x, theta["loc"], *self._matrix(theta))

    def _inverse(self, y: Tensor, theta: TensorDict) -> TensorPair:
        return _inverse(y, theta["loc"], *self._matrix(theta))

    def _pull_score(self, x: Tensor, score: Tensor, theta: TensorDict) -> Tensor:
        return _pull(score, *self._matrix(theta))


@final
class Affine(Flow):
    r"""An affine map with given numbers: :math:`y = \mu + \sigma x`, or :math:`\mu + L x`.

    It trains nothing. By default its numbers belong to somebody else: it is built for one call,
    around tensors that a guide owns, and thrown away. With ``own=True`` they are its own and
    saved with its state, as of a whitening map.

    Args:
        loc: Shift, ``(D,)``.
        scale: Positive scale ``(D,)``, or None with ``scale_tril``.
        scale_tril: Lower triangular with a positive diagonal ``(D, D)``.
        own: Whether the numbers are part of the ``state_dict``.

    Raises:
        OptionError: Both or none of ``scale`` and ``scale_tril`` are given, or, with ``own``, a
            scale that is not positive.
        ShapeError: A point of another size or dtype.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Affine
        >>> y, ladj = Affine(torch.zeros(2), torch.full((2,), 3.0))(torch.ones(2))
        >>> y
        tensor([3., 3.])
    """

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor | None = None,
        *,
        scale_tril: Tensor | None = None,
        own: bool = False,
    ) -> None:
        if (scale is None) == (scale_tril is None):
            raise OptionError("Affine needs one of scale and scale_tril.")
        given = scale if scale_tril is None else scale_tril
        if not (isinstance(loc, Tensor) and isinstance(given, Tensor)):
            raise OptionError(
                f"Affine needs tensors; got {type(loc).__name__} and {type(given).__name__}."
            )
        size = tuple(loc.shape) * (1 if scale_tril is None else 2)
        if loc.dim() != 1 or given is None or tuple(given.shape) != size:
            raise OptionError(
                f"Affine needs loc (D,) and scale (D,) or scale_tril (D, D); got {tuple(loc.shape)}"
                f" and {None if given is None else tuple(given.shape)}."
            )
        # Its own numbers only: a look at those of a caller would wait for the device at each call.
        if own:
            _check_positive(given if scale_tril is None else given.diagonal())
        super().__init__(int(loc.shape[-1]))  # a tensor under torch.jit.trace
        # Buffers, not parameters: their owner trains them.
        self.register_buffer("loc", loc, persistent=own)
        self.register_buffer("diagonal", scale, persistent=own)
        self.register_buffer("scale_tril", scale_tril, persistent=own)
        self.loc: Tensor
        self.diagonal: Tensor | None
        self.scale_tril: Tensor | None

    @property
    def scale(self) -> Tensor:
        """The scale, or the diagonal of ``scale_tril``: ``(D,)``."""
        if self.scale_tril is not None:
            return self.scale_tril.diagonal(dim1=-2, dim2=-1)
        assert self.diagonal is not None
        return self.diagonal

    def enter(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, context = super().enter(x, context)
        if x.dtype != self.loc.dtype:
            raise ShapeError(
                f"Affine(dim={self.dim}) has numbers of {self.loc.dtype}; got a point of {x.dtype}."
                " Convert the point with .to(dtype), or the flow with .double() or .float()."
            )
        return x, context

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, _ = self.enter(x, context)
        return _forward(x, self.loc, self.scale, self.scale_tril)

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, _ = self.enter(y, context)
        return _inverse(y, self.loc, self.scale, self.scale_tril)

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        y, ladj = self(x, context)
        with torch.no_grad():
            return y, ladj, _pull(score.expand_as(y), self.scale, self.scale_tril)


def free_numbers(flow: ParamFlow) -> TensorDict:
    """Return the free parameters of a flow without context."""
    if not isinstance(flow.params, FreeParams):
        raise OptionError("A flow with a context has no numbers of its own to set.")
    return flow.params()


def _check_positive(scale: Tensor) -> None:
    if not bool((scale > 0).all()):
        raise OptionError(
            f"An affine map needs a positive scale; got {scale.min().item():g}. Put a reflection "
            "into a flow of your own."
        )


def _free(scale: Tensor) -> Tensor:
    """Invert :func:`_positive`; exactly 0 at 1."""
    one = F.softplus(scale.new_full((), RAW_ONE))
    return torch.where(scale == 1, torch.zeros_like(scale), softplus_inverse(scale * one) - RAW_ONE)


def _positive(raw: Tensor) -> Tensor:
    # 0 gives exactly 1 in every dtype, also after a change of dtype.
    return F.softplus(raw + RAW_ONE) / F.softplus(raw.new_full((), RAW_ONE))
