"""Coordinates whose location and scale follow others, found from scores of a log density."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.multistart import GaussianFit, fit_gaussian
from pyro_nfvi._gaussian_vi.recipe import CONDITIONAL
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi.errors import WeightError
from pyro_nfvi.flows._conditional_affine import (
    ConditionalAffine,
    ConditionalStage,
    features,
    monomials,
)


@dataclass(frozen=True, eq=False)
class ConditionalGaussian:
    """A Gaussian in coordinates that follow others.

    Attributes:
        gaussian: The Gaussian, of coordinates before the stages.
        stages: How they follow others.
        num_rows: Gradients of the density that it took.
    """

    gaussian: GaussianFit
    stages: tuple[ConditionalStage, ...]
    num_rows: int

    @property
    def num_own(self) -> int:
        """Number of coordinates that follow others."""
        return sum(len(stage.own) for stage in self.stages)


def fit_conditional_gaussian(
    target: Target,
    found: GaussianFit,
    generator: torch.Generator,
    *,
    effort: float = 1.0,
    whole: bool = False,
) -> ConditionalGaussian | None:
    r"""Fit a Gaussian in coordinates that follow others; None where there are none.

    A latent whose density given all others is nearly Gaussian, with a mean and a width that change
    with some of them, is taken relative to these: the rows of a funnel given its scale, the arm of
    a banana given the number that it bends with. Where :math:`\log p` has third derivatives

    .. math:: t_{ji} = \partial_i^2 \partial_j \log p,

    which are second differences of scores, :math:`t_{ji}` relative to :math:`\partial_i^2 \log p`
    says how the width of i changes with j. The latents that take part in most of it are given, one
    by one, until the others have none among themselves. For draws of those given, a Newton step
    from any place is the mean of the others, and the inverse curvature their covariance; both are
    regressed on polynomials and splines. The same is done for the marginal density of the given
    ones, and so on. A Gaussian is then fitted in the new coordinates, and all is done again with
    its draws, as long as the bound rises.

    Args:
        target: The density.
        found: The best Gaussian.
        generator: Source of the noise.
        effort: Factor on the steps of the Gaussian.
        whole: None too where the density of those that follow no others has third derivatives:
            then the fit cannot be exact, and flows may serve as well.

    Cost:
        16 D gradients to see that there is nothing to do; else some tens of thousands.

    Source: partially non-centred forms, Gorinova et al. 2020, arXiv:1906.03028; marginal densities
    by Laplace's method, Rue, Martino and Chopin 2009, doi 10.1111/j.1467-9868.2008.00700.x.
    """
    before = target.num_rows
    best: ConditionalGaussian | None = None
    now, level = found, found.bound
    stages: tuple[ConditionalStage, ...] = ()
    for _ in range(CONDITIONAL.rounds):
        if target.budget.over():
            break
        stages, change = _found_stages(target, now, stages, generator)
        most = CONDITIONAL.exact_change if best is None else CONDITIONAL.nearly_exact_change
        if not stages or (whole and change > most):
            break
        start = _start(now, stages)
        inner = target.through(_map(now.loc, stages))
        try:
            share = CONDITIONAL.first_effort if whole and best is None else 1.0
            now = fit_gaussian(inner, start, effort=share * effort, generator=generator)
        except WeightError:
            break
        gained = now.bound - level
        if gained <= 2 * now.bound_se and best is not None:
            break
        level = max(level, now.bound)
        best = ConditionalGaussian(now, stages, target.num_rows - before)
        if gained < CONDITIONAL.least_gain or now.gap < CONDITIONAL.exact:
            break
    if best is None or best.gaussian.bound < found.bound:
        return None
    return replace(best, num_rows=target.num_rows - before)


def _map(loc: Tensor, stages: Sequence[ConditionalStage]) -> ConditionalAffine:
    """Return the stages alone, as a map of coordinates."""
    return ConditionalAffine(torch.zeros_like(loc), torch.ones_like(loc), stages)


def _start(now: GaussianFit, stages: Sequence[ConditionalStage]) -> Normals:
    """Return starts: the Gaussian of what follows nothing, and the standard one of the rest."""
    own = torch.cat([stage.own for stage in stages])
    loc, diagonal = now.loc.clone(), now.factor.dim() == 1
    cov = torch.diag(now.factor**2) if diagonal else now.factor @ now.factor.mT
    loc[own] = 0.0
    cov[own] = 0.0
    cov[:, own] = 0.0
    cov[own, own] = 1.0
    factors = [scale * torch.linalg.cholesky(cov) for scale in CONDITIONAL.starts]
    if diagonal:
        factors = [factor.diagonal() for factor in factors]
    return Normals(loc.expand(len(factors), -1), torch.stack(factors))


def _found_stages(
    target: Target,
    now: GaussianFit,
    stages: Sequence[ConditionalStage],
    generator: torch.Generator,
) -> tuple[tuple[ConditionalStage, ...], float]:
    """Find the stages anew, the last ones first, from draws of a Gaussian behind known ones.

    Returns:
        The stages, and how much precisions of what follows nothing change, by an sd.
    """
    loc, factor = now.loc, now.factor
    known = ConditionalAffine(loc, factor, stages)
    rest = torch.arange(len(loc), device=loc.device)
    found: list[ConditionalStage] = []
    change = math.inf
    for _ in range(CONDITIONAL.levels):
        inner = target
        if found:
            done = torch.cat([stage.own for stage in found])
            inner = target.through(_map(loc, found)).holding(done, loc.new_zeros(len(done)))
        level, change = _one_level(inner, known, rest, generator)
        if not level:
            break
        found = [*(stage.at(rest) for stage in level), *found]
        own = torch.cat([rest[stage.own] for stage in level])
        rest = rest[~torch.isin(rest, own)]
    return tuple(found), change


def _one_level(
    target: Target, known: ConditionalAffine, rest: Tensor, generator: torch.Generator
) -> tuple[list[ConditionalStage], float]:
    """Find coordinates of ``rest`` that are Gaussian given the others, and how they follow them.

    Returns:
        Their stages, and where there are none, how much precisions of ``rest`` change.
    """
    given, dim = CONDITIONAL, known.dim

    def draws(num: int, width: float) -> Tensor:
        noise = torch.randn(num, dim, generator=generator, device=rest.device).to(known.loc)
        return known(width * noise)[0]

    spread = draws(given.moment_draws, 1.0)[:, rest]
    scale = _robust_scale(spread)
    first = spread[: given.points]
    _, curvature, _ = _derivatives(target, first, given.first_step * _conditional(spread))
    width = curvature.diagonal(dim1=-2, dim2=-1).abs().clamp(min=1e-12).rsqrt()
    step = torch.minimum(given.step * width, scale)
    ok, curvature, third = _derivatives(target, first, step)
    if int(ok.sum()) < 2:
        return [], math.inf
    curvature, third = curvature[ok], third[ok]
    parents, children, links = _structure(curvature, third, scale)
    if not len(children):
        own = _relative(curvature, third, scale)
        return [], float(own.square().sum().sqrt())
    count = int(given.rows / (4 * len(children) + 2))
    count = max(given.fewest_values, min(given.values, count))
    wide = known(given.width * _noise(count, dim, generator, known.loc))[0][:, rest]
    # The others start where the map so far has their middle.
    points = _middle(known, wide, rest, parents)
    found = _conditional_moments(target, points, children, step.median(0).values)
    if found is None:
        return [], math.inf
    keep, means, log_scales = found
    values = points[keep][:, parents]
    if len(values) < given.fewest_values // 2:
        return [], math.inf
    return _regressions(values, means, log_scales, parents, children, links), math.inf


def _noise(num: int, dim: int, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(num, dim, generator=generator, device=like.device).to(like)


def _middle(known: ConditionalAffine, points: Tensor, rest: Tensor, parents: Tensor) -> Tensor:
    """Put coordinates that are not given at the middle that a map has for them."""
    whole = points.new_zeros(len(points), known.dim)
    whole[:, rest] = points
    x, _ = known.inverse(whole)
    u = known.loc + (x @ known.factor.mT if known.factor.dim() == 2 else x * known.factor)
    at = rest[parents]
    others = torch.ones(known.dim, dtype=torch.bool)
    others[at] = False
    cov = known.factor @ known.factor.mT if known.factor.dim() == 2 else torch.diag(known.factor**2)
    slope = torch.linalg.solve(cov[at][:, at], cov[at][:, others])
    u[:, others] = known.loc[others] + (u[:, at] - known.loc[at]) @ slope
    y, _ = _map(known.loc, known.stages)(u)
    moved = y[:, rest].clone()
    moved[:, parents] = points[:, parents]
    return moved


def _robust_scale(draws: Tensor) -> Tensor:
    """Return half the width of the middle 68 % of each coordinate."""
    low, high = (draws.quantile(share, 0) for share in (0.16, 0.84))
    return (0.5 * (high - low)).clamp(min=1e-12)


def _conditional(draws: Tensor) -> Tensor:
    """Return sds of each coordinate given the others, as of a Gaussian with the draws' moments."""
    cov = torch.atleast_2d(torch.cov(draws.mT))
    scale = cov.diagonal().clamp(min=1e-24).sqrt()
    correlation = cov / scale / scale.unsqueeze(-1)
    eye = torch.eye(len(scale), dtype=cov.dtype, device=cov.device)
    precision = torch.linalg.inv(correlation + 1e-8 * eye)
    return scale * precision.diagonal().clamp(min=1.0).rsqrt()


