"""Sign-based ascent (Rprop) of many points side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.recipe import MODE_ASCENT
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._typing import TensorPair


def ascend(target: Target, frame: Normals, points: Tensor, num_steps: int) -> TensorPair:
    r"""Move each of many points up the log density, by the signs of the gradient.

    In the coordinates of one Gaussian each coordinate has a step of its own, which grows while
    the gradient keeps its sign and shrinks when it turns. A step into where nothing can be
    evaluated is taken back.

    Args:
        target: The density.
        frame: One Gaussian, whose coordinates are used.
        points: Where to start ``(N, D)``.
        num_steps: Steps.

    Returns:
        The highest point of each path ``(N, D)`` and its log density ``(N,)``, in nats; -inf where
        none could be evaluated.

    Cost:
        ``num_steps + 1`` calls of the density with N rows.

    Source: Riedmiller and Braun 1993 (Rprop).

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.gaussians import Normals
        >>> from pyro_nfvi._gaussian_vi.mode_ascent import ascend
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> x = torch.zeros(2, dtype=torch.float64)
        >>> target = Target(lambda z: -0.5 * (z - 3.0).square().sum(-1), x)
        >>> frame = Normals.around(torch.zeros(1, 2), 1.0)
        >>> top, _ = ascend(target, frame, torch.randn(5, 2), 60)
        >>> bool((top - 3).abs().max() < 0.01)
        True
    """
    best = points.to(frame.loc)
    height, score, _ = target(best)
    now, slope = best, frame.pull(score[None])[0]
    width = frame.factor.norm(dim=(-2, -1) if frame.is_full else -1)
    size = (best - frame.loc).norm(dim=-1, keepdim=True) / width
    step = (MODE_ASCENT.first_step * size.clamp_min(1.0)).expand_as(now)
    before = torch.zeros_like(slope)
    for _ in range(num_steps):
        if target.budget.over():
            break
        turned = slope * before < 0
        step = torch.where(
            turned,
            MODE_ASCENT.shrinkage * step,
            torch.where(before == 0, step, MODE_ASCENT.growth * step),
        )
        before = torch.where(turned, torch.zeros_like(slope), slope)
        now = now + frame.stretch((step * before.sign())[None])[0]
        found, score, ok = target(now)
        slope = frame.pull(score[None])[0]
        higher = (found > height).unsqueeze(-1)
        best, height = torch.where(higher, now, best), torch.maximum(found, height)
        bad = ~ok.unsqueeze(-1)
        if bool(bad.any()):  # back to the best point, with smaller steps and a new gradient
            now = torch.where(bad, best, now)
            again = frame.pull(target(best)[1][None])[0]
            slope = torch.where(bad, again, slope)
            step = torch.where(bad, MODE_ASCENT.retreat * step, step)
            before = torch.where(bad, torch.zeros_like(before), before)
    return best, height
