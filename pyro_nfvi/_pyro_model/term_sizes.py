"""Sizes of the terms of a log joint, which bound the rounding of their sum."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import torch
from torch import Tensor

from pyro_nfvi._pyro_model.log_joint import LogJoint


def largest_terms(log_joint: LogJoint, z: Tensor, subsample: Mapping[str, Tensor]) -> Tensor:
    """Largest absolute log density among the sites at each row of ``z (S, D)``: ``(S,)``.

    Terms that cancel leave their rounding behind. One run of the model per row.
    """
    sizes = []
    with torch.no_grad(), pyro.validation_enabled(False):
        for row in z:
            values, ladj = log_joint.latent.constrain(row)
            trace = log_joint._run.trace(values, subsample, enumerate_sites=False)
            terms = [
                site["log_prob"].detach().abs().max()
                for site in trace.nodes.values()
                if site["type"] == "sample" and site["log_prob"].numel()
            ]
            sizes.append(torch.stack([ladj.abs(), *(term.to(ladj) for term in terms)]).max())
    return torch.stack(sizes)
