"""The laws that every flow keeps, public so that users can examine their own flows.

>>> from pyro_nfvi.flows import DiagonalAffine
>>> check_flow(DiagonalAffine, dims=(2,), laws=["shapes", "round trip", "ladj"])
"""

from __future__ import annotations

from pyro_nfvi.testing.case import FlowCase, Law, perturb
from pyro_nfvi.testing.check import LAWS, check_flow

__all__ = ["LAWS", "FlowCase", "Law", "check_flow", "perturb"]
