"""The base class of guides; the guides themselves are at the top: ``pyro_nfvi.AutoFlow``."""

from __future__ import annotations

from pyro_nfvi.guides._vector_guide import VectorGuide

__all__ = [
    "VectorGuide",
]
