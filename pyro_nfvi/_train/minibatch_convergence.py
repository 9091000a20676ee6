"""A flat bound under mini-batches: the same batches, with the same noise, before and after."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_nfvi._train.recipe import PAIRED, PairedRecipe


@dataclass
class PairedPlateau:
    r"""Compare a training's state with that of some steps ago on common mini-batches.

    A bound on a mini-batch is noise of which batch it was: its sd is :math:`\sqrt{N/B}` nats and
    more where that of all data is one, and hides any rise. The difference of two states on *one*
    batch, with one noise, has none of that. Batches are new ones for every look, so that no state
    is chosen for them: they are scored when a span of steps begins, and again at its end.

    The bound is flat where the rise of a span, per pass over the rows, is below ``tolerance`` with
    some certainty: :math:`\max(\hat r, 0) + z\,\mathrm{se} < \tau`. Where that cannot be told, the
    training goes on.

    Attributes:
        measure: Scores the batches of a look by its number, at the present state: ``(m,)`` bounds
            on all data, in nats, independent of each other.
        tolerance: Nats of rise :math:`\tau` that are not worth more steps.
        passes: Passes over the rows in a span of steps, of which a rise is a part; 1 for more.
        recipe: Numbers of the test.
        rise: The last rise in nats, and ``error``, its standard error.
        looks: Bounds of the batches that the present span began with, after the number of the look:
            what a checkpoint holds.

    Source: common random numbers, Glasserman and Yao 1992, Management Science 38(6).

    Example:
        >>> import torch
        >>> from pyro_nfvi._random import stream
        >>> curve = iter([10.0, 11.0, 11.0, 11.0, 11.0])
        >>> def measure(look):
        ...     return next(curve) + torch.randn(8, generator=stream(0, "batches", look))
        >>> test = PairedPlateau(measure, tolerance=0.1)
        >>> [test.flat(step) for step in (200, 400, 600)]
        [False, False, True]
    """

    measure: Callable[[int], Tensor]
    tolerance: float
    passes: float = 1.0
    recipe: PairedRecipe = PAIRED
    rise: float = math.nan
    error: float = math.nan
    looks: list[float] = field(default_factory=list)

    def flat(self, step: int) -> bool:
        """Look at the state after ``step``, if a look is due; return True if the bound is flat."""
        if step % self.recipe.span:
            return False
        look, flat = step // self.recipe.span, False
        if self.looks and self.looks[0] == look:
            before = torch.tensor(self.looks[1:], dtype=torch.float64)
            flat = self._small(self.measure(look).double().cpu() - before)
        self.looks = [float(look + 1), *self.measure(look + 1).double().tolist()]
        return flat

    def _small(self, rises: Tensor) -> bool:
        rises = rises[torch.isfinite(rises)]
        if len(rises) < 2:
            return False
        scale = 1 / min(1.0, max(self.passes, 1e-6))  # of a part of a pass, the rest is to come
        self.rise = float(rises.mean()) * scale
        self.error = float(rises.std()) / math.sqrt(len(rises)) * scale
        # A fall by chance does not make up for what cannot be seen.
        return max(self.rise, 0.0) + self.recipe.errors * self.error < self.tolerance
