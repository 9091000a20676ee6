"""Early stopping: a score on held-out data that has stopped improving."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Count the looks at held-out data since the best one.

    Attributes:
        patience: Looks without improvement after which :meth:`see` gives True; 0 for never.
        best: Lowest loss until now.
        stale: Looks since then.

    Source: Prechelt 1998, Early stopping - but when?, in Neural Networks: Tricks of the Trade.

    Example:
        >>> from pyro_nfvi._optim.early_stopping import EarlyStopping
        >>> stopping = EarlyStopping(patience=2)
        >>> [stopping.see(loss) for loss in (3.0, 2.0, 2.5, 2.2)], stopping.best
        ([False, False, False, True], 2.0)
    """

    patience: int
    best: float = math.inf
    stale: int = 0

    def see(self, loss: float, *, counts: bool = True) -> bool:
        """Take one more loss; return True once it has not improved for ``patience`` looks.

        Args:
            loss: The loss; infinite where it is not finite.
            counts: False where a loss that is no better does not count, as during a warm-up.
        """
        if loss < self.best:
            self.best, self.stale = loss, 0
        elif counts:
            self.stale += 1
        return self.exhausted

    @property
    def exhausted(self) -> bool:
        """Tell whether the patience is spent."""
        return bool(self.patience) and self.stale >= self.patience
