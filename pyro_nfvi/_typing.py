"""Names for types that many signatures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

#: ``(y, ladj)``: a point and the log absolute determinant of the Jacobian, in nats.
TensorPair: TypeAlias = tuple[Tensor, Tensor]
#: ``(y, ladj, score)``.
TensorTriple: TypeAlias = tuple[Tensor, Tensor, Tensor]
TensorDict: TypeAlias = dict[str, Tensor]
#: Width of the hidden layers: one number for one layer, a sequence for several.
Hidden: TypeAlias = int | Sequence[int] | None
