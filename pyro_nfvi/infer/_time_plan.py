"""``TimePlan``: the clock of one call, where its time goes, and what there was no time for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pyro_nfvi._budget import Budget
from pyro_nfvi._stopwatch import Stopwatch
from pyro_nfvi.infer._recipe import CALL_SIZES, TIME

if TYPE_CHECKING:
    from pyro_nfvi._pyro_model.log_joint import LogJoint


class TimePlan:
    """The time of one call of ``NFVI.run``: for training, for what follows, and what was left out.

    Args:
        whole: The time of the whole call.
    """

    def __init__(self, whole: Budget) -> None:
        self.whole = whole
        #: Credits the time of the call to its parts.
        self.watch = Stopwatch(whole.clock, whole.begin)
        #: The same, less what is kept for the evaluation at the end.
        self.training = whole
        #: Seconds that the model takes for one more draw, where time is limited.
        self.pace = 0.0
        self._undone: tuple[str, ...] = ()

    @property
    def undone(self) -> tuple[str, ...]:
        """The parts of the call that were left out for lack of time, in words, each once."""
        return self._undone

    def measure(self, log_joint: LogJoint) -> None:
        """Measure the pace of the model, and reserve time for the evaluation at the end."""
        limit = self.whole.limit
        if limit is None or self.pace:
            return
        alone = log_joint.how == "loop"
        together = max(1, min(TIME.pace_draws, CALL_SIZES.search // max(1, log_joint.size)))
        rows = TIME.pace_loop_draws if alone else together
        begin = self.whole.clock()
        with torch.no_grad():
            log_joint(log_joint.latent.init_loc.expand(rows, -1), log_joint.draw_subsample())
        self.pace = (self.whole.clock() - begin) / rows
        needed = self.pace * (TIME.final_loop_draws if alone else TIME.final_draws)
        self.training = self.whole.reserving(
            min(max(needed, TIME.least_final * limit), TIME.most_final * limit)
        )

    def affords(self, rows: int, what: str = "", *, of: Budget | None = None) -> bool:
        """Tell whether there is time to run the model for so many draws; else note ``what``.

        Args:
            rows: Number of draws.
            what: What would be done with them.
            of: The time that it would take from; that of the whole call by default.
        """
        budget = self.whole if of is None else of
        if not budget.over() and budget.affords(rows * self.pace):
            return True
        if what:
            self.leave_out(what)
        return False

    def leave_out(self, what: str) -> None:
        """Note that something was not done for lack of time."""
        if what not in self._undone:
            self._undone = (*self._undone, what)
