"""Examination: what a fit's own draws cannot show, and the existence of the posterior."""

from __future__ import annotations

from dataclasses import asdict, replace

from pyro_nfvi._budget import Budget
from pyro_nfvi._gaussian_vi.recipe import MODE_SEARCH
from pyro_nfvi.infer._checks.improper import IMPROPER_ROWS, check_proper
from pyro_nfvi.infer._checks.label_switching import count_once
from pyro_nfvi.infer._checks.missed_mass import WIDE_ROWS, mass_outside, too_much
from pyro_nfvi.infer._checks.missed_modes import missed_modes
from pyro_nfvi.infer._checks.moments import moved_moments
from pyro_nfvi.infer._checks.moved_functionals import (
    CHAIN_ROWS,
    chain_ends,
    chains_move,
    evidence_differs,
    movements,
    needs_no_chains,
)
from pyro_nfvi.infer._checks.narrow_modes import narrow_modes
from pyro_nfvi.infer._checks.precision import PRECISION_ROWS, rounding
from pyro_nfvi.infer._checks.pyro_density import opinion_of_pyro
from pyro_nfvi.infer._checks.reaching_draws import MOMENT_ROWS, ReachingDraws, reaching_draws
from pyro_nfvi.infer._checks.support_edge import EDGE_ROWS, support_edge
from pyro_nfvi.infer._checks.tails import TAIL_ROWS, follow_tails, short_tails
from pyro_nfvi.infer._findings import (
    ChainsMove,
    Finding,
    HeavyTails,
    IndependentModes,
    MassOutside,
    MissedModes,
    ModeSearch,
    ModesUnseen,
    MovedMoments,
    NarrowModes,
    Relabelled,
    SinglePrecision,
    SupportEdge,
    TimeOver,
)
from pyro_nfvi.infer._fit import Fit, add_finding
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import MODE_CHECK, MOMENTS, SEARCH_WORK, TIME
from pyro_nfvi.infer._stages.mode_search_stage import SearchedModes
from pyro_nfvi.infer._time_plan import TimePlan


def examine(
    problem: Problem, options: Options, time: TimePlan, search: SearchedModes, fit: Fit
) -> Fit:
    """Add to a fit's findings what its own draws cannot show.

    Modes that it misses, mass where it has hardly any, tails, means and sds of many draws,
    Pyro's own scores, and directions without a posterior. A check for which there is no time is
    left out, and named in a finding.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        search: Result of the mode search.
        fit: The fit.

    Raises:
        DivergedError: The density grows without limit.
    """
    log_joint, how = problem.log_joint, problem.log_joint.how
    missed = _missed_modes(problem, time, search, fit)
    mass = _mass_outside(problem, options, time, search, fit)
    proper = time.affords(IMPROPER_ROWS[how], "the look for directions without a posterior")
    count = len(fit.modes)
    findings: list[Finding] = [*fit.training.findings, _mode_search(search, fit), mass]
    if unseen := _unseen(search):
        findings.append(unseen)
    if narrow := _narrow_modes(problem, options, time, search, fit):
        findings.append(narrow)
    tails: HeavyTails | None = None
    reaching: ReachingDraws | None = None
    moments = time.affords(MOMENT_ROWS[how], "the look at means and sds of more draws")
    if moments:
        with options.progress.stage("comparing means and sds", 1, unit="look"):
            budget = time.whole.part(TIME.check)
            reaching = draws_that_reach(problem, fit, budget)
            if reaching is None and budget.over():
                time.leave_out("the look at means and sds of more draws")
                moments = False
    if time.affords(TAIL_ROWS[how], "the look at tails"):
        with options.progress.stage("following tails", 1, unit="look"):
            budget = time.whole.part(TIME.check)
            tails = follow_tails(fit.latent, log_joint, fit.draws, budget)
            heavy = tails.without_variance
            short = short_tails(fit.latent, log_joint, fit.draws, heavy, budget, reaching)
            findings += [tails, short]
            if budget.over():
                time.leave_out("the end of the look at tails")
    if moments:
        findings.append(compared_moments(fit, tails, reaching))
    findings += _short_chains(problem, options, time, fit, tails)
    if EDGE_ROWS[how] and time.affords(EDGE_ROWS[how], "the look for edges of the support"):
        edge = support_edge(log_joint, fit.draws, problem.seed)
        if edge is not None:
            findings.append(SupportEdge(**asdict(edge)))
    if time.affords(PRECISION_ROWS[how], "the look at single precision"):
        rounded = rounding(log_joint, fit.draws)
        if rounded is not None:
            findings.append(SinglePrecision(**asdict(rounded)))
    if time.affords(1, "a second opinion by Pyro's own trace"):
        findings.append(opinion_of_pyro(fit, time.whole))
    if missed:
        findings.append(MissedModes(len(missed)))
    if relabelled := _relabelled(problem, time, search, count):
        findings.append(relabelled)
    training = replace(fit.training, findings=tuple(findings), notes=(*fit.training.notes, *missed))
    fit = _with_undone(replace(fit, training=training), time)
    if not proper:
        return fit
    with options.progress.stage("looking whether there is a posterior", 1, unit="look"):
        budget = time.whole.part(1.0)
        fit = check_proper(fit, budget)
        if budget.over():
            time.leave_out("the look for directions without a posterior")
    return _with_undone(fit, time)


