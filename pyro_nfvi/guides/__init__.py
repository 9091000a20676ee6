"""``AutoFlow`` and the base class of guides; named guides are at the top: ``pyro_nfvi.AutoIAF``."""

from __future__ import annotations

from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._vector_guide import VectorGuide

__all__ = [
    "AutoFlow",
    "VectorGuide",
]
