"""Statuses that the command ends with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Statuses:
    """Statuses for the shell; those below 3 are what commands mean by them."""

    #: All went well; of a fit, its verdict is "good".
    good: int = 0
    #: A model, data or a file that cannot be used: the message says what to do.
    failed: int = 1
    #: An option that is none, or has no such value (argparse's own).
    usage: int = 2
    #: The verdict is "usable with reweighting".
    reweight: int = 3
    #: The verdict is "do not trust".
    distrust: int = 4
    #: Ended by Ctrl-C, as shells count it: 128 and the number of the signal.
    interrupted: int = 130

    def of(self, verdict: str) -> int:
        """Return the status of a verdict."""
        known = {"good": self.good, "usable with reweighting": self.reweight}
        return known.get(verdict, self.distrust)


STATUSES = Statuses()
