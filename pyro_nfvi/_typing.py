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
    from jaxtyping import Bool, Float

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
    #: ``(S, E)``: base noise of particles, one row each.
    Noise: TypeAlias = Float[Tensor, "S E"]
    #: ``(S, D)``: particles, or a number for each of their coordinates.
    Particles: TypeAlias = Float[Tensor, "S D"]
    #: ``(S,)``: log densities or log weights of particles, in nats.
    PerParticle: TypeAlias = Float[Tensor, " S"]
    #: ``(S,)``: the particles that count.
    Counted: TypeAlias = Bool[Tensor, " S"]
    #: A number, in nats.
    Scalar: TypeAlias = Float[Tensor, ""]
    #: ``(*b,)`` and ``(*b, P)``: coordinates, and the parameters of a univariate map of each.
    Coordinates: TypeAlias = Float[Tensor, "*#b"]
    MapParams: TypeAlias = Float[Tensor, "*#b P"]
    #: ``(y (*b,), ladj)``: images of coordinates, with a ladj that may broadcast.
    EachImage: TypeAlias = tuple[Float[Tensor, "*b"], Float[Tensor, "..."]]
    #: ``(*b, K)``: a number for each component of a mixture.
    PerComponent: TypeAlias = Float[Tensor, "*b K"]
    #: ``(D,)`` and ``(D, D)``, or ``(D,)`` for a diagonal one: location and factor of a Gaussian.
    Location: TypeAlias = Float[Tensor, " D"]
    Factor: TypeAlias = Float[Tensor, "D D"] | Float[Tensor, " D"]
else:
    Points = Contexts = Rows = Tensor
    Noise = Particles = PerParticle = Counted = Scalar = Tensor
    Coordinates = MapParams = PerComponent = Location = Factor = Tensor
    Image, ImageAndScore, EachImage = TensorPair, TensorTriple, TensorPair
