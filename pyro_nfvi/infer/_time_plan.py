"""``TimePlan``: how the time of one call is divided, and what there was none for."""

from __future__ import annotations

import torch

from pyro_nfvi._budget import Budget
from pyro_nfvi._pyro_model.log_joint import LogJoint

#: Shares of the time for training that the Gaussian may take, and of the rest the search for modes.
GAUSSIAN, SEARCH = 0.5, 0.5
#: Draws with which the pace of a model is measured, by one call and by runs of their own, and
#: numbers that such a call may hold.
_PACE, _PACE_LOOP, _CALL = 200, 3, 2_000_000
#: Draws that are run at the end, by the evaluation and all checks (with all draws in one call, and
#: where each is a run of its own), and the smallest and the largest share of the time that is kept
#: for them.
_AT_THE_END, _AT_THE_END_LOOP, _LEAST, _MOST = 40_000, 1200, 0.1, 0.3
#: Draws that the look for directions without a posterior takes.
RUNAWAY_ROWS = {"plate": 4000, "vmap": 4000, "loop": 400}


class TimePlan:
    """The time of one call of ``NFVI.run``: for training, for what follows, and what was left out.

    Args:
        whole: The time of the whole call.
    """

    def __init__(self, whole: Budget) -> None:
        self.whole = whole
        #: The same, less what is kept for the evaluation at the end.
        self.training = whole
        #: Seconds that the model takes for one more draw, where time is limited.
        self.pace = 0.0
        #: What was not done for lack of time, in words.
        self.undone: list[str] = []

    def measure(self, log_joint: LogJoint) -> None:
        """Find out how fast the model is, and keep time for the evaluation at the end."""
        limit = self.whole.limit
        if limit is None or self.pace:
            return
        alone = log_joint.how == "loop"
        rows = _PACE_LOOP if alone else max(1, min(_PACE, _CALL // max(1, log_joint.size)))
        begin = self.whole.clock()
        with torch.no_grad():
            log_joint(log_joint.latent.init_loc.expand(rows, -1), log_joint.draw_subsample())
        self.pace = (self.whole.clock() - begin) / rows
        needed = self.pace * (_AT_THE_END_LOOP if alone else _AT_THE_END)
        self.training = self.whole.reserving(min(max(needed, _LEAST * limit), _MOST * limit))

    def affords(self, rows: int, what: str = "", *, of: Budget | None = None) -> bool:
        """Whether there is time to run the model for so many draws; else ``what`` is noted.

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
        if what not in self.undone:
            self.undone.append(what)
