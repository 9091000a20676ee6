"""The problem that a training solves: what is trained, towards what, with which noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._pyro_guide import PyroGuide
from pyro_nfvi.objectives._objective import Objective


@dataclass(frozen=True)
class Task:
    """One training of a guide.

    Attributes:
        guide: The guide that is trained.
        log_joint: The model's log joint.
        objective: What is estimated.
        params: All leaves that are trained.
        optimizer: Holds them.
        num_particles: Rows of noise in each step.
        generator: Source of the noise; None draws from torch's own (forked) state.
    """

    guide: AutoFlow | PyroGuide
    log_joint: LogJoint
    objective: Objective
    params: Sequence[Tensor]
    optimizer: torch.optim.Optimizer
    num_particles: int
    generator: torch.Generator | None
