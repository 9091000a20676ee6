"""Mode search of a model: where it starts, how long it takes, and what it finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._gaussian_vi.block_mixtures import ModeProduct, fit_mode_product
from pyro_nfvi._gaussian_vi.blocks_given_globals import fit_given_globals
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.independent_blocks import independent_blocks
from pyro_nfvi._gaussian_vi.mode_ascent import ascend
from pyro_nfvi._gaussian_vi.mode_proposals import Proposals
from pyro_nfvi._gaussian_vi.mode_search import FirstEnds, Modes, first_ends, search_modes
from pyro_nfvi._gaussian_vi.modes_of_starts import other_modes
from pyro_nfvi._gaussian_vi.multistart import GaussianFit
from pyro_nfvi._gaussian_vi.nested_mass import add_nested, narrow
from pyro_nfvi._gaussian_vi.random_search import random_search
from pyro_nfvi._gaussian_vi.recipe import BLOCK_MIXTURES, MODE_SEARCH
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.work_count import work_of_rows
from pyro_nfvi._train.progress import SILENT, Progress
from pyro_nfvi.infer._checks.label_switching import Relabelling
from pyro_nfvi.infer._recipe import CALL_SIZES, GAUSSIAN_START, MODE_CHECK, SEARCH_WORK
from pyro_nfvi.infer._stages.gaussian_start import prior_points, uniform_points


@dataclass(frozen=True, eq=False)
class FoundModes:
    """Result of the mode search of a model.

    Attributes:
        modes: The modes: each with a Gaussian, or as a product over independent blocks.
        proposals: Where mass may be looked for later.
        num_points: Points that were scored in search of narrow modes.
    """

    modes: Modes | ModeProduct
    proposals: Proposals
    num_points: int


def modes_of_starts(
    log_joint: LogJoint,
    like: Tensor,
    found: GaussianFit,
    relabelling: Relabelling | None = None,
    budget: Budget = UNLIMITED,
) -> Normals | None:
    """Return the modes on which starts of the Gaussian ended, besides the best's; or None."""
    align = None if relabelling is None else relabelling.align
    index = other_modes(Target(log_joint, like, budget=budget), found, align=align)
    return found.starts.take(index) if len(index) else None


