"""The Gaussian of a model with many rows in plates: its precision is a block arrow."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.block_arrow import (
    BlockArrowGaussian,
    PlateRows,
    find_arrow,
    fit_block_arrow,
)
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.plate_layout import PlateLayout
from pyro_nfvi.guides._recipe import GUIDES
from pyro_nfvi.infer._recipe import CALL_SIZES, GAUSSIAN_START


def block_arrow_start(
    log_joint: LogJoint, target: Target, drawn: Tensor, generator: torch.Generator
) -> BlockArrowGaussian | None:
    """Fit a Gaussian that knows the rows of a model's plates, where there are many latents.

    Args:
        log_joint: The model.
        target: Its density.
        drawn: Draws from the prior ``(N, D)``, possibly none.
        generator: Source of the noise.

    Returns:
        None for few latents; where rows of plates interact, or few latents stand in plates; and
        for a model that is run row by row or on mini-batches.
    """
    init = log_joint.latent.init_loc.detach().double()
    if len(init) <= GUIDES.full_dim or log_joint.in_parts:
        return None
    rows = plate_rows(log_joint)
    if all(len(positions) == 1 for _, positions, _ in rows):
        return None
    narrow = torch.full_like(init, GAUSSIAN_START.narrow)
    arrow = find_arrow(target, init, narrow, rows, generator=generator)
    if arrow is None:
        return None
    most = max(1, min(GAUSSIAN_START.arrow_starts, CALL_SIZES.search // log_joint.size))
    starts = [(init, narrow), (init, torch.full_like(init, GAUSSIAN_START.wide))]
    starts += [(row.to(init), narrow) for row in drawn]
    return fit_block_arrow(target, starts[:most], arrow, generator=generator)


def plate_rows(log_joint: LogJoint) -> list[PlateRows]:
    """Return the rows of the plates of a model, parents first."""
    blocks = PlateLayout.from_space(log_joint.latent).blocks
    return [(block.name, block.positions, block.parents) for block in blocks]
