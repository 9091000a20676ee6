"""Names of univariate transformers: ``"affine"``, ``"spline"`` and their like."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._neural_autoregressive import MonotoneTransformer
from pyro_nfvi.flows._spline import SplineTransformer
from pyro_nfvi.flows._tail_transform import TailTransformer
from pyro_nfvi.flows._transformers import (
    AffineTransformer,
    GatedTransformer,
    ReLUTransformer,
    ShiftTransformer,
    Transformer,
)

#: A transformer, its name, or None for the affine one.
TransformerLike: TypeAlias = Transformer | str | None


def _circular() -> Transformer:
    from pyro_nfvi.flows._circular_spline import CircularSplineTransformer

    return CircularSplineTransformer()


def _moebius() -> Transformer:
    from pyro_nfvi.flows._moebius import MoebiusTransformer

    return MoebiusTransformer()


_NAMES: dict[str, Callable[[], Transformer]] = {
    "affine": AffineTransformer,
    "shift": ShiftTransformer,
    "gated": GatedTransformer,
    "relu": ReLUTransformer,
    "tail": TailTransformer,
    "spline": SplineTransformer,
    "monotone": MonotoneTransformer,
    "circular": _circular,
    "moebius": _moebius,
}


def make_transformer(transformer: TransformerLike) -> Transformer:
    """Return a transformer, by its name too; the affine one for None.

    Raises:
        OptionError: An unknown name, or something else.

    Example:
        >>> make_transformer("spline")
        SplineTransformer(bins=8, bound=5.0)
    """
    if transformer is None:
        return AffineTransformer()
    if isinstance(transformer, Transformer):
        return transformer
    if isinstance(transformer, str) and transformer in _NAMES:
        return _NAMES[transformer]()
    raise OptionError(
        f"transformer needs to be a Transformer, such as SplineTransformer(bins=8), or one of "
        f"{', '.join(map(repr, _NAMES))}; got {transformer!r}."
    )
