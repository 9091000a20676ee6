"""The numbers of Gaussian variational inference: each once, with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BaselineRecipe:
    """Laplace's approximation, Pathfinder and DADVI, which people compare fits with."""

    #: Most iterations of L-BFGS; Pathfinder's authors take 1000, and models end far below.
    ascent_steps: int = 1000
    #: Pairs of moves and slopes that L-BFGS remembers (the authors of Pathfinder take 6).
    history: int = 6
    #: Rise of the log density, relative to its size, below which an ascent has ended: a little
    #: above rounding in float64.
    rise: float = 1e-12
    #: Newton steps after it: two are enough where the ascent has come near.
    newton_steps: int = 6
    #: Smallest curvature, relative to the largest, at which a top is one in that direction.
    flat: float = 1e-12
    #: Rows for which second derivatives are taken in one call.
    hessian_rows: int = 4096
    #: Paths of ``"pathfinder"``: the authors of Stan's version take 4.
    paths: int = 4
    #: Starts of paths are uniform between minus and plus this, in the unconstrained space.
    start_radius: float = 2.0
    #: Starts that are tried for each path, where the density is not finite at some.
    start_tries: int = 20
    #: Draws on which each Gaussian of a path is judged (5 in the paper).
    path_draws: int = 10
    #: Least product of move and slope, relative to the slope's square, that is learnt from.
    curvature: float = 1e-12
    #: Fixed draws of DADVI (30 in the paper).
    fixed_draws: int = 30
    #: Logarithm of the standard deviations at which its ascent begins.
    first_log_scale: float = -1.0
    #: Most latents: the covariance is a full matrix, of 32 MB then.
    most_latents: int = 2000


@dataclass(frozen=True)
class TargetRecipe:
    """Evaluation of a density that may fail at some points."""

    #: Pieces into which a batch is split, at most, to find the rows at which the density raises.
    pieces: int = 32
    #: Rows of the first piece where time is limited: the pace of the density is not known yet.
    first_rows: int = 32
    #: Rows that are evaluated in any case where time is short.
    fewest_rows: int = 8


@dataclass(frozen=True)
class BatchAndMatchRecipe:
    """Batch and match: a full-rank Gaussian whose scores match the target's."""

    #: Added to a covariance's diagonal before it is factored, relative to its mean.
    jitter: float = 1e-14


@dataclass(frozen=True)
class NaturalGradientRecipe:
    """Whitened natural-gradient ascent."""

    #: Cosine to the step before from which on a mean keeps its direction.
    steady_cosine: float = 0.9
    #: Factor by which its trust region grows then: the way may be thousands of sds long.
    growth: float = 1.5
    #: Learning rate at the end, relative to that of the first half.
    final_rate: float = 0.02
    #: Learning rate without noise: larger ones overshoot where the target is not Gaussian.
    rate: float = 0.1
    #: Learning rate times (1 + sqrt(D/B))^2 that the noise of B draws in D dimensions allows.
    noise_rate: float = 0.5
    #: Fewest draws in each step; in between, as many as dimensions.
    fewest_particles: int = 32
    #: Most draws in each step.
    most_particles: int = 128


@dataclass(frozen=True)
class MultistartRecipe:
    """The best Gaussian from several starts."""

    #: Steps of batch and match of each start.
    match_steps: int = 30
    #: Steps of natural-gradient ascent of each start before they are compared.
    race_steps: int = 100
    #: Steps of natural-gradient ascent of the best start.
    last_steps: int = 300
    #: Draws of each start in each step before they are compared.
    race_particles: int = 16
    #: Draws on which starts are compared.
    compared_draws: int = 256
    #: Draws on which the Gaussian before and after the last steps are compared.
    final_draws: int = 1024
    #: Largest dimension for batch and match, each of whose steps is O(D^3).
    match_dim: int = 100


