"""The model's log joint density as a function of one unconstrained vector per particle."""

from __future__ import annotations

from pyro_nfvi.logjoint.gradient_fault import GradientFault, find_gradient_fault
from pyro_nfvi.logjoint.log_joint import LogJoint
from pyro_nfvi.logjoint.run import Evaluation, ModelRun
from pyro_nfvi.logjoint.second_opinion import Objection, Opinion, second_opinion
from pyro_nfvi.logjoint.start_fault import StartFault, start_fault

__all__ = [
    "Evaluation",
    "GradientFault",
    "LogJoint",
    "ModelRun",
    "Objection",
    "Opinion",
    "StartFault",
    "find_gradient_fault",
    "second_opinion",
    "start_fault",
]
