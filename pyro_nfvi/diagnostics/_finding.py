"""``Finding``: a fact about a fit beyond its weights, with its level in the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """Weight of a finding in the verdict."""

    #: Reported, without an effect on the verdict.
    REMARK = 0
    #: The verdict is not "good".
    DOUBT = 1
    #: The verdict is "do not trust".
    FAULT = 2


@dataclass(frozen=True)
class Finding:
    """One fact about a fit beyond its weights.

    A subclass holds values of JSON's types (tuples for lists), so that a saved fit keeps them.
    """

    @property
    def level(self) -> Level:
        """Weight in the verdict."""
        raise NotImplementedError

    def sentence(self) -> str:
        """The reason that the verdict gives; empty for none."""
        raise NotImplementedError
