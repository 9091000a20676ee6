"""The choice among the states of a finished training: the last, the best, an average."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._random import stream
from pyro_nfvi._train.recipe import TRAINING
from pyro_nfvi._train.task import Task
from pyro_nfvi.infer._weighted_draws import most_on_all_data, score


def keep_best_state(
    task: Task, others: Sequence[Snapshot], seed: int, budget: Budget = UNLIMITED
) -> bool:
    """Leave the best of the last state and some others in place.

    The best one by the objective's own bound, beyond noise.

    Args:
        task: The training, in its last state.
        others: Earlier states, or averages of some.
        seed: Of the draws on which they are compared.
        budget: Once it is spent, no further state is compared.

    Returns:
        True if the last state was kept.
    """
    if not others:
        return True
    last = Snapshot.take(0, task.params, task.optimizer)
    noise, count = None, TRAINING.compared_draws
    if task.generator is not None:
        noise = stream(seed, "keep", device=task.generator.device)
    density, joint = task.guide.density, task.log_joint
    eps = density().sample_base(count, generator=noise)
    subsample = joint.draw_subsample(noise)
    # On all data where that is possible: what one batch likes best is not the best state.
    whole = bool(joint.subsampled) and most_on_all_data(joint) >= count

    def log_p(z: Tensor) -> Tensor:
        return score(joint, z, noise)[0].log_p if whole else joint(z, subsample)

    def terms() -> Tensor:
        with torch.no_grad():
            z, log_q = density().push(eps)
            log_w = log_p(z) - log_q
        # A finite number that no bound reaches: a state that is not finite somewhere is not best.
        log_w = torch.where(torch.isfinite(log_w), log_w, torch.full_like(log_w, -1e10)).double()
        return task.objective.terms(log_w)

    kept, now = last, terms()
    for other in others:
        if budget.over():
            break
        other.put_values(task.params)
        found = terms()
        rise = found - now  # on the same noise, so that little of it is noise
        if rise.mean() > TRAINING.compared_errors * rise.std() / len(rise) ** 0.5:
            kept, now = other, found
    kept.put_values(task.params)
    return kept is last
