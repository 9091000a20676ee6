"""Names for types that many signatures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

#: ``(y, ladj)``: a point and the log absolute determinant of the Jacobian, in nats.
TensorPair: TypeAlias = tuple[Tensor, Tensor]
#: ``(y, ladj, score)``.
TensorTriple: TypeAlias = tuple[Tensor, Tensor, Tensor]
TensorDict: TypeAlias = dict[str, Tensor]
#: Width of the hidden layers: one number for one layer, a sequence for several.
Hidden: TypeAlias = int | Sequence[int] | None

# Shapes, for readers and for ``make test-shapes``; at run time they are plain tensors. Batch shapes
# of points and contexts broadcast: contexts ``(5, 1, C)`` and points ``(7, D)`` give
# ``(5, 7, D)``.
if TYPE_CHECKING:
    from jaxtyping import Float

    #: ``(*b, D)``: points or noise.
    Points: TypeAlias = Float[Tensor, "*#b D"]
    #: ``(*b, C)``: contexts.
    Contexts: TypeAlias = Float[Tensor, "*#b C"]
    #: ``(*b,)``: log densities or log-determinants, in nats.
    Rows: TypeAlias = Float[Tensor, "*b"]
    #: ``(y (*b, D), ladj (*b,))``: the image of points, and a number for each.
    Image: TypeAlias = tuple[Float[Tensor, "*b D"], Float[Tensor, "*b"]]
    #: The same with the score ``(*b, D)``.
    ImageAndScore: TypeAlias = tuple[
        Float[Tensor, "*b D"], Float[Tensor, "*b"], Float[Tensor, "*b D"]
    ]
else:
    Points = Contexts = Rows = Tensor
    Image, ImageAndScore = TensorPair, TensorTriple
