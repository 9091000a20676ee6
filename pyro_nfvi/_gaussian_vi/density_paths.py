"""Paths between two points, straight or bent along a ridge, and the valleys on them."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.recipe import PATHS
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._optim.learning_rate import cosine


def valleys(target: Target, one: Tensor, others: Tensor, dip: float) -> Tensor:
    """Mark the points ``(N, D)`` that a valley separates from one point, on the straight line.

    In a valley the log density is lower by ``dip`` nats than at both ends.
    """
    height, _, _ = target(_straight(one, others))
    return _dips(height, dip)


def bent_valleys(target: Target, frame: Normals, one: Tensor, others: Tensor, dip: float) -> Tensor:
    r"""Mark the points that a valley separates from one point, whatever the path bends along.

    Points of a path move with the gradient across it, in the coordinates of one Gaussian, and are
    spread evenly again after each step. Between two arms of one bent ridge such a path stays high;
    between two modes it has to cross a saddle.

    Cost:
        60 calls of the density with 21 rows for each path.

    Source: the string method, E, Ren and Vanden-Eijnden 2007, doi 10.1063/1.2720838.
    """
    start = _straight(one, others).transpose(0, 1) - frame.loc
    path = _coordinates(frame, start)
    lowest = None
    for step in range(PATHS.steps):
        if step and target.budget.over():
            break
        height, score, _ = target(frame.points(path.flatten(0, 1)[None])[0].view_as(path))
        found = height.T
        lowest = (
            found
            if lowest is None
            else torch.where(found.min(0).values > lowest.min(0).values, found, lowest)
        )
        slope = frame.pull(score.flatten(0, 1)[None])[0].view_as(path)
        along = torch.nn.functional.normalize(path[:, 2:] - path[:, :-2], dim=-1)
        inner = slope[:, 1:-1]
        across = inner - (inner * along).sum(-1, keepdim=True) * along
        length = (path[:, 1:] - path[:, :-1]).norm(dim=-1).mean(-1)[:, None, None]
        fall = cosine(step / PATHS.steps, end=0.0)
        rate = PATHS.move * fall + PATHS.last_move
        size = across.norm(dim=-1, keepdim=True)
        # Far away the direction counts; near the ridge, in units of the frame, the slope does.
        across = across / size.clamp_min(1.0) * rate * length
        path = _spread(torch.cat([path[:, :1], path[:, 1:-1] + across, path[:, -1:]], 1))
    assert lowest is not None
    return _dips(lowest, dip)


def _straight(one: Tensor, others: Tensor) -> Tensor:
    """Lay straight paths ``(21, N, D)`` from one point to others."""
    share = torch.linspace(0, 1, PATHS.points, dtype=one.dtype, device=one.device)[:, None, None]
    return one + share * (others - one)


def _dips(height: Tensor, dip: float) -> Tensor:
    return height.min(0).values < torch.minimum(height[0], height[-1]) - dip


def _coordinates(frame: Normals, away: Tensor) -> Tensor:
    if not frame.is_full:
        return away / frame.factor[0]
    flat = away.flatten(0, 1)
    return torch.linalg.solve_triangular(frame.factor[0], flat.T, upper=False).T.view_as(away)


def _spread(path: Tensor) -> Tensor:
    """Put the points of each path ``(N, 21, D)`` at equal distances on it."""
    length = (path[:, 1:] - path[:, :-1]).norm(dim=-1)
    way = torch.nn.functional.pad(length.cumsum(-1), (1, 0))
    share = torch.linspace(0, 1, path.shape[1], dtype=path.dtype, device=path.device)
    wanted = way[:, -1:] * share
    right = torch.searchsorted(way.contiguous(), wanted.contiguous()).clamp(1, path.shape[1] - 1)
    before, after = way.gather(1, right - 1), way.gather(1, right)
    part = ((wanted - before) / (after - before).clamp_min(1e-300)).clamp(0, 1).unsqueeze(-1)
    index = right.unsqueeze(-1).expand_as(path)
    return torch.lerp(path.gather(1, index - 1), path.gather(1, index), part)