@dataclass(frozen=True)
class LowRankRecipe:
    """Directions beside a diagonal Gaussian of many latents."""

    #: Most directions: beyond, their products cost more than the diagonal itself.
    most_directions: int = 32
    #: Steps of Lanczos' recursion: extreme eigenvalues come first.
    lanczos_steps: int = 96
    #: Draws at which curvature is measured, each with its mirror image.
    draws: int = 8
    #: Distance of the two points of a difference of scores from the draw, in sds.
    difference: float = 0.1
    #: Ratio to the median eigenvalue from which on one is worth a direction.
    ratio: float = 1.3
    #: Largest error of an eigenvalue, relative to itself.
    eigenvalue_error: float = 0.1
    #: Steps that fit the diagonal once more, inside of the directions.
    refit_steps: int = 150
    #: Draws on which the Gaussians with and without directions are compared.
    compared_draws: int = 1024
    #: Nats that directions have to bring: a flow inside them no longer meets the latents one by
    #: one, which costs it a hierarchy (0.8 nats gained and 0.5 lost on one of 402 latents).
    least_gain: float = 5.0


@dataclass(frozen=True)
class BlockArrowRecipe:
    """A Gaussian over globals and rows of plates."""

    #: Newton steps of each start before they are compared.
    race_steps: int = 8
    #: The first of these move rows alone, with the globals where they are: a scale of rows that
    #: are not yet near their data would follow them to zero.
    settling_steps: int = 2
    #: Most Newton steps of the best start after that.
    last_steps: int = 22
    #: Most lengths of a step that globals go on after it, with rows following; the number doubles
    #: from 1 where that raised the bound and halves where it did not.
    most_stride: float = 32.0
    #: Draws at which curvature and slope are measured in a step, in mirrored pairs.
    draws: int = 8
    #: Rows of the density in one call for that, at least those of one product.
    rows: int = 64
    #: Numbers of the draws that are judged at once: 128 MB of doubles.
    numbers: int = 16_000_000
    #: Most coordinates that are globals, each of which costs a product.
    most_globals: int = 128
    #: Distance of the two points of a difference of scores, in sds.
    difference: float = 0.05
    #: Factor from one size of a step that is tried to the next.
    shrinkage: float = 0.4
    #: Smallest size.
    least_size: float = 1e-4
    #: Draws on which they are compared.
    compared_draws: int = 16
    #: Rise of the bound in nats, beyond its noise, below which steps end.
    least_gain: float = 0.01
    #: Such steps one after the other, at which they end.
    patience: int = 3
    #: Smallest curvature that a step believes, in units of the Gaussian's own: a direction gets
    #: at most four times as wide in one step.
    least_curvature: float = 0.0625
    #: Times that a start gets narrower because the density cannot be evaluated around it, ...
    retreats: int = 6
    #: ... and the factor.
    retreat: float = 0.3
    #: Steps that average over draws at the end.
    averaged_steps: int = 16
    #: Draws of each of them.
    averaged_draws: int = 16
    #: The size of the first of them is one over this: all weigh the same, and the start as much
    #: as two of them.
    averaged_from: int = 3
    #: Draws on which the Gaussians before and after these steps are compared.
    judged_draws: int = 1024
    #: Gap in nats, by the variance of log weights, below which nothing is left to average.
    exact: float = 1e-4
    #: Draws at which it is checked that rows do not interact.
    checked_draws: int = 4
    #: Sets of rows of each block that are moved for that: a pair is parted by half of them.
    checked_subsets: int = 6
    #: Change of another row's score, relative to that of a moved one, that counts.
    interaction: float = 1e-3
    #: Change that rounding explains, in units of the last place of a score.
    rounding: float = 64.0


@dataclass(frozen=True)
class MixtureWeightsRecipe:
    """Weights of a mixture of given components."""

    #: Most steps of the EM iteration.
    steps: int = 500
    #: Change of a weight at which the iteration ends.
    tolerance: float = 1e-7
    #: Share of effective draws above which k-hat is not asked: weights so even show the masses.
    even_share: float = 0.5
    #: Smallest weight: a logarithm of it is taken.
    least_weight: float = 1e-8


