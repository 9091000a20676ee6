"""Whether what a guide lacks is the weight of its tails."""

from __future__ import annotations

import torch

from pyro_nfvi._modes import scoring
from pyro_nfvi.errors import NFVIError
from pyro_nfvi.infer.fit import Fit

__all__ = ["TAIL", "heavy_tails", "with_tail"]

#: The layer that is put at the output of a flow.
TAIL = "tail"
#: Fourth moment of a coordinate, in units of its variance squared (3 for a normal one), from which
#: on it is the tails that the guide lacks.
_KURTOSIS = 4.2


def heavy_tails(fit: Fit) -> bool:
    r"""Whether the posterior has heavier tails than the guide, as its weighted draws see it.

    The draws are taken back to the guide's base noise, and reweighted there. A coordinate with
    :math:`E[(\varepsilon-\mu)^4] > 4.2\,\sigma^4` is heavy. Draws have few of the far points that
    decide, so this errs towards not seeing.
    """
    smoothed = fit.draws.smoothed()
    if smoothed is None or not fit.draws.exact or fit.tail.close:
        return False
    try:
        with torch.no_grad(), scoring(fit.guide):
            eps, _ = fit.guide.transport().inverse(fit.draws.z)
    except (NFVIError, NotImplementedError, RuntimeError):
        return False
    ok = torch.isfinite(eps).all(-1)
    if int(ok.sum()) < len(ok) // 2:
        return False
    weights = smoothed.log_weights[ok].to(eps.device, torch.float64).softmax(0).unsqueeze(-1)
    eps = eps[ok].double()
    apart = eps - (weights * eps).sum(0)
    square = (weights * apart.square()).sum(0)
    fourth = (weights * apart.pow(4)).sum(0) / square.square().clamp_min(1e-300)
    return bool((fourth > _KURTOSIS).any())


def with_tail(formula: str) -> str:
    """Put a tail layer at the output.

    Example:
        >>> with_tail("iaf*2")
        'iaf*2|tail'
    """
    return f"{formula}|{TAIL}"
