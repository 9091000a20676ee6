"""``StopReason``: the reason why a training ended, as a word and a sentence."""

from __future__ import annotations


class StopReason(str):
    """The reason why a fit stopped: one word, with the whole sentence in ``detail``.

    One of ``converged``, ``max_steps``, ``max_seconds``, ``interrupted``, ``callback``,
    ``diverged`` (of an error's fit), and ``not_finite``: more than a tenth of the last particles
    were left out.
    ``unfinished`` is True where more steps would have raised the bound beyond its noise.

    Example:
        >>> reason = StopReason("converged", "The bound rose by less than 0.01 nats.")
        >>> reason == "converged", reason.detail
        (True, 'The bound rose by less than 0.01 nats.')
    """

    detail: str
    unfinished: bool

    def __new__(cls, word: str, detail: str = "", unfinished: bool = False) -> StopReason:  # noqa: FBT001, FBT002
        reason = super().__new__(cls, word)
        reason.detail, reason.unfinished = detail, unfinished
        return reason

    def __reduce__(self) -> tuple[type[StopReason], tuple[str, str, bool]]:
        return type(self), (str(self), self.detail, self.unfinished)
