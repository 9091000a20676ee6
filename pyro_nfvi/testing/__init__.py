"""The laws that every flow keeps, for flows of your own.

>>> from pyro_nfvi.flows import DiagonalAffine
>>> check_flow(DiagonalAffine, dims=(2,), laws=["shapes", "round trip", "ladj"])
"""

from __future__ import annotations

from pyro_nfvi.testing._check_flow import check_flow

__all__ = [
    "check_flow",
]