def search_model_modes(
    log_joint: LogJoint,
    like: Tensor,
    found: GaussianFit,
    *,
    effort: float,
    generator: torch.Generator,
    product_noise: torch.Generator,
    relabelling: Relabelling | None = None,
    budget: Budget = UNLIMITED,
    progress: Progress = SILENT,
) -> FoundModes | None:
    """Search for modes from draws of the prior, uniform ones and wide ones around a Gaussian.

    Modes of other widths, inside of these or around them, are found by their mass, and narrow
    ones by a random search.

    Args:
        log_joint: The model.
        like: A tensor of the guide's dtype and device.
        found: The best Gaussian.
        effort: 1 for all steps; a fraction for a fit of few steps.
        generator: Source of the noise.
        product_noise: Source of the noise of mixtures over independent blocks.
        relabelling: Relabellings up to which modes count once.
        budget: Time for it; ``finished`` of the modes says whether it was enough.
        progress: Shows a bar.

    Returns:
        What was found; None where one run of the model is too large for so many starts.
    """
    count = min(MODE_CHECK.points, CALL_SIZES.search // max(1, log_joint.size))
    if count < MODE_CHECK.fewest_points or log_joint.in_parts:
        return None
    frame = Normals(found.loc[None], found.factor[None])
    half = count // 2

    with progress.stage("looking for modes") as tick:
        target = Target(log_joint, like, budget=budget, tick=tick)

        def more(num: int) -> Tensor:
            return prior_points(log_joint, target, num).to(found.loc)

        eps = frame.noise(count - half, generator)
        reach = torch.tensor(MODE_CHECK.reaches).repeat(len(eps[0]))[: len(eps[0])]
        eps = eps * reach.to(eps)[:, None]
        uniform = int(MODE_CHECK.uniform_share * half)
        drawn = more(half - uniform)
        cast = uniform_points(target, found.loc, uniform, generator)
        points = torch.cat([drawn, cast, frame.points(eps)[0]])
        align = None if relabelling is None else relabelling.align
        part = target.within(budget.part(MODE_SEARCH.search_time))
        first = first_ends(part, found, points, effort=effort)
        product = None
        if len(first.tops) > 1:
            blocks = _blocks(target, points, first, product_noise)
            if blocks is None and relabelling is None:
                blocks = _whole(found, many=len(first.tops) >= BLOCK_MIXTURES.many)
            product = _product(target, found, blocks, first, more, effort, product_noise)
            if blocks is None and found.arrow is None:
                product = fit_given_globals(
                    target, found, points, first.ends, more=more, effort=effort,
                    generator=product_noise,
                )  # fmt: skip
        if product is not None:
            where = proposals(target, found, None, drawn, generator)
            return FoundModes(product, where, product.num_points)
        modes = search_modes(
            target, found, points, first=first, more=more, align=align, effort=effort,
            generator=generator,
        )  # fmt: skip
        if relabelling is None:
            dropped = modes.unseen is not None and modes.unseen.beyond > 0
            full = dropped or len(modes) >= MODE_SEARCH.most_modes
            blocks = _whole(found, many=full)
            product = _product(target, found, blocks, first, more, effort, product_noise)
            if product is not None:
                where = proposals(target, found, None, drawn, generator)
                return FoundModes(product, where, product.num_points)
        where = proposals(target, found, modes, drawn, generator)
        num_points, rows = _num_searched(log_joint, like, effort)
        narrow_ones = random_search(
            target,
            modes.normals,
            modes.weights,
            num_points,
            wide=prior_width(found, drawn),
            chunk=rows,
            align=align,
            generator=generator,
        )
        modes, where = add_nested(
            target,
            modes,
            where,
            searched=narrow_ones,
            align=align,
            effort=effort,
            generator=generator,
        )
        return FoundModes(modes, where, narrow_ones.num_points)


def _blocks(
    target: Target, points: Tensor, first: FirstEnds, generator: torch.Generator
) -> list[Tensor] | None:
    """Find independent blocks by points that ascended and by their ends."""
    return independent_blocks(target, torch.cat([points, first.ends]), generator)


def _whole(found: GaussianFit, *, many: bool) -> list[Tensor] | None:
    """Return one block of all latents, where these are few and the modes many."""
    dim = len(found.loc)
    return [torch.arange(dim)] if many and dim <= BLOCK_MIXTURES.most_dim else None


def _product(
    target: Target,
    found: GaussianFit,
    blocks: list[Tensor] | None,
    first: FirstEnds,
    more: Callable[[int], Tensor],
    effort: float,
    generator: torch.Generator,
) -> ModeProduct | None:
    """Fit the mixtures of blocks; None where there are none, or too few modes."""
    if blocks is None:
        return None
    return fit_mode_product(
        target, found, blocks, first.ends, first.tops, more=more, effort=effort,
        generator=generator,
    )  # fmt: skip


def _num_searched(log_joint: LogJoint, like: Tensor, effort: float) -> tuple[int, int]:
    """Points of the random search that cost as much as it may, and how many at once.

    By counted work, since a number that rests on measured time would make fits irreproducible.
    """
    given = SEARCH_WORK
    dim = log_joint.latent.dim
    rows = max(1, min(given.rows, given.cache // max(1, log_joint.size)))
    try:
        z = log_joint.latent.init_loc.expand(rows, -1)
        work = work_of_rows(lambda rows: log_joint(rows, {}), z.to(like)) / rows
    except (RuntimeError, ValueError, ArithmeticError):  # no such mode, or no such model in it
        return 0, rows
    work += given.own + given.own_dim * dim
    return int(min(effort * given.work / work, given.most)), rows


def proposals(
    target: Target,
    found: GaussianFit,
    modes: Modes | None,
    drawn: Tensor,
    generator: torch.Generator,
) -> Proposals:
    """Places and widths from which mass is looked for, wherever something has been.

    What each start of the Gaussian ended in; the highest point that was reached, at widths from a
    third to a thousandth of the best Gaussian's; and, where wide draws say something at all, around
    the modes, the prior's draws and the unconstrained origin.

    Args:
        target: The density.
        found: The best Gaussian, with its starts.
        modes: Modes that were found; None where none were looked for.
        drawn: Draws from the prior ``(N, D)``, possibly none.
        generator: Source of the noise.

    Cost:
        Without modes, 41 rows of the model from each of eleven points, which ascend.
    """
    best = Normals(found.loc[None], found.factor[None])
    fine = found.start_bounds > -torch.inf
    ends = found.starts.take(fine.nonzero().squeeze(-1)) if bool(fine.any()) else best
    where = Proposals.of(_joined(best, ends))
    known = best
    if modes is None:  # too few rows for a search: a few ascents, each a place of its own
        cast = uniform_points(target, found.loc, MODE_CHECK.uniform_ascents, generator)
        points = torch.cat(
            [torch.zeros_like(best.loc), cast, drawn[: MODE_CHECK.prior_ascents].to(best.loc)]
        )
        tops = ascend(target, best, points, MODE_CHECK.ascent_steps)[0]
        tops = tops[torch.isfinite(tops).all(-1)]
        where = where + Proposals.of(
            Normals(tops, best.factor.expand(len(tops), *best.factor.shape[1:]))
        )
    else:
        known = modes.normals
        where = where + Proposals.of(known)
        if modes.top is not None and bool(torch.isfinite(modes.top).all()):
            where = where + narrow(target, best, modes.top)
    if best.dim > MODE_CHECK.wide_dim:
        return where
    for reach in MODE_CHECK.reaches:
        where = where + Proposals.of(Normals(known.loc, reach * known.factor), MODE_CHECK.freedom)
    origin = Normals.around(torch.zeros_like(best.loc), 1.0, diagonal=not best.is_full)
    where = where + Proposals.of(origin, MODE_CHECK.freedom)
    prior = prior_width(found, drawn)
    return where if prior is None else where + Proposals.of(prior, MODE_CHECK.freedom)


def prior_width(found: GaussianFit, drawn: Tensor) -> Normals | None:
    """Return a Gaussian of the width of draws from the prior ``(N, D)``; None without any."""
    if len(drawn) < 2:
        return None
    # The sd of a normal one by its quartiles, 0.741 times their distance, whatever the tails.
    upper, lower = drawn.quantile(0.75, 0), drawn.quantile(0.25, 0)
    scale = (0.741 * (upper - lower)).clamp_min(MODE_CHECK.least_width)
    factor = torch.diag(scale) if found.factor.dim() == 2 else scale
    return Normals(drawn.median(0).values[None].to(found.loc), factor[None].to(found.loc))


def _joined(one: Normals, other: Normals) -> Normals:
    return Normals(torch.cat([one.loc, other.loc]), torch.cat([one.factor, other.factor]))


def best_of(
    log_joint: LogJoint,
    like: Tensor,
    found: GaussianFit,
    modes: Modes,
    generator: torch.Generator,
) -> GaussianFit:
    """Return the Gaussian with the highest bound: what was found, or a mode that no start saw."""
    pair = Normals(
        torch.cat([found.loc[None], modes.normals.loc]),
        torch.cat([found.factor[None], modes.normals.factor]),
    )
    bounds, errors = pair.bounds(Target(log_joint, like), GAUSSIAN_START.compared_draws, generator)
    if found.arrow is not None:  # more than the diagonal that stands for it above
        bounds[0], errors[0] = found.bound, found.bound_se
    best = int(bounds.argmax())
    beyond = GAUSSIAN_START.compared_errors * (errors[0] + errors[best])
    if best == 0 or bounds[best] < bounds[0] + beyond:
        return found
    return dataclasses.replace(
        found,
        loc=pair.loc[best],
        factor=pair.factor[best],
        bound=float(bounds[best]),
        bound_se=float(errors[best]),
        arrow=None,
    )
