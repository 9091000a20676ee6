"""Improper posteriors: directions in which the density never falls."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions.constraints import real

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._chain_rule import score
from pyro_nfvi._pyro_model.constraints import bijection
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.term_sizes import largest_terms
from pyro_nfvi._random import stream
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import DivergedError, ModelWarning
from pyro_nfvi.infer._findings import Improper, with_finding
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._recipe import CALL_SIZES, IMPROPER

#: The runs by how particles are evaluated.
IMPROPER_ROWS = {"plate": IMPROPER.runs, "vmap": IMPROPER.runs, "loop": IMPROPER.loop_runs}


class _TimeOver(Exception):
    """Ends a look for which there is no time left."""


@dataclass(frozen=True)
class ImproperDirection:
    """A direction in which the log joint does not fall.

    Attributes:
        names: The latent numbers that change along it, the strongest first.
        rises: Whether the density grows there; otherwise it is flat.
        towards: Where it leads, in words.
    """

    names: tuple[str, ...]
    rises: bool
    towards: str

    def __str__(self) -> str:
        what = " and ".join(repr(name) for name in self.names)
        if self.rises:
            return (
                f"The density of the model grows without limit {self.towards}, so there is no "
                f"posterior: {what} runs away. Look at the terms in which it stands (a "
                "pyro.factor of the wrong sign, a scale that may become 0), or bound it by a "
                "proper prior."
            )
        together = " taken together" if len(self.names) > 1 else ""
        return (
            f"The density of the model does not fall {self.towards}: neither prior nor data bound "
            f"{what}{together}, so the posterior is improper and no number about it means "
            "anything. Give it a proper prior, or leave it out."
        )


def check_proper(fit: Fit, budget: Budget = UNLIMITED) -> Fit:
    """Say so if a new fit has no posterior to be of: in its notes, and as a warning or an error.

    Args:
        fit: The fit.
        budget: Time; where it is spent before the end, nothing is said.

    Raises:
        DivergedError: The density grows without limit; the error's ``fit`` is the fit.
    """
    if fit.log_joint is None or len(fit.losses) < IMPROPER.fewest_steps:
        return fit
    found = _find_in(fit, budget)
    if found is None:
        return fit
    fit = _noted(fit, found)
    if found.rises and fit.why_stopped not in ("interrupted", "callback"):
        error = DivergedError(f"{found} What the fit did until its end is this error's .fit.")
        error.fit = fit
        raise error
    warn(str(found), ModelWarning)
    return fit


def explain_divergence(
    error: DivergedError, fit: Fit | None, budget: Budget = UNLIMITED
) -> DivergedError:
    """Give the error of a fit that diverged its fit, and the latent that did, if one is known."""
    found = None
    if fit is not None and fit.log_joint is not None:
        found = _find_in(fit, budget)
        fit = fit if found is None else _noted(fit, found)
    return with_fit(error if found is None else DivergedError(f"{found} {error}"), fit)


def with_fit(error: DivergedError, fit: Fit | None) -> DivergedError:
    """Give the error of a fit that diverged its fit, without a look for why it did."""
    error.fit = fit
    return error


def _find_in(fit: Fit, budget: Budget) -> ImproperDirection | None:
    log_joint, seed = fit.require_model(), fit.training.settings.seed
    subsample = log_joint.draw_subsample(
        stream(seed, "improper", "subsample", device=fit.draws.z.device)
    )
    return find_improper_direction(fit.latent, log_joint, fit.draws.z, subsample, seed, budget)


def _noted(fit: Fit, found: ImproperDirection) -> Fit:
    training = fit.training
    findings = with_finding(training.findings, Improper(found.names))
    return replace(
        fit, training=replace(training, findings=findings, notes=(str(found), *training.notes))
    )


@dataclass(frozen=True)
class _Lines:
    """Directions ``(L, D)``, as long as the draws are spread, and which mix coordinates."""

    ways: Tensor
    mixed: Tensor

    def __getitem__(self, places: list[int] | slice) -> _Lines:
        return _Lines(self.ways[places], self.mixed[places])


def find_improper_direction(
    latent: LatentSpace,
    log_joint: LogJoint,
    z: Tensor,
    subsample: TensorDict,
    seed: int,
    budget: Budget = UNLIMITED,
) -> ImproperDirection | None:
    """Follow lines from draws ``z (S, D)`` far out, and see whether the log joint falls.

    The lines are the coordinates, those without curvature (up to 100 latents), the one in which
    the draws vary most, and the one in which they have left their start. A density whose tail is
    heavy but proper falls along each, by more than one nat per e-fold of the distance; a line is
    only named if it does not fall from any of several draws. Curved escapes are not seen.

    Cost:
        Up to 4,000 runs of the model in few batches (400 where it cannot be batched).

    Returns:
        The worst direction, or None: none was found, the model cannot be run so far out, or the
        budget is spent.
    """
    try:
        return _find(latent, log_joint, z, subsample, seed, budget)
    except Exception:  # a matrix without a Cholesky factor, say: out there it is no fault
        return None


def _find(
    latent: LatentSpace,
    log_joint: LogJoint,
    z: Tensor,
    subsample: TensorDict,
    seed: int,
    budget: Budget,
) -> ImproperDirection | None:
    level = _usual(latent, log_joint, z.detach(), subsample, budget)
    z = _usable(latent, z.detach(), seed)
    centres = z[:: max(1, len(z) // IMPROPER.centres)][: IMPROPER.centres]
    lines = _lines(latent, log_joint, z, centres[0], subsample, budget)
    runs = IMPROPER.loop_runs if log_joint.how == "loop" else IMPROPER.runs
    runs = min(runs, CALL_SIZES.check // max(1, log_joint.size))
    lines = lines[: max(IMPROPER.fewest_lines, runs // (2 * len(IMPROPER.distances)))]
    found = _escapes(latent, log_joint, centres[0], lines, subsample, level, budget)
    for centre in centres[1:]:
        if not found:
            return None
        places = sorted({place for place, _ in found})
        again = _escapes(latent, log_joint, centre, lines[places], subsample, level, budget)
        again = {(places[place], sign): rises for (place, sign), rises in again.items()}
        found = {key: rises and again[key] for key, rises in found.items() if key in again}
    if not found:
        return None
    # What grows is worse than what is flat, and a coordinate says more than a mixture of some.
    weight = (lines.ways != 0).sum(1)
    place, sign = max(found, key=lambda key: (found[key], -int(weight[key[0]])))
    return _described(latent, centres[0], lines.ways[place] * sign, rises=found[place, sign])


def _usual(
    latent: LatentSpace, log_joint: LogJoint, z: Tensor, subsample: TensorDict, budget: Budget
) -> float:
    """Return the median log density of some draws; minus infinity where they say nothing.

    Draws beyond what numbers hold do not count: they are those of a fit that runs away, and higher
    than any end of a line.
    """
    _ask(budget)
    z = z[:: max(1, len(z) // IMPROPER.level_draws)]
    z = z[torch.isfinite(z).all(1)]
    z = z[(z[:, _bent(latent)].abs() <= IMPROPER.beyond).all(1)]
    z = z[_held(latent, z, 1.0)] if len(z) else z
    if not len(z):
        return -math.inf
    with torch.no_grad():
        log_p = log_joint(z, subsample)
    log_p = log_p[torch.isfinite(log_p)]
    return float(log_p.median()) if len(log_p) else -math.inf


def _usable(latent: LatentSpace, z: Tensor, seed: int) -> Tensor:
    """Draws that numbers can still hold; where there are few, points about the start."""
    z = z[torch.isfinite(z).all(1)]
    bent = _bent(latent)
    if len(z) and not bool((z[:, bent].median(0).values.abs() > IMPROPER.beyond).any()):
        held = z[_held(latent, z, 1.0)]
        if (
            len(held) >= max(IMPROPER.fewest_draws, len(z) // 2)
            and float(held.std(0).max()) < IMPROPER.wide
        ):
            return held
    start = latent.init_loc.detach()
    noise = torch.randn(IMPROPER.start_points, len(start), generator=stream(seed, "improper"))
    return start + noise.to(start)


def _bent(latent: LatentSpace) -> list[int]:
    """Coordinates that stand for a bounded number: its logarithm or logit, say."""
    bent = [site for site in latent.records if site.support is not real]
    return [index for site in bent for index in range(site.start, site.stop)]


def _lines(
    latent: LatentSpace,
    log_joint: LogJoint,
    z: Tensor,
    centre: Tensor,
    subsample: TensorDict,
    budget: Budget,
) -> _Lines:
    """Choose the lines; those that mix coordinates come first."""
    dim = z.shape[1]
    centred = z - z.mean(0)
    # Where numbers come in billions, a fit that has not got there is not without a posterior.
    spread = centred.std(0).maximum(latent.init_loc.detach().abs()).clamp(min=1.0)
    spread[_bent(latent)] = 1.0  # e-folds of a bounded number: 30 of them are far
    # The widest coordinates first: not all may be looked at.
    axes = torch.diag(spread)[spread.argsort(descending=True)]
    if dim == 1:
        return _Lines(axes, torch.tensor([False]))
    mixed = [((z.mean(0) - latent.init_loc) / spread)[None]]
    try:
        rows = (centred / spread)[: IMPROPER.spread_draws]
        mixed.append(torch.linalg.svd(rows, full_matrices=False)[2][:1])
        if dim <= IMPROPER.curved_dim and log_joint.how != "loop":
            mixed.append(_flat_ways(log_joint, centre, spread, subsample, budget))
    except (torch.linalg.LinAlgError, RuntimeError):
        pass  # a model without finite gradients there; the other lines remain
    ways = torch.cat(mixed)
    size = ways.abs().amax(1, keepdim=True)
    ways = (ways / size)[torch.isfinite(size[:, 0]) & (size[:, 0] > 0)] * spread
    # What is one coordinate after all is followed as such.
    first, second = (ways / spread).abs().topk(2)[0].unbind(1)
    ways = ways[first < IMPROPER.dominance * second]
    return _Lines(torch.cat([ways, axes]), torch.arange(len(ways) + dim) < len(ways))


def _flat_ways(
    log_joint: LogJoint, centre: Tensor, spread: Tensor, subsample: TensorDict, budget: Budget
) -> Tensor:
    """Directions of least curvature, made straight by Newton steps further and further out."""

    def gradient(u: Tensor) -> Tensor:
        _ask(budget)
        return score(lambda u: log_joint(centre + u * spread, subsample), u)[1].double()

    dim, length = len(centre), IMPROPER.difference
    step = length * torch.eye(dim).to(centre)
    here = gradient(torch.zeros_like(step[:1]))
    hessian = (gradient(step) - gradient(-step)) / (2 * length)
    curvature, basis = torch.linalg.eigh((hessian + hessian.T) / 2)
    order = curvature.abs().argsort()
    few = order[: min(IMPROPER.flat_lines, dim - 1)]
    few = few[curvature[few].abs() < IMPROPER.flatness * curvature.abs().max()]
    ways = basis[:, few].T.clone()
    for distance in IMPROPER.straightened:
        if not len(ways):
            break
        pull = gradient((distance * ways).to(centre)) - here
        share = pull @ basis / curvature
        share[:, few] = 0.0
        change = share @ basis.T / distance
        ways = ways - change.clamp(-IMPROPER.most_turn, IMPROPER.most_turn)
    return ways.to(centre)


def _ask(budget: Budget) -> None:
    if budget.over():
        raise _TimeOver


def _escapes(
    latent: LatentSpace,
    log_joint: LogJoint,
    centre: Tensor,
    lines: _Lines,
    subsample: TensorDict,
    level: float,
    budget: Budget,
) -> dict[tuple[int, int], bool]:
    """Find lines, and their ends, along which the density does not fall; True where it rises.

    A rise that ends below ``level``, the density of usual draws, leads from a bad centre to a
    better one, and not beyond the posterior.
    """
    distances = torch.tensor(IMPROPER.distances).to(centre)
    ends = torch.stack([lines.ways, -lines.ways], 1)  # (L, 2, D)
    points = centre + distances[:, None] * ends[:, :, None]  # (L, 2, T, D)
    flat = points.reshape(-1, points.shape[-1])
    rows = max(1, CALL_SIZES.check // max(1, log_joint.size))
    with torch.no_grad():
        middle = float(log_joint(centre[None], subsample))
        parts = []
        for part in flat.split(rows if budget.limit is None else min(rows, IMPROPER.piece)):
            _ask(budget)
            parts.append(log_joint(part, subsample))
        log_p = torch.cat(parts)
        held = _held(latent, flat, (flat - centre).abs().amax(-1))
    log_p, held = log_p.reshape(points.shape[:-1]).double(), held.reshape(points.shape[:-1])
    known = {torch.float32: IMPROPER.mixed_single, torch.float64: IMPROPER.mixed_double}
    reach = known.get(centre.dtype, IMPROPER.mixed_half)
    near = (distances <= reach).to(lines.mixed.device)
    held = held & (near | ~lines.mixed[:, None, None]).to(held.device)
    rounding = IMPROPER.rounding * torch.finfo(flat.dtype).eps
    found = {}
    for place in range(len(lines.ways)):
        for end, sign in enumerate((1, -1)):
            rises = _rises(log_p[place, end] - middle, held[place, end], rounding)
            if rises is not None:
                # Large terms may have cancelled, and what is left be their rounding.
                _ask(budget)
                terms = largest_terms(log_joint, points[place, end], subsample).double()
                doubt = rounding * terms
                change = (log_p[place, end] - middle).abs()
                sure = doubt <= (IMPROPER.rounding_share * change).clamp(min=IMPROPER.fall)
                rises = _rises(log_p[place, end] - middle, held[place, end] & sure, rounding)
            if rises and not bool((log_p[place, end][held[place, end]] > level).any()):
                continue
            # Where a mixture of coordinates rises, the fit may just be far from the mode.
            if rises is not None and not (rises and bool(lines.mixed[place])):
                found[place, sign] = rises
    return found


def _held(latent: LatentSpace, z: Tensor, distance: Tensor | float) -> Tensor:
    """Mark rows of z that survive the way through the constrained space, and end at no border."""
    with torch.no_grad():
        values, _ = latent.constrain(z)
        parts = [
            bijection(site.support).inv(values[site.name]).reshape(len(z), -1)
            for site in latent.records
        ]
    return (torch.cat(parts, -1) - z).abs().amax(-1) <= IMPROPER.held * distance


def _rises(log_p: Tensor, held: Tensor, rounding: float) -> bool | None:
    """Read one end of one line, relative to its centre; None: it falls, or nothing can be said."""
    usable = held.nonzero().reshape(-1).tolist()
    if len(usable) < 2 or IMPROPER.distances[usable[-1]] < IMPROPER.far:
        return None
    far = usable[-1]
    last, before = float(log_p[far]), float(log_p[usable[-2]])
    if last == math.inf and before > 0:
        return True
    slopes = []
    # Over two steps where there are as many: far out, what is left of large terms is rounding.
    for place, near in zip(usable[:-3:-1], usable[-2:-4:-1]):
        first, second = float(log_p[near]), float(log_p[place])
        if not (math.isfinite(first) and math.isfinite(second)):
            return None
        doubt = rounding * max(abs(first), abs(second))
        slope = (second - first) / math.log(IMPROPER.distances[place] / IMPROPER.distances[near])
        if (
            slope <= doubt - IMPROPER.fall
            or second + math.log(IMPROPER.distances[place]) < IMPROPER.shell + doubt
        ):
            return None
        slopes.append(slope - doubt)
    return min(slopes) > IMPROPER.fall


def _described(
    latent: LatentSpace, centre: Tensor, line: Tensor, *, rises: bool
) -> ImproperDirection:
    share = line.abs() / line.abs().amax()
    order = share.argsort(descending=True)
    places = [int(index) for index in order[: IMPROPER.named]]
    places = [index for index in places if share[index] > IMPROPER.named_share]
    names = tuple(latent.at(index) for index in places)
    where = [f"{name} goes {_way(latent, centre, line, i)}" for i, name in zip(places, names)]
    return ImproperDirection(names, rises, f"as {' and '.join(where)}")


def _way(latent: LatentSpace, centre: Tensor, line: Tensor, index: int) -> str:
    """Say where one number goes along a line, in the constrained space where that is clear."""
    site = next(site for site in latent.records if index < site.stop)
    up = bool(line[index] > 0)
    if site.shape != site.unconstrained_shape:
        return "up" if up else "down"
    with torch.no_grad():
        ends = torch.stack([centre, centre + IMPROPER.described * line])
        start, end = latent.constrain(ends)[0][site.name].reshape(2, -1)[:, index - site.start]
    if end > start:
        return "up to infinity" if end > IMPROPER.grown * (start.abs() + 1) else "up"
    if end > 0:
        return "down to 0" if end < IMPROPER.vanished * start else "down"
    return "down to minus infinity"
