"""The one policy for steps without a finite gradient: skip, restore at half the rate, give up."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from pyro_nfvi._optim.recipe import RECOVERY, RecoveryRecipe


class Action(Enum):
    """The answer of a recovery policy to the steps just taken."""

    #: Go on.
    CONTINUE = auto()
    #: Go on, after a copy of the present state: it is one to go back to.
    SNAPSHOT = auto()
    #: Go on; the last step was skipped.
    SKIP = auto()
    #: Put the last good state back, at half the rate, and call :meth:`Recovery.restored`.
    RESTORE = auto()
    #: End the training with an error.
    GIVE_UP = auto()


@dataclass
class Recovery:
    """Count steps without a finite gradient, and decide what follows.

    A step without a finite gradient changes nothing: it is skipped. After ``patience`` of them in a
    row the last good state comes back at half the learning rate; after ``restores`` returns the
    training is given up. Trainings of NFVI, maximum likelihood and the VAE share this.

    Attributes:
        recipe: The numbers of the policy.
        bad_in_a_row: Steps skipped since the last good one.
        since_snapshot: Good steps since the last good state was copied.
        skipped: Steps skipped in all.
        rate: Factor on the learning rate.
        restores: Numbers of the steps after which a state came back.

    Example:
        >>> from pyro_nfvi._optim.recovery import Recovery
        >>> recovery = Recovery()
        >>> [recovery.after(1, ok=False).name for _ in range(5)]
        ['SKIP', 'SKIP', 'SKIP', 'SKIP', 'RESTORE']
        >>> recovery.restored(step=5)
        >>> recovery.rate, recovery.after(100, ok=True).name
        (0.5, 'SNAPSHOT')
    """

    recipe: RecoveryRecipe = RECOVERY
    bad_in_a_row: int = 0
    since_snapshot: int = 0
    skipped: int = 0
    rate: float = 1.0
    restores: list[int] = field(default_factory=list)

    def after(self, count: int, *, ok: bool) -> Action:
        """Return what follows from ``count`` steps, of which only the last may be a bad one."""
        good = count - (not ok)
        if good:
            self.bad_in_a_row = 0
            self.since_snapshot += good
        if ok:
            if self.since_snapshot < self.recipe.snapshot_every:
                return Action.CONTINUE
            self.since_snapshot = 0
            return Action.SNAPSHOT
        self.skipped += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row < self.recipe.patience:
            return Action.SKIP
        spent = len(self.restores) >= self.recipe.restores
        return Action.GIVE_UP if spent else Action.RESTORE

    def restored(self, step: int) -> None:
        """Note that the last good state came back after ``step``, and lower the rate."""
        self.restores.append(step)
        self.slow_down()

    def slow_down(self) -> None:
        """Lower the rate, and count from here."""
        self.rate *= self.recipe.factor
        self.bad_in_a_row = self.since_snapshot = 0
