"""The best Gaussian from several starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.batch_and_match import batch_and_match
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.natural_gradient import natural_gradient_ascent
from pyro_nfvi._gaussian_vi.recipe import MULTISTART
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi.errors import ShapeError, WeightError
from pyro_nfvi.flows._block_arrow import ArrowFactor


@dataclass(frozen=True)
class GaussianFit:
    r"""A Gaussian :math:`N(m, LL^\top)` and how it was found.

    Attributes:
        loc: Mean ``(D,)``, float64.
        factor: L: lower triangular ``(D, D)``, or the diagonal alone ``(D,)``, float64.
        bound: Its evidence lower bound in nats, on 1024 draws.
        bound_se: Standard error of ``bound``.
        starts: What each start reached in the race: :class:`Normals`, R of them.
        start_bounds: Their bounds ``(R,)`` in nats; -inf where nothing could be evaluated.
        losses: Negative bound at each step of the last ascent, in nats.
        num_rows: Gradients of the density that it took.
        arrow: L as a block arrow, for the many latents of plates. ``factor`` then has the sds of
            each latent given the others, those of the best diagonal Gaussian.
    """

    loc: Tensor
    factor: Tensor
    bound: float
    bound_se: float
    starts: Normals
    start_bounds: Tensor
    losses: Tensor
    num_rows: int
    arrow: ArrowFactor | None = None

    @property
    def scale(self) -> Tensor:
        """Standard deviations ``(D,)``."""
        return self.factor.norm(dim=-1) if self.factor.dim() == 2 else self.factor

    @property
    def gap(self) -> float:
        """Nats by which the bound is below the evidence: half the variance of the log weights.

        Exact where these are normal.
        """
        return 0.5 * MULTISTART.final_draws * self.bound_se**2

    @property
    def condition(self) -> float:
        """Condition number of the correlation matrix: 1 without correlations."""
        if self.factor.dim() == 1:
            return 1.0
        rows = self.factor / self.scale.unsqueeze(-1)
        return float(torch.linalg.cond(rows)) ** 2

    def in_units(self, units: Tensor) -> GaussianFit:
        """Return the same Gaussians of ``units (D,)`` times their numbers; bounds stay."""
        across = units.unsqueeze(-1) if self.factor.dim() == 2 else units
        starts = Normals(self.starts.loc * units, self.starts.factor * across)
        arrow = None if self.arrow is None else self.arrow.scaled(units)
        return replace(
            self, loc=self.loc * units, factor=self.factor * across, starts=starts, arrow=arrow
        )


def fit_gaussian(
    target: Target,
    starts: Normals,
    *,
    effort: float = 1.0,
    num_particles: int | None = None,
    noisy: bool = False,
    generator: torch.Generator | None = None,
) -> GaussianFit:
    r"""Fit a Gaussian from several starts, and return the best by its bound.

    All starts run side by side: batch and match first (full factors up to D = 100, kept where it
    raised the bound), then whitened ascent; the best one goes on alone. What is returned has the
    highest bound of all that was passed on the way.

    Args:
        target: The density.
        starts: Gaussians to start from.
        effort: Factor on all numbers of steps.
        num_particles: Draws in each step of the last ascent; ``max(32, min(D, 128))`` by default.
        noisy: The density changes from call to call (it sees a sample of the data): bounds are
            not compared, and the first start is taken.
        generator: Source of the noise.

    Raises:
        WeightError: From no start can the density be evaluated.

    Where the target's budget is spent, what was reached by then is returned.

    Cost:
        About 130 calls of the density with 16 to 32 rows for each start, and 300 calls with
        ``num_particles`` rows.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.gaussians import Normals
        >>> from pyro_nfvi._gaussian_vi.multistart import fit_gaussian
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> x = torch.zeros(2, dtype=torch.float64)
        >>> target = Target(lambda z: -0.5 * ((z - 3.0) / 1e-3).square().sum(-1), x)
        >>> found = fit_gaussian(target, Normals.around(torch.zeros(2, 2), 1.0))
        >>> bool((found.scale - 1e-3).abs().max() < 1e-5)
        True
    """
    if starts.loc.dim() != 2 or starts.factor.shape[:2] != starts.loc.shape:
        raise ShapeError(
            "fit_gaussian needs starts of shapes (R, D) and (R, D, D) or (R, D); got "
            f"{tuple(starts.loc.shape)} and {tuple(starts.factor.shape)}."
        )
    before = target.num_rows
    race = starts.take(0) if noisy else starts
    budget = target.budget
    if starts.is_full and starts.dim <= MULTISTART.match_dim and not noisy and not budget.over():
        matched = batch_and_match(
            target, race, num_steps=_steps(MULTISTART.match_steps, effort), generator=generator
        )
        race = _better(target, race, matched, generator)
    ran = race
    if not budget.over():
        ran, _ = natural_gradient_ascent(
            target,
            race,
            num_steps=_steps(MULTISTART.race_steps, effort),
            num_particles=MULTISTART.race_particles,
            generator=generator,
        )
        if not noisy:
            ran = _better(target, race, ran, generator)
    bounds, errors = ran.bounds(target, target.affordable(MULTISTART.compared_draws), generator)
    if not bool((bounds > -torch.inf).any()):
        raise WeightError(
            f"The density could not be evaluated around any of {len(starts)} starts: give a "
            "start where it is finite."
        )
    leader = int(bounds.argmax())
    first = ran.take(leader)
    if budget.over():
        return GaussianFit(
            first.loc[0], first.factor[0], float(bounds[leader]), float(errors[leader]),
            ran, bounds, bounds.new_zeros(0), target.num_rows - before,
        )  # fmt: skip
    last, path = natural_gradient_ascent(
        target,
        first,
        num_steps=_steps(MULTISTART.last_steps, effort),
        num_particles=num_particles,
        generator=generator,
    )
    pair = Normals(torch.cat([first.loc, last.loc]), torch.cat([first.factor, last.factor]))
    reached, errors = pair.bounds(target, target.affordable(MULTISTART.final_draws), generator)
    best = 1 if noisy else int(reached.argmax())
    return GaussianFit(
        pair.loc[best],
        pair.factor[best],
        float(reached[best]),
        float(errors[best]),
        ran,
        bounds,
        -path[:, 0],
        target.num_rows - before,
    )


def _steps(most: int, effort: float) -> int:
    return max(1, round(most * effort))


def _better(
    target: Target, old: Normals, new: Normals, generator: torch.Generator | None
) -> Normals:
    """Take the new ones, except where their bounds are clearly worse."""
    before, error = old.bounds(target, target.affordable(MULTISTART.compared_draws), generator)
    after, other = new.bounds(target, target.affordable(MULTISTART.compared_draws), generator)
    worse = before > after + 2 * (error.square() + other.square()).sqrt()
    return old.where(worse, new)