def leaves_mass_out(problem: Problem, time: TimePlan, search: SearchedModes, fit: Fit) -> bool:
    """Tell whether posterior mass lies where the guide has hardly any, as far as is seen.

    No where it could not be mended: for lack of time, or in a model that is run row by row.
    """
    affordable = time.affords(WIDE_ROWS[problem.log_joint.how], of=time.training)
    if not affordable or problem.log_joint.in_parts:
        return False
    density = search.up_to_labels(fit.guide.density())
    budget = time.training.part(TIME.check)
    return too_much(
        mass_outside(density, problem.log_joint, fit.draws, problem.seed, search.proposals, budget)
    )


def draws_that_reach(problem: Problem, fit: Fit, budget: Budget) -> ReachingDraws | None:
    """Draw from the guide into its tails; None where it cannot be done, or not in time."""
    return reaching_draws(fit.guide.density(), problem.log_joint, fit.draws, problem.seed, budget)


def compared_moments(
    fit: Fit,
    tails: HeavyTails | None,
    reaching: ReachingDraws | None,
    factor: float = MOMENTS.sd,
) -> MovedMoments:
    """Compare means and sds of many of the guide's draws with weighted ones."""
    heavy = () if tails is None else tails.without_variance
    moved = (
        () if reaching is None else moved_moments(fit.latent, reaching, heavy=heavy, factor=factor)
    )
    return MovedMoments(
        tuple(one.name for one in moved),
        tuple(one.shift for one in moved),
        tuple(one.stretch for one in moved),
    )


def _short_chains(
    problem: Problem, options: Options, time: TimePlan, fit: Fit, tails: HeavyTails | None
) -> list[Finding]:
    """Run short chains from the guide's draws, and say what they move, and what evidence."""
    what = "short chains from the fit's draws"
    if not fit.draws.exact or needs_no_chains(fit.draws.log_w):
        return [ChainsMove()]
    if not time.affords(CHAIN_ROWS[problem.log_joint.how], what):
        return [ChainsMove()]
    budget = time.whole.part(TIME.check)
    with options.progress.stage("running short chains", 1, unit="look"):
        ends = chain_ends(fit.guide.density(), problem.log_joint, problem.seed, budget)
    if ends is None:
        if budget.over():
            time.leave_out(what)
        return [ChainsMove()]
    moved = movements(fit.latent, ends)
    heavy = () if tails is None else tails.without_variance
    found: list[Finding] = [chains_move(fit.latent, moved, len(ends.end), heavy)]
    if differs := evidence_differs(fit.draws.log_w, ends):
        found.append(differs)
    return found


def _missed_modes(
    problem: Problem, time: TimePlan, search: SearchedModes, fit: Fit
) -> tuple[str, ...]:
    """Describe modes of the search that the guide misses, a line each."""
    others = 0 if search.others is None else len(search.others)
    if not others or not time.affords(
        MODE_CHECK.draws * others, "the look at modes that are missed"
    ):
        return ()
    density, budget = search.up_to_labels(fit.guide.density()), time.whole.part(TIME.check)
    missed = missed_modes(
        density, problem.log_joint, search.others, fit.draws, problem.seed, budget
    )
    if budget.over():
        time.leave_out("the end of the look at modes that are missed")
    return tuple(missed)


