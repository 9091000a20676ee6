"""Estimate of modes that starts have not met, from how often they met each of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class UnseenStarts:
    r"""An estimate of unseen starts: no bound on the mass that is missing.

    Attributes:
        starts: Starts that ended somewhere.
        ends: Distinct modes in which they ended, those that were dropped later counted too.
        alone: Modes that one start alone ended in.
        chance: Good and Turing's chance that one more start ends in a mode that none has met.
        unseen: Chao's lower bound on the number of such modes.
        share: Their share of the evidence, were each as heavy as the mean of those met once.
        beyond: Modes that were dropped since no more are kept.
    """

    starts: int
    ends: int
    alone: int
    chance: float
    unseen: float
    share: float
    beyond: int = 0


def unseen_starts(counts: Tensor, log_evidence: Tensor, beyond: int = 0) -> UnseenStarts:
    r"""Estimate how many modes the starts have not met, and their share of the evidence.

    With :math:`f_r` modes met by r of n starts each, chance is :math:`f_1 / n`. Modes without mass,
    such as the neck of a funnel, would count as any other; so numbers of modes are effective ones,
    by their evidences :math:`w`,

    .. math:: \tilde f_r = \frac{(\sum w)^2}{\sum w^2}, \qquad
        f_0 = \frac{\tilde f_1 (\tilde f_1 - 1)}{2 (\tilde f_2 + 1)}, \qquad
        \text{share} = \frac{f_0 \bar w_1}{f_0 \bar w_1 + \sum_k w_k}

    with sums over the modes met r times, and :math:`\bar w_1 = \sum w / \tilde f_1` over those met
    once. Where all starts end in one mode, all three are 0.

    Args:
        counts: Starts that ended in each mode ``(K,)``; modes that none ended in have 0.
        log_evidence: Their log evidences ``(K,)``, in nats, up to a constant.
        beyond: Modes that were dropped since no more are kept.

    Source: Good 1953, doi 10.1093/biomet/40.3-4.237; Chao 1984, Scandinavian Journal of Statistics
    11, in its bias-corrected form. That starts find modes as a survey finds species holds as far as
    starts are independent; later rounds start around the modes of earlier ones.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.unseen_starts import unseen_starts
        >>> unseen_starts(torch.tensor([48]), torch.zeros(1)).share
        0.0
        >>> found = unseen_starts(torch.ones(20, dtype=torch.long), torch.zeros(20))
        >>> round(found.chance, 2), round(found.unseen), round(found.share, 2)
        (1.0, 190, 0.9)
    """
    counts = counts.cpu()
    starts, once, twice = int(counts.sum()), counts == 1, counts == 2
    weights = torch.softmax(log_evidence.detach().double().cpu(), 0)
    alone, of_once, of_twice = (
        int(once.sum()),
        _effective(weights[once]),
        _effective(weights[twice]),
    )
    unseen = of_once * max(0.0, of_once - 1) / (2 * (of_twice + 1))
    missing = unseen * float(weights[once].sum()) / max(1.0, of_once)
    return UnseenStarts(
        starts=starts,
        ends=int((counts > 0).sum()),
        alone=alone,
        chance=alone / max(1, starts),
        unseen=unseen,
        share=missing / (1 + missing),
        beyond=beyond,
    )


def _effective(weights: Tensor) -> float:
    """Return the effective number of modes of these weights, 0 of none."""
    square = float(weights.square().sum())
    return float(weights.sum()) ** 2 / square if square > 0 else 0.0
