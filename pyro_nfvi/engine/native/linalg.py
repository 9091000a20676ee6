"""Rules of small factorisations and triangular systems."""

from __future__ import annotations

__all__: list[str] = []
