"""At the end of a fit: is the last state the best one?"""

from __future__ import annotations

import torch

from pyro_nfvi.infer.loop import Loop
from pyro_nfvi.infer.snapshot import Snapshot

__all__ = ["keep_better"]

#: Draws on which the last state and the best one are compared.
_COMPARE = 512


def keep_better(loop: Loop, seed: int) -> bool:
    """Leave the better of the last and the best state in place; say whether it is the last.

    The better one by the objective's own bound.
    """
    best, state = loop.best, loop.state
    if best is None or best.step == state.step:
        return True
    last = Snapshot.take(state.step, loop.params, loop.optimizer)
    generator = None
    if loop.generator is not None:
        generator = torch.Generator(loop.generator.device).manual_seed(seed + 2)
    eps = loop.guide.density().sample_base(_COMPARE, generator=generator)
    subsample = loop.log_joint.draw_subsample(generator)

    def log_w() -> torch.Tensor:
        with torch.no_grad():
            z, log_q = loop.guide.density().push(eps)
            found = loop.log_joint(z, subsample) - log_q
        found = torch.where(torch.isfinite(found), found, torch.full_like(found, -1e10)).double()
        return loop.objective.terms(found)

    now = log_w()
    best.put_values(loop.params)
    rise = log_w() - now  # on the same noise, so that little of it is noise
    if rise.mean() > 2 * rise.std() / len(rise) ** 0.5:
        return False
    last.put_values(loop.params)
    return True
