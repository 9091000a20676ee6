"""The globals of a fit of rows, moved to where re-drawn rows weigh them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._random import stream
from pyro_nfvi.diagnostics._importance import ess, weighted_mean, weighted_sd
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.errors import WeightError
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.infer._checks.row_weights import GlobalWeights
from pyro_nfvi.infer._recipe import PLATES


def calibrate_globals(
    guide: AutoPlateFlow,
    weights: GlobalWeights,
    weigh: Callable[[], GlobalWeights],
) -> tuple[GlobalWeights, int]:
    r"""Shift and stretch each global number to its mean and sd under the weights, while that helps.

    The bound of globals and rows together is flat in what it says of the globals alone: where rows
    do not follow the globals within their sd, it draws these narrower than they are, by a nat of a
    hundred thousand; and mini-batches make them wander by as much. The weights of globals with
    rows integrated out see both. A move counts where it makes more of the draws effective.

    Args:
        guide: The guide, which is moved in place.
        weights: Its draws of globals, weighed on all rows.
        weigh: Weighs them anew.

    Returns:
        The weights of the guide as it is then, and how often it was moved.

    Cost:
        One more pass over the rows for each move, at most ``calibrations``.

    Source: moment matching by importance weights, Paananen et al. 2021, Statistics and Computing
    31(16), arXiv:1906.08850.
    """
    block = next((one for one in guide.layout.blocks if not one.plates), None)
    moves = 0
    while block is not None and moves < PLATES.calibrations:
        known = _own_draws(guide)
        found = weighted_moments(weights.z, weights.log_p - weights.log_q, known)
        if found is None:
            break
        mean, sd = found
        here, wide = known.mean(0), known.std(0)
        shift, ratio = (mean - here) / wide, (sd / wide).clamp(0.5, 2.0)
        small = float(shift.abs().max()) < PLATES.least_shift
        if small and float(ratio.log().abs().max()) < PLATES.least_stretch:
            break
        before = {name: value.clone() for name, value in guide.tables.state_dict().items()}
        guide.stretch_globals(mean - here, ratio, here)
        again = weigh()
        if not _effective(again) > _effective(weights):
            guide.tables.load_state_dict(before)
            break
        weights, moves = again, moves + 1
    return weights, moves


def weighted_moments(z: Tensor, log_w: Tensor, known: Tensor) -> tuple[Tensor, Tensor] | None:
    r"""Estimate means and sds ``(D,)`` of a posterior from few weighted draws of a density near it.

    Log weights are regressed on a quadratic in z, which makes a Gaussian of the density and it;
    what the weights say beyond is added as the difference of weighted moments on the same draws:

    .. math::
        \log w(u) \approx c + b^\top u + \tfrac12 u^\top A u, \qquad
        C = (I - A)^{-1}, \quad m = C b, \qquad
        \hat\mu = m + \mathbb{E}_w u - \mathbb{E}_{\tilde w} u, \quad
        \hat\sigma^2 = C_{ii}\, \frac{\mathrm{Var}_w u_i}{\mathrm{Var}_{\tilde w} u_i}

    with u the draws whitened, and weights :math:`\tilde w` of the quadratic alone. Where the
    posterior is Gaussian this has no noise, while the sd of 64 weighted draws is off by 9 %. With
    too few draws for all coefficients, cross terms are left out, then all.

    Args:
        z: Draws ``(S, D)``.
        log_w: Their log weights ``(S,)``, in nats.
        known: Many more draws of the same density, without weights ``(M, D)``, float64.

    Returns:
        None where fewer than ``least_effective`` draws are, or where weights say nothing.

    Source: regression of log weights on sufficient statistics, Salimans and Knowles 2013, Bayesian
    Analysis 8(4), arXiv:1206.6679; control variates, Owen, Monte Carlo theory, section 8.9.

    Example:
        >>> import torch
        >>> known = torch.randn(10_000, 1, dtype=torch.float64)
        >>> z = known[:64]
        >>> ratio = torch.distributions.Normal(0.5, 1.2).log_prob(z) + z.square() / 2
        >>> mean, sd = weighted_moments(z, ratio[:, 0], known)
        >>> abs(float(mean) - 0.5) < 0.05, abs(float(sd) - 1.2) < 0.05
        (True, True)
    """
    z = z.double()
    centre = known.mean(0)
    root, failed = torch.linalg.cholesky_ex(torch.cov(known.T).reshape(len(centre), -1))
    if int(failed):
        return None
    u = torch.linalg.solve_triangular(root, (z - centre).T, upper=False).T
    mean, covariance, quadratic = _gaussian_part(u, log_w.double())
    try:
        ours, plain = (psis(one).log_weights for one in (log_w.double(), quadratic))
    except WeightError:
        return None
    if ess(ours) < PLATES.least_effective:
        return None
    shift = weighted_mean(z, ours) - weighted_mean(z, plain)
    stretch = weighted_sd(z, ours) / weighted_sd(z, plain)
    sd = (root @ covariance @ root.T).diagonal().sqrt() * stretch
    found = centre + root @ mean + shift, sd
    return found if bool(torch.isfinite(torch.cat(found)).all()) else None


def _gaussian_part(u: Tensor, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Regress log weights on a quadratic in whitened draws.

    Returns:
        Mean and covariance of the standard normal times its exponential, and its values ``(S,)``;
        those of the standard normal where no regression can be made.
    """
    count, dim = u.shape
    ok = torch.isfinite(log_w)
    rows, columns = torch.triu_indices(dim, dim)
    diagonal = rows == columns
    for cross in (True, False):
        kept = torch.ones_like(diagonal) if cross else diagonal
        if 2 * (1 + dim + int(kept.sum())) > int(ok.sum()):
            continue
        i, j = rows[kept], columns[kept]
        basis = torch.cat([torch.ones_like(u[:, :1]), u, u[:, i] * u[:, j]], 1)
        # On the CPU in any case: few numbers, and rank-revealing there only.
        found = torch.linalg.lstsq(basis[ok].cpu(), log_w[ok].cpu(), driver="gelsd").solution.to(u)
        slope = found[1 : 1 + dim]
        bend = u.new_zeros(dim, dim)
        bend[i, j] = found[1 + dim :]
        precision = torch.eye(dim).to(u) - bend - bend.T
        factor, failed = torch.linalg.cholesky_ex(precision)
        if int(failed):
            continue
        covariance = torch.cholesky_inverse(factor)
        return covariance @ slope, covariance, basis[:, 1:] @ found[1:]
    return u.new_zeros(dim), torch.eye(dim).to(u), u.new_zeros(count)


@torch.no_grad()
def _own_draws(guide: AutoPlateFlow) -> Tensor:
    """Draw the globals of a guide many times ``(M, D)``, float64, from a fixed stream."""
    layout = guide.layout.at({p: torch.tensor([0]) for p in guide.layout.sizes}, weighted=False)
    place = next(block for block in layout.blocks if not block.plates).positions.reshape(-1)
    like = layout.space.init_loc
    noise = stream(0, "moments of globals", device=like.device)
    eps = torch.randn(
        PLATES.moment_draws, layout.dim, dtype=like.dtype, device=like.device, generator=noise
    )
    with scoring(guide):
        z, _ = guide._bind(layout).by_rows(eps)
    return z[:, place].double()


def _effective(weights: GlobalWeights) -> float:
    """Return the effective number of draws; 0 where weights say nothing."""
    try:
        found = ess(psis(weights.log_p - weights.log_q).log_weights)
    except WeightError:
        return 0.0
    return found if math.isfinite(found) else 0.0