@dataclass(frozen=True)
class ModeAscentRecipe:
    """Rprop ascent of many points at once."""

    #: First step, relative to the distance from the centre of the frame.
    first_step: float = 0.1
    #: Factor on the step of a coordinate whose gradient keeps its sign (Riedmiller and Braun).
    growth: float = 1.2
    #: Factor on it where the sign turns.
    shrinkage: float = 0.5
    #: Factor on all steps of a point that came to where nothing can be evaluated.
    retreat: float = 0.1


@dataclass(frozen=True)
class PathRecipe:
    """The string method between two points."""

    #: Points on a path, both ends counted.
    points: int = 21
    #: Steps in which a path bends.
    steps: int = 60
    #: How far its points move in the first of them, in distances between neighbours.
    move: float = 0.5
    #: The same at the end.
    last_move: float = 0.01


@dataclass(frozen=True)
class ModeSearchRecipe:
    """Multi-start search for modes."""

    #: Steps of the ascent of each point.
    ascent_steps: int = 60
    #: Steps of the Gaussians that start at the places where points ended.
    race_steps: int = 120
    #: Steps of the Gaussians on the modes that are kept.
    last_steps: int = 200
    #: Draws of each Gaussian in each step of the race.
    race_particles: int = 16
    #: Draws of each Gaussian on which bounds are compared.
    compared_draws: int = 256
    #: The fewest of these, where time is short.
    fewest_draws: int = 8
    #: Draws of each component from which weights of a mixture are learnt.
    weight_draws: int = 1000
    #: Most modes that are kept: each is fitted with a guide of its own.
    most_modes: int = 16
    #: Most places from which a Gaussian starts in one round.
    most_places: int = 16
    #: Ends beyond the modes that are kept that are told apart, at most: paths between them grow
    #: with its square.
    compared_ends: int = 64
    #: Rounds, at most.
    rounds: int = 4
    #: Points of each round after the first.
    round_points: int = 48
    #: Nats below the best bound from which on a mode has no mass: e^-10 of it.
    negligible: float = 10.0
    #: Share of the mass below which a mode is left out, unless it moves a mean or an sd.
    least_share: float = 0.01
    #: Share of ``least_share`` below which it is left out in any case.
    moving_share: float = 0.1
    #: Shift of a mean, in sds, from which on a light mode counts: far away, little mass is much of
    #: a spread.
    moved_mean: float = 0.05
    #: Factor on an sd from which on it counts.
    moved_sd: float = 1.1
    #: Share of the mass below which a narrow mode may be a spike: points ascend the neck of a
    #: funnel without end, to where there is density without mass.
    spike_share: float = 0.1
    #: Logarithm of the factor by which a spike is narrower than the heaviest mode, in each
    #: direction.
    spike_width: float = 3.0
    #: Share of the time for the rounds; the rest is for the weights of what they found.
    search_time: float = 0.6
    #: Depth of the valley between two modes, in nats below the lower one, at least.
    valley: float = 3.0
    #: Width of a Gaussian that starts at a place, relative to the best one.
    start_width: float = 0.1
    #: Width of the Student t around all modes from which points of later rounds are drawn.
    around: float = 1.7


@dataclass(frozen=True)
class IndependenceRecipe:
    """Blocks of latents that are independent of each other, found by evaluating the density."""

    #: Most latents: each is moved at each of the points, by itself.
    most_dim: int = 256
    #: Points at which that is done.
    points: int = 6
    #: Pairs of points whose halves are exchanged, in the check of the blocks.
    pairs: int = 400
    #: Rounds in which blocks that a pair shows to interact are joined.
    rounds: int = 4
    #: Pairs that are looked at in each of them.
    examined: int = 8
    #: Change of another latent's score, relative to its largest, that rounding explains: in double
    #: precision, ...
    double: float = 1e-9
    #: ... and in single.
    single: float = 1e-4