def _derivatives(target: Target, z: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which points are fine, and second and third derivatives ``(N, d, d)`` there.

    ``[n, j, i]`` is the derivative of the score of j by i, and its second one.
    """
    count, dim = z.shape
    h = step.expand(count, dim)
    shift = torch.diag_embed(h)
    rows = torch.cat([z.unsqueeze(1), z.unsqueeze(1) + shift, z.unsqueeze(1) - shift], 1)
    _, scores, fine = target(rows)
    middle, up, down = scores.split([1, dim, dim], 1)
    second = ((up - down) / (2 * h).unsqueeze(-1)).mT
    third = ((up - 2 * middle + down) / h.square().unsqueeze(-1)).mT
    return fine.all(-1), second, third


def _sharpness(curvature: Tensor) -> Tensor:
    """Return the size of each coordinate's own curvature ``(N, d)``, which is nowhere 0."""
    sharp = curvature.diagonal(dim1=-2, dim2=-1).abs()
    return sharp.clamp(min=1e-6 * sharp.mean(0))


def _relative(curvature: Tensor, third: Tensor, scale: Tensor) -> Tensor:
    """Return by how much the precision of i changes with an sd of j, relative to it ``(d, d)``."""
    relative = third.abs() * scale.unsqueeze(-1) / _sharpness(curvature).unsqueeze(-2)
    return relative.clamp(max=CONDITIONAL.most_change).square().mean(0).sqrt()


def _structure(curvature: Tensor, third: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Divide coordinates into those given, and those that are Gaussian given them.

    Returns:
        Places of both, and ``(g, c)``: how much each of the latter follows each of the former.
        Without latter where none follows any, and without former where all are Gaussian.
    """
    given, sharp = CONDITIONAL, _sharpness(curvature)
    width = sharp.rsqrt()
    own = _relative(curvature, third, scale)
    dim = len(scale)
    left = torch.ones(dim, dtype=torch.bool)
    parents: list[int] = []
    while len(parents) < min(dim, given.most_given):
        among = own * (left.unsqueeze(-1) & left)
        cost = among.square().sum(0) + among.square().sum(1) - among.diagonal().square()
        worst = int(cost.argmax())
        if float(cost[worst]) <= given.gaussian**2:
            break
        parents.append(worst)
        left[worst] = False
    at, children = torch.tensor(parents).long(), left.nonzero().squeeze(-1)
    nothing = at, children[:0], own[:0, :0]
    if not parents:
        return nothing
    # Of j itself: how the mean bends with it, and the width changes, over its whole spread.
    spread = scale[at].unsqueeze(-1)
    c = children
    widths = third[:, at][:, :, c].abs() * spread / sharp[:, None, c]
    bends = third[:, c][:, :, at].mT.abs() * spread.square() * width[:, None, c]
    links = (widths.clamp(max=given.most_change) + bends.clamp(max=given.most_change)).mean(0)
    if float(links.square().sum(-1).max()) <= given.follows**2:
        return nothing
    links = _strongest(links)
    followed = links.amax(0) > 0
    return at, children[followed], links[:, followed]


def _strongest(links: Tensor) -> Tensor:
    """Leave out weak links ``(g, c)``, until few sets of others are followed."""
    given, least = CONDITIONAL, CONDITIONAL.linked
    while True:
        enough = links >= links.sort(0, descending=True).values[: given.most_followed][-1:]
        kept = torch.where((links > least) & enough, links, 0.0)
        if len({tuple(column) for column in (kept.mT > 0).tolist()}) <= given.most_sets:
            return kept
        least = 2 * least


def _conditional_moments(
    target: Target, points: Tensor, children: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return which points are fine, and there the children's means and log-sds given the others."""
    given = CONDITIONAL
    z, size = points.clone(), step[children].expand(len(points), -1)
    keep = torch.ones(len(z), dtype=torch.bool)
    cov = None
    for turn in range(given.newton_steps):
        fine, score, precision = _block_curvature(target, z, children, size)
        factor, failed = torch.linalg.cholesky_ex(precision)
        keep = keep & fine & (failed == 0)
        eye = torch.eye(len(children), dtype=z.dtype, device=z.device)
        factor = torch.where(keep[:, None, None], factor, eye)
        cov = torch.cholesky_inverse(factor)
        scale = cov.diagonal(dim1=-2, dim2=-1).clamp(min=1e-24).sqrt()
        move = torch.cholesky_solve(score.unsqueeze(-1), factor).squeeze(-1)
        if turn < given.newton_steps - 1:
            # Far from the middle a step can be too long, unless the density is Gaussian.
            size = given.step * precision.diagonal(dim1=-2, dim2=-1).clamp(min=1e-24).rsqrt()
        z[:, children] = z[:, children] + torch.where(keep.unsqueeze(-1), move, 0.0)
    if not bool(keep.any()) or cov is None:
        return None
    return keep, z[keep][:, children], scale[keep].log()


def _block_curvature(
    target: Target, z: Tensor, index: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which points are fine, the score and the precision of some coordinates there."""
    count, size = len(z), len(index)
    shift = z.new_zeros(count, size, z.shape[-1])
    shift[:, torch.arange(size), index] = step
    rows = torch.cat([z.unsqueeze(1), z.unsqueeze(1) + shift, z.unsqueeze(1) - shift], 1)
    _, scores, fine = target(rows)
    scores = scores[..., index]
    middle, up, down = scores.split([1, size, size], 1)
    precision = -(up - down) / (2 * step).unsqueeze(-1)
    return fine.all(-1), middle.squeeze(1), 0.5 * (precision + precision.mT)


def _regressions(
    values: Tensor,
    means: Tensor,
    log_scales: Tensor,
    parents: Tensor,
    children: Tensor,
    links: Tensor,
) -> list[ConditionalStage]:
    """Regress means and log-sds on what they follow; children that follow the same together."""
    given = CONDITIONAL
    groups: dict[tuple[int, ...], list[int]] = {}
    for place in range(len(children)):
        chosen = tuple(links[:, place].nonzero().squeeze(-1).tolist())
        groups.setdefault(chosen, []).append(place)
    stages: list[ConditionalStage] = []
    for chosen, members in groups.items():
        among, own = torch.tensor(chosen), torch.tensor(members)
        x = values[:, among]
        centre, width = x.mean(0), x.std(0).clamp(min=1e-12)
        t = (x - centre) / width
        reach = float(t.abs().max())
        count = given.knots if len(chosen) <= given.most_splines else 0
        knots = torch.linspace(-reach, reach, count, dtype=t.dtype) if count else t[:0, 0]
        table = features(t, knots)
        sets = _feature_sets(len(chosen), count, len(t))
        unit = log_scales[:, own].median(0).values.exp()
        coefficients = _best_fit(table, means[:, own] / unit, sets, given.mean_error)
        mean = coefficients * unit.unsqueeze(-1)
        sets = [one for one in sets if one is not sets[-1]] if len(sets) > 3 and not count else sets
        scale = _best_fit(table, log_scales[:, own], sets, given.scale_error)
        if not bool((mean[:, len(monomials(len(chosen))) :] != 0).any()) and not bool(
            (scale[:, len(monomials(len(chosen))) :] != 0).any()
        ):
            polynomial = len(monomials(len(chosen)))
            mean, scale, knots = mean[:, :polynomial], scale[:, :polynomial], knots[:0]
        stages.append(
            ConditionalStage(parents[among], children[own], centre, width, knots, mean, scale)
        )
    return stages


def _feature_sets(count: int, knots: int, values: int) -> list[Tensor]:
    """Return sets of features, the simplest first, that so many values can tell apart."""
    powers = [sum(one > 0 for one in term) for term in monomials(count)]
    bumps = count * knots
    degree = torch.tensor([*powers, *[9] * bumps])
    sets = [(degree <= most) for most in (1, 2, 3)]
    if knots:
        sets.append((degree <= 1) | (degree == 9))
        sets.append((degree <= 2) | (degree == 9))
    return [one for one in sets if int(one.sum()) < CONDITIONAL.feature_share * values] or sets[:1]


def _best_fit(table: Tensor, wanted: Tensor, sets: list[Tensor], aim: float) -> Tensor:
    """Return coefficients ``(c, B)`` of the simplest features that do, by values held out."""
    best, error = (
        wanted.new_zeros(wanted.shape[-1], table.shape[-1]),
        wanted.new_full((wanted.shape[-1],), torch.inf),
    )
    hold = torch.arange(len(table)) % 4 == 3
    for chosen in sets:
        some = table[:, chosen]
        rough = _least_squares(some[~hold], wanted[~hold])
        missed = (some[hold] @ rough - wanted[hold]).square().mean(0).sqrt()
        better = (error > aim) & (missed < CONDITIONAL.better * error)
        if bool(better.any()):
            whole = _least_squares(some, wanted)
            made = torch.zeros_like(best)
            made[:, chosen] = whole.mT
            best = torch.where(better.unsqueeze(-1), made, best)
            error = torch.where(better, missed, error)
    return best


def _least_squares(table: Tensor, wanted: Tensor) -> Tensor:
    """Return coefficients ``(B, c)``, a little drawn to zero."""
    gram = table.mT @ table
    ridge = CONDITIONAL.ridge * gram.diagonal().mean()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge * eye, table.mT @ wanted)
