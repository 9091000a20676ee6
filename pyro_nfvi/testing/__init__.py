"""The laws that every flow keeps, public so that users can examine their own flows.

>>> from pyro_nfvi.flows import DiagonalAffine
>>> check_flow(DiagonalAffine, dims=(2,), laws=["shapes", "round trip", "ladj"])
"""

from __future__ import annotations

from pyro_nfvi.testing._case import FlowCase, Law, perturb
from pyro_nfvi.testing._check_flow import LAWS, check_flow

__all__ = [
    "FlowCase",
    "LAWS",
    "Law",
    "check_flow",
    "perturb",
]