@dataclass(frozen=True)
class BlockMixtureRecipe:
    """Mixtures of the modes of independent blocks, or of very many modes of few latents."""

    #: Most latents of a block of several modes: full covariances of its modes are learnt from
    #: importance weights.
    most_dim: int = 8
    #: Places of first ends from which on many modes are expected where latents are not independent.
    many: int = 12
    #: Most modes of one block.
    most_modes: int = 400
    #: Most modes times latents of one block: 256 modes of 8 latents would take many minutes.
    most_numbers: int = 800
    #: Rounds of further starts, at most.
    rounds: int = 16
    #: Starts of each round.
    starts: int = 256
    #: Estimated share of the evidence in modes that no start met, from which on more starts follow.
    most_unseen: float = 1e-3
    #: Share of the evidence of a mode met once from which on more starts follow.
    light: float = 1e-4
    #: Width of the box of these starts, relative to that of the modes that are known.
    box: float = 1.4
    #: Steps of Newton's method on the ends of ascents.
    newton_steps: int = 5
    #: Longest of these steps, in sds of the best Gaussian.
    longest_step: float = 1.0
    #: Step of a difference of scores, in sds of the best Gaussian.
    difference: float = 1e-3
    #: Newton decrement, in nats, below which an end is at a top.
    decrement: float = 0.05
    #: Distance, in local sds, below which two ends are one mode.
    nearness: float = 1.0
    #: Depth of the valley between two modes of a block, in nats below the lower one, at least. Tops
    #: without one between neighbours are one mode, such as a ring or a ridge.
    valley: float = 1.0
    #: Nearest tops to which there may be none.
    neighbours: int = 4
    #: Widest start of a mode, relative to the best Gaussian.
    widest: float = 30.0
    #: Scales of the draws around each component, relative to it, ...
    scales: tuple[float, ...] = (1.0, 2.0, 6.0)
    #: ... and shares of the draws.
    shares: tuple[float, ...] = (0.6, 0.25, 0.15)
    #: Share of draws that are spread over all components together.
    wide: float = 0.15
    #: Width of these, relative to the components' common spread.
    wide_scale: float = 1.5
    #: Fewest draws of a block.
    fewest_draws: int = 800
    #: Draws of each component.
    component_draws: int = 160
    #: Factor on these in the last round.
    last_factor: int = 4
    #: Draws on which the gap of a block is judged.
    judged: int = 1024
    #: Rounds of draws, after each of which weights, means and covariances are learnt.
    learning_rounds: int = 3
    #: Iterations of expectation maximization in each round.
    iterations: int = 8
    #: Gap of all blocks together, in nats, that is aimed at; ...
    gap: float = 0.04
    #: ... that of one block, at most.
    block_gap: float = 2e-3
    #: Times that components are split where the gap is larger.
    splits: int = 4
    #: Most components for each mode after that, ...
    split_most: int = 8
    #: ... and at most so many in all for blocks of several latents, or the number of modes.
    components: int = 64
    #: Distance of the halves of a component from its middle, in its sds.
    apart: float = 0.6
    #: Share of mass outside of the components from which on one more is tried.
    outside_share: float = 1e-3
    #: Components that are added in that way, at most.
    added: int = 48
    #: The same after one round of draws.
    added_at_once: int = 8
    #: Smallest weight that expectation maximization gives to a component, ...
    least_weight: float = 1e-6
    #: ... and times that below which it is left out.
    pruned: float = 2.0
    #: Fewest draws around each component, ...
    fewest_each: int = 4
    #: ... and over all of them together.
    fewest_wide: int = 16
    #: Effective draws for each number of a row of a covariance, below which a component keeps its
    #: shape.
    draws_per_moment: int = 4
    #: Variance that covariances get besides, relative to their own.
    ridge: float = 1e-8
    #: Nearest draws from which a new component takes its shape.
    nearest: int = 40
    #: Covariance of the nearest component that it gets besides, as a share, ...
    least_covariance: float = 0.01
    #: ... and its weight, relative to that of all others.
    new_weight: float = 0.01
    #: Cost of a component, relative to the mean of all, from which on it is split.
    costly: float = 0.3
    #: Factor on the width of what is spread over a single component.
    alone_scale: float = 2.0


