"""Posterior mass where a guide has none, by importance sampling from elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.mode_proposals import Proposals
from pyro_nfvi._gaussian_vi.nested_mass import outside_of
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import stream
from pyro_nfvi.diagnostics._importance import iw_gap
from pyro_nfvi.diagnostics._khat import read_tail
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.errors import WeightError
from pyro_nfvi.infer._checks.label_switching import Scored
from pyro_nfvi.infer._recipe import MASS_OUTSIDE, MODE_CHECK, MOMENTS
from pyro_nfvi.infer._weighted_draws import WeighedDraws, most_on_all_data, score

#: Rows of the model that it takes, by how particles are evaluated.
WIDE_ROWS = {"plate": MASS_OUTSIDE.rows, "vmap": MASS_OUTSIDE.rows, "loop": MASS_OUTSIDE.loop_rows}


@dataclass(frozen=True)
class Outside:
    """Posterior mass outside of a guide, by importance sampling from elsewhere.

    Attributes:
        share: Share of the posterior's mass where the guide's density is e^3 times too low.
        error: Its standard error.
        places: Number of proposals, the guide's own draws not counted.
        name: The latent that the mass outside moves most; empty where it moves none by more than
            0.1 sd, or its sd by more than 15 %.
        shift: How far its mean moves, in sds.
        stretch: By which factor its sd changes.
    """

    share: float
    error: float
    places: int = 0
    name: str = ""
    shift: float = 0.0
    stretch: float = 1.0


def mass_outside(
    density: Scored,
    log_joint: LogJoint,
    draws: WeighedDraws,
    seed: int,
    proposals: Proposals | None = None,
    budget: Budget = UNLIMITED,
) -> Outside | None:
    r"""Estimate the share of the posterior's mass where the guide's density is e^3 times too low.

    Importance sampling, by the balance heuristic, from the guide's own draws (which are scored
    already), from the proposals given (what the starts ended in, their highest point at several
    widths, the prior, the origin), and in up to 30 latents from Student t distributions with the
    draws' mean and one, three and ten times their spread. It sees tails and modes beyond the
    guide's own draws, however narrow, as far as a proposal covers them.

    Returns:
        What was found; None where nothing can be concluded, or the budget is spent first.

    Cost:
        Up to 2400 rows of the model and of the guide's inverse; 250 where rows run one by one.
    """
    z = draws.z.double()
    dim = z.shape[-1]
    if not draws.exact:
        return None
    noise = stream(seed, "missed mass", device=z.device)
    rows = (
        MASS_OUTSIDE.loop_rows
        if log_joint.how == "loop"
        else min(MASS_OUTSIDE.rows, most_on_all_data(log_joint))
    )
    wide = _around(z) if dim <= MODE_CHECK.wide_dim else None
    parts = _parts(wide, proposals, rows)
    if not parts:
        return None
    points = torch.cat([one.draw(each, noise) for one, each in parts])
    log_r, log_r_own = _log_r(parts, points), _log_r(parts, z)
    points = points.to(draws.z)
    try:
        with torch.no_grad():
            found, exact = score(log_joint, points, noise, budget, deterministic=False)
            log_p = found.log_p.double()
            if len(log_p) < len(points) or budget.over():
                return None
            log_q = density.log_prob(points).double()
    except (RuntimeError, ValueError, ArithmeticError):  # a model that cannot be run so far out
        return None
    if not exact:
        return None
    own = torch.isfinite(draws.log_w)
    all_p = torch.cat([draws.log_p.double()[own], log_p])
    all_q = torch.cat([draws.log_q.double()[own], log_q])
    every = torch.cat([z[own], points.double()])
    # The level of log p - log q is the evidence, which the guide's own draws know.
    level = float(draws.log_w.double()[own].mean()) if bool(own.any()) else -math.inf
    try:
        gap = max(0.0, iw_gap(draws.log_w[own]))
    except WeightError:
        gap = 0.0
    log_all = torch.cat([log_r_own[own], log_r])
    log_w, outside = outside_of(all_p, all_q, log_all, int(own.sum()), level, gap)
    try:
        smoothed = psis(log_w)
    except WeightError:
        return None
    weight = torch.softmax(log_w, 0)
    effective = 1 / float(weight.square().sum())
    share = float(weight[outside].sum())
    error = math.sqrt(max(share * (1 - share), 0.25 / effective) / effective)
    places = sum(len(one) for one, _ in parts)
    # Where much lies outside, uneven weights are no reason to withhold it.
    outcome = Outside(share, error, places)
    if effective < MASS_OUTSIDE.fewest_effective or not read_tail(log_w, smoothed.khat).reliable:
        return outcome if too_much(outcome) and effective > MASS_OUTSIDE.fewest_points else None
    return _with_moved(outcome, log_joint, every, weight, outside)


def too_much(outside: Outside | None) -> bool:
    """Tell whether a share of the mass, with its standard error, is too much to be left out."""
    return outside is not None and outside.share - 2 * outside.error > MASS_OUTSIDE.most_outside


def _around(z: Tensor) -> Proposals | None:
    """Student t distributions around draws."""
    dim = z.shape[-1]
    z = z[torch.isfinite(z).all(-1)]
    tril, failed = torch.linalg.cholesky_ex(torch.cov(z.T).reshape(dim, dim))
    if int(failed) or not bool(torch.isfinite(tril).all()):
        return None
    factor = torch.stack([scale * tril for scale in MASS_OUTSIDE.scales])
    return Proposals.of(Normals(z.mean(0).expand(len(factor), -1), factor), MODE_CHECK.freedom)


def _parts(
    wide: Proposals | None, others: Proposals | None, rows: int
) -> list[tuple[Proposals, int]]:
    """Both kinds, and how many draws each of their proposals gives."""
    few = rows < MASS_OUTSIDE.rows
    both = ((wide, 1 if few else MASS_OUTSIDE.own_share), (others, 1))
    kinds = [(one, n * len(one)) for one, n in both if one is not None]
    total = sum(n for _, n in kinds)
    least = 2 if few else MASS_OUTSIDE.proposal_rows
    return [(one, max(least, round(rows * n / total / len(one)))) for one, n in kinds]


def _log_r(parts: list[tuple[Proposals, int]], z: Tensor) -> Tensor:
    """Log density of all proposals together, by how many draws each gives."""
    total = sum(each * len(one) for one, each in parts)
    log_each = [one.log_prob(z) + math.log(each * len(one) / total) for one, each in parts]
    return torch.logsumexp(torch.stack(log_each), 0)


def _with_moved(
    outcome: Outside, log_joint: LogJoint, z: Tensor, weight: Tensor, outside: Tensor
) -> Outside:
    """Say which latent the mass outside moves most, where enough points say so."""
    beyond = weight * outside
    total = float(beyond.sum())
    if total < 1e-100 or total**2 / float(beyond.square().sum()) < MASS_OUTSIDE.fewest_points:
        return outcome
    inside = weight * ~outside
    if not bool(inside.any()):
        return outcome
    mean, sd = _moments(z, weight)
    other, spread = _moments(z, inside / inside.sum())
    shift, stretch = (mean - other).abs() / sd, (sd / spread.clamp_min(1e-300)).log().abs()
    worst = torch.maximum(shift / MOMENTS.mean, stretch / math.log(MASS_OUTSIDE.sd))
    index = int(worst.argmax())
    if not float(worst[index]) > 1:
        return outcome
    ratio = math.exp(min(700.0, float((sd[index] / spread[index].clamp_min(1e-300)).log())))
    return replace(
        outcome, name=log_joint.latent.at(index), shift=float(shift[index]), stretch=ratio
    )


def _moments(z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    mean = (weight.unsqueeze(-1) * z).sum(0)
    return mean, (weight.unsqueeze(-1) * (z - mean).square()).sum(0).sqrt()