def _mass_outside(
    problem: Problem, options: Options, time: TimePlan, search: SearchedModes, fit: Fit
) -> MassOutside:
    outside, what = None, "the look for mass outside of the guide"
    if time.affords(WIDE_ROWS[problem.log_joint.how], what):
        density = search.up_to_labels(fit.guide.density())
        with options.progress.stage("looking for mass outside of the guide", 1, unit="look"):
            budget = time.whole.part(TIME.check)
            outside = mass_outside(
                density, problem.log_joint, fit.draws, problem.seed, search.proposals, budget
            )
            if budget.over():
                time.leave_out(what)
    return MassOutside.of(outside, unseen=not search.num_starts)


def _narrow_modes(
    problem: Problem, options: Options, time: TimePlan, search: SearchedModes, fit: Fit
) -> NarrowModes | None:
    """Search once more for narrow modes, where a search was possible before training."""
    what = "the second look for narrow modes"
    if not search.num_points or not time.affords(SEARCH_WORK.pushed_rows, what):
        return None
    symmetry = search.symmetry if search.symmetry and search.symmetry.one_image else None
    with options.progress.stage("looking for narrow modes", 1, unit="look"):
        budget = time.whole.part(TIME.check)
        found = narrow_modes(
            fit.guide.density(),
            problem.log_joint,
            fit.draws,
            problem.seed,
            effort=options.effort,
            scored=search.up_to_labels(fit.guide.density()),
            align=None
            if symmetry is None
            else lambda z: symmetry.group.align(symmetry.anchor.to(z), z),
            budget=budget,
        )
        if budget.over():
            time.leave_out(what)
    if found is None:
        return NarrowModes(0)
    return NarrowModes(found.count, found.share, found.points)


def _mode_search(search: SearchedModes, fit: Fit) -> Finding:
    """Say how modes were looked for, and how many the fit holds."""
    product = search.product
    if product is not None and len(product.blocks) > 1:
        given = () if product.given is None else tuple(product.given.positions.tolist())
        return IndependentModes(
            len(product.blocks) - (product.given is not None),
            sum(block.num_modes > 1 for block in product.blocks),
            product.log_modes,
            product.num_starts,
            product.num_points,
            tuple(fit.latent.at(place) for place in given),
        )
    count = len(fit.modes)
    return ModeSearch(
        search.num_starts,
        count,
        sum(mode["starts"] <= 1 for mode in fit.modes),
        product is None and count >= MODE_SEARCH.most_modes,
        search.num_points,
    )


def _unseen(search: SearchedModes) -> ModesUnseen | None:
    """Say what the mode search dropped, and what its starts may not have met."""
    if search.product is not None:
        return ModesUnseen(**asdict(search.product.unseen))
    modes = search.modes
    if modes is None or modes.unseen is None:
        return None
    return ModesUnseen(
        **asdict(modes.unseen),
        merged=modes.merged,
        left_out=modes.left_out,
        left_out_share=modes.left_out_share,
    )


def _relabelled(
    problem: Problem, time: TimePlan, search: SearchedModes, count: int
) -> Relabelled | None:
    """Say what relabellings make of the modes in a fit, of which there are ``count``."""
    if search.symmetry is None:
        return None
    group = search.symmetry.group
    if search.symmetry.one_image:
        return Relabelled(group.names, group.order, max(1, count), images=False)
    if count < 2 or search.modes is None:
        return None
    budget = time.whole.part(TIME.check)
    once = count_once(problem.log_joint, group, search.modes.normals.loc, budget)
    if budget.over():
        time.leave_out("the end of the count of modes up to labels")
    return Relabelled(group.names, group.order, once, images=True)


def _with_undone(fit: Fit, time: TimePlan) -> Fit:
    """Add a finding of what was left out for lack of time."""
    if not time.undone:
        return fit
    assert time.whole.limit is not None
    return add_finding(fit, TimeOver(time.whole.limit, time.undone))
