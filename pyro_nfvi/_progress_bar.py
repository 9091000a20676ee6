"""Progress bars: one that moves for people who watch, one line of text elsewhere, or nothing.

The line of each stage goes to the logger ``pyro_nfvi`` as well, at the level INFO: silent unless
the user sets logging up.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any, Protocol

from pyro_nfvi._model_lock import restore_in_child


class ProgressBar(Protocol):
    """The part of tqdm's interface that is used here."""

    #: Units that are done.
    n: Any
    #: Units in all, or None.
    total: Any

    def update(self, n: float | None = 1) -> object:
        """Count units of work."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> object:  # noqa: FBT001, FBT002
        """Set the text behind the count."""

    def close(self) -> object:
        """End the bar."""

    def __enter__(self) -> ProgressBar:
        """Begin; the end closes the bar."""

    def __exit__(self, *error: object) -> object:
        """Close the bar."""


#: The one logger of the package.
LOGGER = logging.getLogger("pyro_nfvi")
LOGGER.addHandler(logging.NullHandler())


class _Silent:
    """Count and show nothing."""

    def __init__(self, what: str, unit: str, total: float | None, done: float) -> None:
        self.n, self.total = done, total
        self._what, self._unit, self._told, self._begin = what, unit, "", time.monotonic()

    def _line(self) -> str:
        told = f", {self._told}" if self._told else ""
        count = f"{self.n:g} {self._unit}{'' if self.n == 1 else 's'}"
        return f"{self._what}: {count}, {time.monotonic() - self._begin:.1f} s{told}"

    def update(self, n: float | None = 1) -> object:
        self.n += n or 0
        return None

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> object:  # noqa: FBT001, FBT002
        return None

    def close(self) -> object:
        LOGGER.info(self._line())
        return None

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *error: object) -> object:
        return self.close()


class _Line(_Silent):
    """Stand-in for a bar where there is no terminal: one line of text, at its end."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> object:  # noqa: FBT001, FBT002
        self._told = s
        return None

    def close(self) -> object:
        print(self._line(), file=sys.stderr, flush=True)
        return super().close()


def progress_bar(
    what: str, total: float | None = None, *, unit: str, show: bool = True, done: float = 0
) -> ProgressBar:
    """Open a bar, or its stand-in where standard error is neither a terminal nor a notebook.

    A bar starts no thread, and one that shows nothing does not import tqdm.

    Args:
        what: The work, in words.
        total: Units of work, where that is known.
        unit: Name of such a unit.
        show: Show anything.
        done: Units that were done before.

    Example:
        >>> with progress_bar("density", 3, unit="step", show=False) as bar:
        ...     bar.update(2)
        >>> bar.n, bar.total
        (2, 3)
    """
    if not show:
        return _Silent(what, unit, total, done)
    from tqdm.auto import tqdm

    notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    if not notebook and not sys.stderr.isatty():
        return _Line(what, unit, total, done)

    def close(bar: Any) -> None:
        if not bar.disable:  # it is closed once more when it is deleted
            LOGGER.info(str(bar))
        tqdm.close(bar)

    # tqdm's monitor is a thread that would outlive the call.
    quiet = type("ProgressBar", (tqdm,), {"monitor_interval": 0, "close": close})
    made: ProgressBar = quiet(total=total, initial=done, desc=what, unit=unit, leave=True)
    return made


def _new_lock_of_bars() -> None:
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())


# The lock of all bars may be held by a thread that a fork leaves behind.
restore_in_child(lambda: _new_lock_of_bars)
