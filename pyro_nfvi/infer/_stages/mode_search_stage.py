"""Mode search: modes beside that of the best Gaussian, up to relabellings of latents."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.block_mixtures import ModeProduct
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.mode_proposals import Proposals
from pyro_nfvi._gaussian_vi.mode_search import Modes
from pyro_nfvi._gaussian_vi.multistart import GaussianFit
from pyro_nfvi._gaussian_vi.recipe import MODE_SEARCH
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi.infer._checks.label_switching import (
    Relabelling,
    Scored,
    UpToLabels,
    count_images,
    find_relabelling,
)
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import GAUSSIAN_START, LABEL_SWITCHING, TIME
from pyro_nfvi.infer._stages.gaussian_start import prior_points
from pyro_nfvi.infer._stages.model_mode_search import (
    modes_of_starts,
    proposals,
    search_model_modes,
)
from pyro_nfvi.infer._time_plan import TimePlan

_END = "the end of the search for modes"


@dataclass(frozen=True, eq=False)
class LabelSymmetry:
    """Relabellings of latents that leave the posterior as it is, where modes have images.

    Attributes:
        group: The relabellings.
        anchor: A point ``(D,)`` of the image in which the fit is.
        num_images: Distinct images of the mode there, counted as far as it matters.
    """

    group: Relabelling
    anchor: Tensor
    num_images: int

    @property
    def one_image(self) -> bool:
        """True where images leave no room for another mode: the fit holds one of them."""
        return self.num_images >= MODE_SEARCH.most_modes


@dataclass(frozen=True, eq=False)
class SearchedModes:
    """Result of the mode search.

    Attributes:
        modes: Modes that were found, and from how many starts; None where none were searched.
        product: Modes of independent blocks, in the place of ``modes`` where these are too many.
        others: Gaussians on these, or on modes of the first starts where no more were searched.
        num_starts: Starts that were compared; 0 for none.
        num_points: Points at which the density was evaluated in search of narrow modes.
        proposals: Where mass outside of a guide is looked for, beside wide draws around its own.
        symmetry: Relabellings, where modes have images under them.
        notes: Lines for the report.
        interrupted: True if Ctrl-C ended the search.
    """

    modes: Modes | None = None
    product: ModeProduct | None = None
    others: Normals | None = None
    num_starts: int = 0
    num_points: int = 0
    proposals: Proposals | None = None
    symmetry: LabelSymmetry | None = None
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    def up_to_labels(self, density: Scored) -> Scored:
        """Return a density of points at the image in which the fit is."""
        if self.symmetry is None or not self.symmetry.one_image:
            return density
        return UpToLabels(density, self.symmetry.group, self.symmetry.anchor)


def find_modes(
    problem: Problem, options: Options, time: TimePlan, found: GaussianFit
) -> SearchedModes:
    """Search for modes beside that of the best Gaussian, from more points than its own starts.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        found: The best Gaussian, with its starts.
    """
    searched = SearchedModes()
    if len(found.starts) > 1:
        searched = _searched(problem, options, time, found)
    if searched.proposals is not None:
        return searched
    like = problem.latent.init_loc
    target = Target(problem.log_joint, like, budget=time.training.part(TIME.search))
    drawn = prior_points(problem.log_joint, target, GAUSSIAN_START.prior_draws)
    where = proposals(target, found, None, drawn, problem.stream("places"))
    return replace(searched, proposals=where)


def _searched(
    problem: Problem, options: Options, time: TimePlan, found: GaussianFit
) -> SearchedModes:
    searched = SearchedModes(num_starts=len(found.starts))
    if time.training.over():
        time.leave_out("the search for modes")
        return searched
    symmetry = _find_symmetry(problem, options, time, found)
    searched = replace(searched, symmetry=symmetry)
    once = symmetry.group if symmetry is not None and symmetry.one_image else None
    like, budget = problem.latent.init_loc, time.training.part(TIME.search)
    looked = None
    if options.explore != "off":
        try:
            looked = search_model_modes(
                problem.log_joint,
                like,
                found,
                effort=options.effort,
                generator=problem.stream("modes"),
                product_noise=problem.stream("independent blocks"),
                relabelling=once,
                budget=budget,
                progress=options.progress,
            )
        except KeyboardInterrupt:
            return replace(searched, interrupted=True)
    if looked is None:
        others = modes_of_starts(problem.log_joint, like, found, once, budget)
        if budget.over():
            time.leave_out(_END)
        return replace(searched, others=others)
    modes, where, num_points = looked.modes, looked.proposals, looked.num_points
    if not modes.finished:
        time.leave_out(_END)
    if isinstance(modes, ModeProduct):
        return replace(
            searched,
            product=modes,
            others=_of_one_block(modes),
            num_starts=modes.num_starts,
            num_points=num_points,
            proposals=where,
            symmetry=None,  # all images are in the product
            notes=_product_notes(modes),
        )
    return replace(
        searched,
        modes=modes,
        others=modes.normals,
        num_starts=modes.num_starts,
        num_points=num_points,
        proposals=where,
        notes=_notes(modes, num_points),
    )


def _of_one_block(modes: ModeProduct) -> Normals | None:
    """Return the components of a mixture over all latents; None where blocks are several."""
    if len(modes.blocks) > 1:
        return None
    (block,) = modes.blocks
    return Normals(block.mixture.locs, block.mixture.factors)


def _product_notes(modes: ModeProduct) -> tuple[str, ...]:
    several = [block for block in modes.blocks if block.num_modes > 1]
    counts = sorted({block.num_modes for block in several})
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    components = sum(len(block.mixture.log_weights) for block in modes.blocks)
    gap = sum(block.mixture.gap for block in modes.blocks)
    what = (
        f"{len(several)} of {len(modes.blocks)} blocks of latents, independent "
        f"{'' if modes.given is None else 'given globals '}of each other, have {each} modes"
        if len(modes.blocks) > 1
        else f"{each} modes"
    )
    unseen = modes.unseen
    return (
        f"{what}, from {modes.num_starts} starts; mixtures of {components} Gaussians in all were "
        f"learnt from {modes.num_points} points, with a gap of {gap:.2g} nats",
        f"estimate of unseen starts: one more would end in a new mode of a block with a chance of "
        f"{unseen.chance:.2g}; {unseen.unseen:.2g} modes of blocks or more with "
        f"{100 * unseen.share:.2g} % of the evidence were not met, {unseen.beyond} ends were "
        "dropped",
    )


def _notes(modes: Modes, num_points: int) -> tuple[str, ...]:
    hits = modes.hits.tolist()
    where = f"{len(hits)} modes" if len(hits) > 1 else "this one mode"
    line = (
        f"{sum(hits)} of {modes.num_starts} starts ended in {where}; a mode that no start "
        f"reached would go unseen ({num_points} points were scored in search of narrow ones)"
    )
    lines = [line]
    if modes.left_out:
        lines.append(
            f"{modes.left_out} more were left out as places with next to no mass, such as the neck "
            f"of a funnel ({100 * modes.left_out_share:.2g} % of the mass that was found)"
        )
    if modes.merged:
        lines.append(f"{modes.merged} more were taken for one with another of them")
    if (unseen := modes.unseen) is not None:
        lines.append(
            f"estimate of unseen starts: one more would end in a new mode with a chance of "
            f"{unseen.chance:.2g}; {unseen.unseen:.2g} modes or more with {100 * unseen.share:.2g} "
            f"% of the evidence were not met, {unseen.beyond} were met and dropped"
        )
    return tuple(lines)


def _find_symmetry(
    problem: Problem, options: Options, time: TimePlan, found: GaussianFit
) -> LabelSymmetry | None:
    """Find relabellings of exchangeable latents under which the mode has images.

    Where its distinct images are fewer than the modes that a mixture holds, all are fitted.
    """
    if problem.log_joint.in_parts:
        return None
    log_joint, like = problem.log_joint, problem.latent.init_loc
    # Draws of the prior; where it has none, points about the origin.
    budget = time.training.part(TIME.search)
    target = Target(log_joint, like, budget=budget)
    generator = problem.stream("relabelling")
    noise = torch.randn(
        LABEL_SWITCHING.normal_candidates, len(like), generator=generator, device=like.device
    ).to(found.loc)
    drawn = prior_points(log_joint, target, LABEL_SWITCHING.prior_candidates)
    points = torch.cat([drawn.to(noise), noise])
    with options.progress.stage("looking for exchangeable latents", 1, unit="look"):
        group = find_relabelling(log_joint, points, budget)
        count = 1
        if group is not None:
            count = count_images(log_joint, group, found.loc, MODE_SEARCH.most_modes, budget)
    if budget.over():
        time.leave_out("the end of the look for exchangeable latents")
    if group is None or count < 2:
        return None
    return LabelSymmetry(group, found.loc.to(like), count)