@dataclass(frozen=True)
class GlobalsRecipe:
    """Blocks that are independent given a few globals."""

    #: Most globals: a mixture is learnt for them together.
    most: int = 5
    #: Fewest other latents for each global.
    fewest_rest: int = 2
    #: Values of the globals at which the blocks are checked, beside those where they were found.
    checked: int = 3
    #: Draws of each component from which slopes by the globals are learnt.
    slope_draws: int = 256
    #: Draws of the others for each value of the globals, in their marginal density.
    marginal_draws: int = 2
    #: Times that all is done, each but the first at the mean of the globals that came out.
    rounds: int = 3
    #: Distance of this mean from where blocks were learnt, in sds, that is near enough.
    near: float = 0.25


@dataclass(frozen=True)
class ConditionalRecipe:
    """Latents whose location and scale follow others."""

    #: Most latents: curvatures are matrices, found by two gradients for each latent and point.
    most_dim: int = 256
    #: Rounds of stages and of a Gaussian in the coordinates that they make, at most.
    rounds: int = 3
    #: Gain of the bound in nats below which there is no further round.
    least_gain: float = 0.05
    #: Gap of the Gaussian in nats below which there is none either.
    exact: float = 0.01
    #: Most levels, each of which follows the ones before it.
    levels: int = 8
    #: Draws at which third derivatives are looked at.
    points: int = 8
    #: Draws from which sds of the latents are taken.
    moment_draws: int = 1024
    #: Step of the first differences of scores, in sds given the others, ...
    first_step: float = 0.1
    #: ... and of those that count: far enough for single precision.
    step: float = 0.3
    #: Change of a latent's precision by a conditional sd of another, relative to it, below which
    #: it counts as Gaussian given the rest.
    gaussian: float = 0.2
    #: The same for all latents that follow nothing together, where the fit may be exact, ...
    exact_change: float = 0.04
    #: ... and in draws of a later Gaussian, where splines have errors of their own.
    nearly_exact_change: float = 0.3
    #: Factor on the steps of the first Gaussian, where the fit may be exact: few are then enough.
    first_effort: float = 0.3
    #: Largest relative change that is told apart from larger ones.
    most_change: float = 10.0
    #: Most latents that are given.
    most_given: int = 24
    #: Relative change of the precision, or bend of the mean in sds, over the spread of a given
    #: latent, from which on another follows some, ...
    follows: float = 0.3
    #: ... and from which on it follows this one too.
    linked: float = 0.03
    #: Most latents that one follows: the features grow with the cube of their number.
    most_followed: int = 4
    #: Most sets of latents that others follow together: each is a step of the map.
    most_sets: int = 12
    #: Values of the given latents at which moments of the others are found, ...
    values: int = 320
    #: ... the fewest of these, ...
    fewest_values: int = 48
    #: ... and gradients that this may take.
    rows: int = 60_000
    #: Width of these values, relative to the draws' own.
    width: float = 1.7
    #: Newton steps to the middle of the others; one is exact where they are Gaussian.
    newton_steps: int = 2
    #: Knots of the splines for each given latent, where polynomials do not do.
    knots: int = 40
    #: Most given latents of one that follows by splines.
    most_splines: int = 2
    #: Features for each value, at most.
    feature_share: float = 0.4
    #: Root mean square error of a mean, in sds, that is exact enough, ...
    mean_error: float = 0.01
    #: ... and of the logarithm of an sd.
    scale_error: float = 0.01
    #: Factor on the error by which more features have to be better.
    better: float = 0.8
    #: Ridge of the regressions, relative to the features' mean square.
    ridge: float = 1e-9
    #: Widths of the Gaussians from which the one in the new coordinates starts.
    starts: tuple[float, ...] = (1.0, 0.3)
    #: Latents that others follow that the report names.
    named: int = 6


