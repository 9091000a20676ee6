"""At the end of a fit: is the last state the best one?"""

from __future__ import annotations

import torch

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._random import stream
from pyro_nfvi._train.loop import Loop
from pyro_nfvi._train.snapshot import Snapshot
from pyro_nfvi.infer._weighted_draws import most_on_all_data, score

#: Draws on which the last state and the best one are compared.
_COMPARE = 512


def keep_better(loop: Loop, seed: int, budget: Budget = UNLIMITED) -> bool:
    """Leave the best of the last state, the best one and the average in place.

    The best one by the objective's own bound, beyond what is noise. Returns whether it is the
    last, which also stays where the budget is spent first.
    """
    best, state = loop.best, loop.state
    others = [] if best is None or best.step == state.step else [best]
    if loop.mean is not None:
        others.append(loop.mean)
    if not others:
        return True
    last = Snapshot.take(state.step, loop.params, loop.optimizer)
    noise = None
    if loop.generator is not None:
        noise = stream(seed, "keep", device=loop.generator.device)
    eps = loop.guide.density().sample_base(_COMPARE, generator=noise)
    joint = loop.log_joint
    subsample = joint.draw_subsample(noise)
    # On all data where that is possible: what one batch likes best is not the best state.
    whole = bool(joint.subsampled) and most_on_all_data(joint) >= _COMPARE

    def log_p(z: torch.Tensor) -> torch.Tensor:
        return score(joint, z, noise)[0].log_p if whole else joint(z, subsample)

    def log_w() -> torch.Tensor:
        with torch.no_grad():
            z, log_q = loop.guide.density().push(eps)
            found = log_p(z) - log_q
        found = torch.where(torch.isfinite(found), found, torch.full_like(found, -1e10)).double()
        return loop.objective.terms(found)

    kept, now = last, log_w()
    for other in others:
        if budget.over():
            break
        other.put_values(loop.params)
        found = log_w()
        rise = found - now  # on the same noise, so that little of it is noise
        if rise.mean() > 2 * rise.std() / len(rise) ** 0.5:
            kept, now = other, found
    kept.put_values(loop.params)
    return kept is last
