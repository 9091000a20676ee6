"""Signals that end a run: a step is finished and saved first."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Signals:
    """Remembers SIGTERM and Ctrl-C, so that a step is finished before a run ends."""

    def __init__(self) -> None:
        self._came = False
        self._before: dict[int, Any] = {}

    def came(self) -> bool:
        return self._came

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread
                pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