@dataclass(frozen=True)
class ProposalRecipe:
    """Mixtures of proposals."""

    #: Numbers that a table of their densities holds at once: 160 MB in double precision.
    table_numbers: int = 20_000_000


@dataclass(frozen=True)
class NestedMassRecipe:
    """Modes of another width, found by their mass."""

    #: Nats by which the density of an approximation is too low at a point outside of it, and on
    #: average under a Gaussian that is a mode of its own.
    outside: float = 3.0
    #: Draws of each proposal.
    proposal_draws: int = 40
    #: Draws of the known modes together.
    own_draws: int = 1000
    #: Share of the mass outside from which on one more Gaussian is tried.
    least_share: float = 0.003
    #: Fewest effective points outside for a covariance.
    fewest_points: float = 4.0
    #: Rounds, at most.
    rounds: int = 3
    #: Steps of a Gaussian on what lies outside.
    steps: int = 120
    #: Its draws in each step.
    particles: int = 16
    #: Difference of the logarithms of two volumes from which on widths differ: arms of one bent
    #: ridge have about the same volume, and one flow takes them both.
    volume: float = 2.0
    #: Share of a point that a Gaussian claims, below which, and above 1 less which, the point
    #: belongs to one of two.
    claim: float = 0.05
    #: Share of the mass that may lie between two modes: a funnel's neck passes into its mouth.
    between: float = 0.15
    #: The same for a mode that a random search found: a needle touches nothing, and what does
    #: is left to the proposals.
    between_found: float = 0.03
    #: Widths of the proposals at the highest point, relative to the heaviest mode's.
    narrow_widths: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    #: Steps of an ascent from a point that is heavy by itself.
    ascent_steps: int = 30
    #: Draws of each component from which weights are learnt.
    weight_draws: int = 500
    #: Gain of the bound in nats, by the weight alone, from which on a component is kept.
    least_gain: float = 0.01


@dataclass(frozen=True)
class RandomSearchRecipe:
    """Narrow modes, found by evaluating the density at many points."""

    #: Of eight chunks, how many come from the modes as wide as they are, wider ones, and
    #: from the wide Gaussians: needles matter where the known mass is, and a proposal of twice the
    #: width reaches those with 2^-D of the draws.
    shares: tuple[int, ...] = (6, 1, 1)
    #: Factor by which the wider ones are wider.
    wider: float = 1.5
    #: Shells of equal width around a mode, between the 5 % and the 95 % quantile of the radius, so
    #: that tails, where a Gaussian is too low everywhere, do not hide a point that stands out
    #: farther in.
    shells: int = 8
    #: Quantiles of the radius between which the shells lie.
    inner: tuple[float, float] = (0.05, 0.95)
    #: Points of each chunk that are kept besides the best of each shell.
    best: int = 4
    #: Ascents, half of them from the best of all and half from the best of each shell.
    ascents: int = 96
    #: Points that ascents evaluate, at most, relative to those of the search itself.
    ascent_share: float = 0.25
    #: Iterations of an ascent.
    iterations: int = 12
    #: Rounds of ascents, the later ones with what the earlier ones found as known.
    rounds: int = 3
    #: Step sizes that each iteration tries, by halves from 1 sd of the mode.
    sizes: int = 18
    #: Places at which a Gaussian is fitted.
    places: int = 6
    #: Widths from which such a Gaussian starts, relative to the heaviest mode's.
    widths: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
    #: Draws on which widths are compared.
    compared: int = 64
    #: Steps of its fit.
    steps: int = 80
    #: Its draws in each step.
    rows: int = 24
    #: Draws on which its bound is computed.
    judged: int = 256
    #: Nats that the bound of a Gaussian may lie below the evidence before it is fitted.
    hopeless: float = 15.0
    #: The same after the fit: a mode of less than a hundredth of the mass is none.
    light: float = 4.6
    #: Factor by which a Gaussian is made wider to see whether a mode stands alone.
    halo: float = 1.5
    #: Mass that the wider one sees besides, in nats, where the mode stands alone.
    more: float = 0.15
    #: Draws on which both are weighed: in 12 dimensions one in nine counts.
    around: int = 2000


