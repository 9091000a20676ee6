"""The log joint of a guide of rows, at the layout of one mini-batch of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow


def rows_log_joint(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    guide: AutoPlateFlow,
) -> LogJoint:
    """Make the log joint of as many rows of each plate as the model draws.

    Args:
        model: The model, with discrete sites marked.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        guide: A guide of it, set up.
    """
    batch = {
        frame.name: torch.arange(int(frame.size))
        for name in guide.latent.sites
        for frame in guide.prototype_trace.nodes[name]["cond_indep_stack"]
        if frame.vectorized and frame.full_size and int(frame.size) != int(frame.full_size)
    }
    return LogJoint(model, args, kwargs, guide.layout.at(batch).space)
