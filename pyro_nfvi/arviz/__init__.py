"""``to_arviz``: the result of a fit as ArviZ sees it."""

from __future__ import annotations

from pyro_nfvi.arviz.convert import to_arviz

__all__ = ["to_arviz"]