@dataclass(frozen=True)
class TailRecipe:
    """Tails of marginals, followed by the density."""

    #: Points on a ray, a factor of e of the number's size apart: up to 3000 times its 99 %
    #: quantile, where a Student t with 30 degrees of freedom has reached its power law.
    points: int = 9
    #: Quantile at which a ray begins.
    begin: float = 0.99
    #: Points on a ray where moments are asked: up to 90 times the quantile at which it begins;
    #: there the cube of a normal number is beyond four sds. Most rays end after a few.
    moment_points: int = 28
    #: Quantile at which such a ray begins: the share of an approximation's draws beyond it is right
    #: where that beyond the 95 % quantile is too small already.
    moment_begin: float = 0.85
    #: Draws of the other coordinates at each point.
    conditional_draws: int = 32
    #: Draws nearest to the first point of a ray, from the highest of which it begins.
    nearest: int = 16
    #: Degrees of freedom of these draws: tails heavier than a Gaussian's, so that weights are even.
    freedom: int = 5
    #: Distance of its points, in e-folds of the number's size.
    moment_step: float = 1 / 6
    #: Nats below the first point at which a ray for moments ends.
    depth: float = 12.0
    #: Index beyond which a tail is light: of no consequence for any moment that one asks for.
    light: float = 30.0
    #: A power law has settled where the slope changes by less than this share from one point to
    #: the next. The slope of a lognormal goes on growing.
    settled: float = 0.01
    #: It has settled too where the slope changes by less than this share of the change before.
    shrinking: float = 0.7
    #: Slope that counts as the index where it has not settled: that moments exist beyond 3000
    #: times the 99 % quantile is of no help to draws.
    felt: float = 2.5
    #: Nats below the body at which a power law is out of reach of draws: 1e-5 of the mass.
    faint: float = 7.0
    #: Most Newton steps at a point.
    newton_steps: int = 40
    #: Newton decrement, in nats, at which the point has been reached.
    decrement: float = 1e-3
    #: Shares of a Newton step that are tried.
    step_shares: tuple[float, ...] = (1.0, 0.5, 0.2, 0.05, 0.01)
    #: Step of a difference of scores, in conditional sds: large enough for single precision.
    difference: float = 0.05
    #: Smallest eigenvalue of a curvature, relative to the largest.
    eigenvalue_floor: float = 1e-10
    #: Doublings that enclose the point of a given size on a ray.
    doublings: int = 40
    #: Bisections that find it then, to 1e-8 of itself.
    bisections: int = 28


TARGET = TargetRecipe()
BATCH_AND_MATCH = BatchAndMatchRecipe()
NATURAL_GRADIENT = NaturalGradientRecipe()
MULTISTART = MultistartRecipe()
LOW_RANK = LowRankRecipe()
BLOCK_ARROW = BlockArrowRecipe()
MIXTURE_WEIGHTS = MixtureWeightsRecipe()
MODE_ASCENT = ModeAscentRecipe()
PATHS = PathRecipe()
MODE_SEARCH = ModeSearchRecipe()
INDEPENDENCE = IndependenceRecipe()
BLOCK_MIXTURES = BlockMixtureRecipe()
GLOBALS = GlobalsRecipe()
CONDITIONAL = ConditionalRecipe()
PROPOSALS = ProposalRecipe()
NESTED_MASS = NestedMassRecipe()
RANDOM_SEARCH = RandomSearchRecipe()
TAILS = TailRecipe()
BASELINES = BaselineRecipe()
