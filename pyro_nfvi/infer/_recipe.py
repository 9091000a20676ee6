"""The recipe of a fit: every number of the method, once, with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CallSizes:
    """Numbers of the model, particles times numbers of one run, that a stage may hold at once."""

    #: In searches that call the model some hundred times: 16 MB in double precision.
    search: int = 2_000_000
    #: In what calls it some tens of times, with gradients.
    ascent: int = 4_000_000
    #: In checks that call it a few times.
    check: int = 20_000_000
    #: In all draws on which a fit is judged.
    evaluation: int = 300_000_000
    #: In all batches of all draws where mini-batches are put together to all data.
    all_data: int = 1_000_000_000


@dataclass(frozen=True)
class GapRecipe:
    """Nats between the evidence and its bound, beside those of the verdict (``VERDICT``)."""

    #: A gap, or a gain, that nobody sees in any number: rounds that gain less have converged, and
    #: growth ends at even weights whatever their tail. Stricter than the verdict's ``small_gap``,
    #: 0.05: that lets a finished fit pass, while here another round of layers can still mend it,
    #: and the gaps of several modes add up in their mixture.
    negligible: float = 0.02
    #: Gap of a mode, times its weight, from which on it gets a flow of its own.
    mode_cost: float = 0.005


@dataclass(frozen=True)
class TimeRecipe:
    """Shares of ``max_seconds``."""

    #: Of the time for training, for the Gaussian.
    gaussian: float = 0.5
    #: Of what is left then, for each part of the search for modes.
    search: float = 0.5
    #: Of what is left, for each check and each move of the model's parameters at the end.
    check: float = 0.5
    #: Of the time for training, for each look at tails and moments between two candidates.
    candidate_check: float = 0.25
    #: Draws with which the pace of a model is measured in one call.
    pace_draws: int = 200
    #: The same in runs of their own.
    pace_loop_draws: int = 3
    #: Draws that the evaluation and all checks take where they run together.
    final_draws: int = 40_000
    #: The same in runs of their own.
    final_loop_draws: int = 1200
    #: Smallest share of the whole that is kept for these.
    least_final: float = 0.1
    #: Largest share of it.
    most_final: float = 0.3


@dataclass(frozen=True)
class ScoringRecipe:
    """Draws on which a fit is judged."""

    #: Draws where particles are evaluated together: k-hat is known to 0.05 then.
    draws: int = 2000
    #: Draws where each is a run of the model of its own.
    loop_draws: int = 500
    #: Fewest draws, however large a run of the model is.
    fewest_draws: int = 200
    #: Rows at which the compiled log joint is compared with the model again after training.
    compared_rows: int = 5
    #: Draws that the choice between the last and the best state takes.
    kept_draws: int = 1536


@dataclass(frozen=True)
class GaussianStartRecipe:
    """The Gaussian from which a guide starts."""

    #: Most starts side by side.
    starts: int = 12
    #: Most starts of a Gaussian that knows the rows of plates: its steps are few.
    arrow_starts: int = 4
    #: Particles of each start, by which calls are sized.
    start_particles: int = 16
    #: Most steps of the L-BFGS ascent to a mode.
    ascent_steps: int = 80
    #: Steps that such an ascent remembers at least; else two for each latent.
    shortest_history: int = 10
    #: Share of the rise that a start on the way has: singular tops are no place to start from.
    rise_share: float = 0.9
    #: Distance, and width, in units of the start and of the prior's draws, beyond which a Gaussian
    #: has diverged along a direction without a posterior.
    diverged: float = 1e7
    #: Size of draws from the prior, or one over it, from which on they are tried as units.
    extreme_units: float = 1e5
    #: Draws from the prior that are tried for each start.
    tries: int = 20
    #: Half the width of uniform draws around the unconstrained origin, as in Stan.
    radius: float = 2.0
    #: Root mean square up to which the initial point is the origin.
    origin_distance: float = 0.3
    #: ``max_steps`` from which on the stage takes all of its steps.
    whole_steps: int = 1000
    #: Condition number from which on the report warns of single precision.
    condition: float = 1e6
    #: Draws from the prior around which mass is looked for where no modes were searched.
    prior_draws: int = 20
    #: Draws on which the Gaussians of modes are compared.
    compared_draws: int = 1024
    #: Standard errors by which one of these has to be better than the Gaussian of the starts.
    compared_errors: float = 2.0
    #: Draws from the prior from which units and starts are taken.
    prior_starts: int = 3
    #: Uniform draws from which starts are taken.
    uniform_starts: int = 2
    #: Draws from the prior from which an ascent begins.
    prior_ascents: int = 2
    #: Uniform draws from which one begins.
    uniform_ascents: int = 1
    #: Width of starts at the initial point and the origin: that of most unconstrained priors.
    wide: float = 1.0
    #: Width of all others, which are near a mode or may be anywhere.
    narrow: float = 0.1
    #: Width of the last one at the initial point, where nothing can be evaluated around it.
    narrowest: float = 1e-3
    #: Uniform draws that are tried one after the other, where starts cannot be compared.
    single_starts: int = 3
    #: Particles of each step where each is a run of its own.
    loop_particles: int = 8


@dataclass(frozen=True)
class FlowGrowthRecipe:
    """Candidate flows of ``guide="auto"``."""

    #: Most steps of all candidates together, by default.
    max_steps: int = 3000
    #: Largest dimension for autoregressive layers, whose path gradient costs O(D^2) a particle.
    iaf_dim: int = 40
    #: Fewest steps with which one more candidate is begun.
    fewest_steps: int = 300


@dataclass(frozen=True)
class ContinuedTrainingRecipe:
    """More steps for the best candidate."""

    #: Times as many particles: the bound rises where noise had hidden that it does. On six
    #: posteriors that brought more than as many numbers in more steps of few particles.
    particle_factor: int = 4
    #: Largest dimension: beyond, a step of so many particles takes tens of milliseconds.
    most_dim: int = 100
    #: Factor on the steps over which a bound counts as flat.
    window_factor: int = 2
    #: Excess over 1 of the widths of noise, times the root of D/2, of which half of the particles
    #: have some: 2 in two dimensions takes the flow to where its draws come once in a thousand.
    excess: tuple[float, ...] = (0.3, 0.6, 1.0)


@dataclass(frozen=True)
class MultimodalRecipe:
    """Mixtures of guides on several modes."""

    #: Draws of each component from which the weights are learnt.
    weight_draws: int = 1000
    #: Numbers by which a line of the report says where a mode is.
    named: int = 6
    #: Share of ``max_steps`` for each mode.
    mode_steps: float = 0.5
    #: Times ``max_steps`` for all modes together, at most.
    all_steps: int = 3


@dataclass(frozen=True)
class ParameterRecipe:
    """Ascent of the evidence in the model's own parameters."""

    #: Draws for which all data have to be affordable before parameters are started.
    start_draws: int = 1000
    #: Runs of the model for each draw that judging the parameters takes, at a guess.
    runs_per_draw: int = 40
    #: Most moves after training.
    settling_moves: int = 4
    #: Most parameters for exact second derivatives: each costs a backward pass in each step.
    newton_params: int = 40
    #: Most steps of an ascent.
    steps: int = 40
    #: Gain of a step, in nats, below which it ends.
    least_gain: float = 1e-3
    #: Share of the effective draws that a step has to leave: beyond, weights say little.
    ess_share: float = 0.3
    #: Effective draws below which weights say nothing, and draws count evenly (a step of EM).
    fewest_effective: float = 10.0
    #: Pairs that the quasi-Newton method remembers.
    memory: int = 10
    #: Vectors of signs from which it takes its units (Hutchinson's estimator).
    sign_vectors: int = 8
    #: Halvings of a step.
    halvings: int = 20
    #: Damping at first, relative to the curvature.
    damping: float = 1e-3
    #: Damping beyond which no step helps.
    most_damping: float = 1e6
    #: Curvature in units of its own above which the evidence counts as curved upward.
    upward: float = 1e-3
    #: Shifts of parameters without a gradient, in sizes of their own.
    shifts: tuple[float, ...] = (1.0, -1.0)
    #: Parts of the way at which the draws that were held out look.
    parts: tuple[float, ...] = (1.0, 0.5, 0.25, 0.1, 0.03)
    #: Draws of the even mean that need a finite density, as a share: one that is lost is chance.
    finite_share: float = 0.99
    #: Square root of a curvature below which the evidence does not depend on a parameter, whose
    #: unit is then one.
    no_curvature: float = 1e-8
    #: Factor on the damping after a step that is taken.
    damping_down: float = 0.1
    #: Least damping.
    least_damping: float = 1e-9
    #: Factor on the damping after a step that is not.
    damping_up: float = 4.0
    #: Share of the promised gain that a step of L-BFGS has to make (Armijo's condition).
    armijo: float = 1e-4
    #: Curvature of a pair of L-BFGS, relative to its change of the gradient, at least.
    pair_curvature: float = 1e-12
    #: Steps of L-BFGS, at least, before a small gain ends it: the first ones are in no units yet.
    fewest_steps: int = 4
    #: Distance from the parameters of another start of L-BFGS, in units: far enough to leave a
    #: saddle, near enough for the weights.
    away: float = 0.3


@dataclass(frozen=True)
class ParameterStartRecipe:
    """Rounds of a Gaussian and of parameters before training, where draws take one run together."""

    #: Most rounds.
    rounds: int = 30
    #: Steps of the Gaussian in the first round.
    first_steps: int = 200
    #: Its steps in later ones.
    later_steps: int = 60
    #: Its draws in each step.
    particles: int = 32
    #: Draws on which parameters ascend.
    draws: int = 256
    #: The fewest of these, where one run of the model is large.
    fewest_draws: int = 64
    #: Width of the Gaussian at first.
    width: float = 0.1
    #: Rounds in a row that gain nothing, after which it ends.
    idle: int = 2


@dataclass(frozen=True)
class ParameterStartLoopRecipe(ParameterStartRecipe):
    """The same where each draw takes a run of its own: 5,000 runs, as many as 600 steps take."""

    #: Most rounds.
    rounds: int = 15
    #: Steps of the Gaussian in the first round.
    first_steps: int = 60
    #: Its steps in later ones.
    later_steps: int = 20
    #: Its draws in each step.
    particles: int = 8
    #: Draws on which parameters ascend.
    draws: int = 64


@dataclass(frozen=True)
class WeightedDrawsRecipe:
    """Draws with both densities."""

    #: Rows that are pushed through the flow at once.
    rows: int = 4096
    #: Most mini-batches that are put together to all data.
    batches: int = 2000
    #: Fewest draws that are scored on all data; where there would be fewer, one batch is used.
    fewest_draws: int = 200
    #: Fewest draws that are scored at once where time is limited: enough to look at their weights.
    piece_draws: int = 25
    #: Seconds that such a piece takes at most.
    piece_seconds: float = 2.0
    #: Calls of the density on all data, at a guess, where parameters are moved.
    gradient_calls: int = 100


@dataclass(frozen=True)
class ModeCheckRecipe:
    """Places from which modes are searched, and modes that a guide misses."""

    #: Points from which modes are searched.
    points: int = 192
    #: Fewest of these that are worth it.
    fewest_points: int = 8
    #: Estimated share of the evidence in modes that no start met, from which on a fit is not to be
    #: trusted: it shifts a probability by as much.
    most_unseen: float = 0.05
    #: Widths of draws around the best Gaussian, relative to it; half of the points are such.
    reaches: tuple[float, ...] = (3.0, 10.0)
    #: Share of the other half that is uniform; the rest are draws from the prior.
    uniform_share: float = 0.25
    #: Least width of the prior's draws.
    least_width: float = 1e-10
    #: Ascents from uniform draws, where no modes are searched.
    uniform_ascents: int = 4
    #: Ascents from draws of the prior there.
    prior_ascents: int = 6
    #: Steps of these ascents.
    ascent_steps: int = 40
    #: Degrees of freedom of wide proposals: heavier tails than nearly all posteriors have.
    freedom: float = 3.0
    #: Most latents for wide proposals: with more, hardly any of their draws has a weight.
    wide_dim: int = 30
    #: Draws of each mode on which the guide's density is compared.
    draws: int = 64
    #: Nats of the bound of a missed mode below the ELBO from which on it has no mass.
    negligible: float = 5.0


@dataclass(frozen=True)
class MassOutsideRecipe:
    """Posterior mass where a guide has none."""

    #: Scales of the proposals around the draws, relative to these.
    scales: tuple[float, ...] = (1.0, 3.0, 10.0)
    #: Rows of all proposals together.
    rows: int = 2400
    #: The same where each row is a run of its own.
    loop_rows: int = 250
    #: Fewest rows of each proposal.
    proposal_rows: int = 20
    #: Proposals elsewhere as which one around the draws counts, so that its rows are enough.
    own_share: int = 6
    #: Fewest effective draws from which anything is concluded.
    fewest_effective: float = 60.0
    #: Share of the posterior's mass that a guide may leave out and still be trusted.
    most_outside: float = 0.02
    #: Effective points outside that have to say so before a moment counts as moved.
    fewest_points: float = 5.0
    #: Factor on an sd that they have to make.
    sd: float = 1.15


@dataclass(frozen=True)
class MomentRecipe:
    """Means and sds of a guide against weighted ones."""

    #: Shift of a mean, in sds, that a user sees.
    mean: float = 0.1
    #: Factor on an sd that a user sees.
    sd: float = 1.1
    #: Factor on an sd from which on a candidate is trained further: training mends it, and weights
    #: see less than is wrong.
    mended: float = 1.06
    #: Standard errors that a moment has to be off as well.
    errors: float = 3.0
    #: Draws that are scored by the model: what one in a thousand of them does is seen.
    rows: int = 10_000
    #: Scales of one coordinate of the base noise, in an eighth of the draws each.
    widths: tuple[float, ...] = (2.0, 4.0)
    #: Excess over 1 of scales of all coordinates of it, times the root of D/2, in an eighth each:
    #: what is far in one direction of z may be far in none of the noise.
    joint_excess: tuple[float, ...] = (0.4, 1.5)
    #: Fewest effective draws from which anything is concluded.
    fewest_effective: int = 100


@dataclass(frozen=True)
class ShortChainsRecipe:
    """Short chains from a fit's draws, and what they say of its means and sds."""

    #: Chains. One that forgets its start tells a mean to 0.044 sds, and an sd to 3 %.
    chains: int = 1024
    #: Fewest chains from which anything is concluded.
    fewest: int = 256
    #: Chains of each part of a mixture, at least.
    fewest_of_part: int = 64
    #: Chance that a number of an exact fit is said to move, all numbers together.
    false_alarm: float = 0.001
    #: Correlation of a chain's ends, of their values and squares, up to which it has forgotten its
    #: start: six standard errors of none.
    memory: float = 0.2
    #: Gap between evidence and ELBO, in nats, below which a mean is off by 0.08 sds at most.
    least_gap: float = 0.003


@dataclass(frozen=True)
class SupportEdgeRecipe:
    """Edges at which the density falls to zero inside the unconstrained space."""

    #: Draws that are moved outwards.
    draws: int = 500
    #: Factors by which they are: a Gaussian that drew back from an edge is narrow.
    reaches: tuple[float, ...] = (1.5, 3.0, 8.0, 25.0)
    #: Most of them that are followed back to where the density ends.
    bisected: int = 50
    #: Bisections of that way: to 1e-6 of it.
    bisections: int = 20
    #: Nats below the middle of the draws, up to which an edge holds mass: a normal number has
    #: three in ten thousand of its draws beyond the place where it is as low, at 3.6 sds.
    most_drop: float = 6.5


@dataclass(frozen=True)
class PrecisionRecipe:
    """Densities of draws in double precision beside those in single."""

    #: Draws that are scored again.
    draws: int = 2000
    #: Spread of the differences, in nats, below which they move nothing: a precision that is off
    #: by a tenth, so that an sd is by 5 %, makes 0.07 nats.
    negligible: float = 0.05
    #: Spread from which on single precision says too little, whatever it moves.
    most: float = 1.0


@dataclass(frozen=True)
class TailCheckRecipe:
    """Tails of a fit."""

    #: Fourth moment of a coordinate of the base noise, in units of its variance squared (3 for a
    #: normal one), from which on the guide lacks the weight of its tails.
    kurtosis: float = 4.2
    #: Rows of one call of the model, at most.
    most_rows: int = 8000
    #: Rows that following all tails takes, as a rule.
    rows: int = 20_000
    #: Tail index up to which a tail is reported: below 4 the error of an sd has no variance.
    reported: float = 4.0
    #: Tail index below which there is no mean: 1, and the error of the index.
    no_mean: float = 1.05
    #: Tail index below which there is no variance: 2, and the error of the index.
    no_variance: float = 2.1
    #: Ratio of sds from which on draws stop short: that of a right fit is within 3 %.
    short: float = 1.1
    #: Part of it by tails beyond all draws, from which on it is about these.
    beyond: float = 1.02
    #: Most latents for which that is asked. In 90 latents of a non-centred hierarchy Laplace's
    #: method is far off, since the scale that all share moves with each of them.
    short_dim: int = 30


@dataclass(frozen=True)
class ImproperRecipe:
    """Directions in which a density never falls."""

    #: Steps of a fit below which it has not left its start.
    fewest_steps: int = 100
    #: Distances from a draw, in spreads of the draws (at least 1, or the size of the start).
    distances: tuple[float, ...] = (10.0, 30.0, 80.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)
    #: Distance below which a rise may be another mode, which is no fault.
    far: float = 30.0
    #: Logarithm of a positive number, or a logit, beyond which it has diverged already.
    beyond: float = 25.0
    #: Spread of draws that say little of where lines should be straight.
    wide: float = 1e3
    #: Nats per e-fold of the distance by which a density that can be integrated falls, at least:
    #: half of what it has to.
    fall: float = 0.5
    #: Logarithm of the mass of a shell, relative to the middle, that does not count as falling.
    shell: float = 2.0
    #: Draws from each of which a line has to lead outwards.
    centres: int = 4
    #: Draws whose median density a line has to rise above.
    level_draws: int = 16
    #: Runs of the model, together.
    runs: int = 4000
    #: Runs of the model, one by one.
    loop_runs: int = 400
    #: Latents up to which directions without curvature are looked for.
    curved_dim: int = 100
    #: Rows of one call of the model where time is limited.
    piece: int = 256
    #: Distance up to which a direction that mixes coordinates is followed, in spreads: it is known
    #: up to rounding. In double precision.
    mixed_double: float = 1e9
    #: The same in single precision.
    mixed_single: float = 1e5
    #: The same in half precision.
    mixed_half: float = 1e4
    #: Lines that are followed, at least, however few runs of the model there are.
    fewest_lines: int = 4
    #: Draws that numbers still hold, at least, for lines to start from draws.
    fewest_draws: int = 10
    #: Points about the start from which they start otherwise.
    start_points: int = 100
    #: Draws from which the direction of the largest spread is taken, at most.
    spread_draws: int = 512
    #: Ratio of the two largest coordinates of a direction from which on it is one coordinate.
    dominance: float = 20.0
    #: Step of the differences of gradients that give the curvature, in spreads.
    difference: float = 1e-2
    #: Directions of least curvature, at most.
    flat_lines: int = 3
    #: Curvature of these relative to the largest, at most.
    flatness: float = 1e-3
    #: Distances at which these are made straight by Newton steps, in spreads.
    straightened: tuple[float, ...] = (10.0, 100.0, 1e3, 1e4, 1e5)
    #: Turn of a direction in one such step, at most: beyond, the quadratic says little.
    most_turn: float = 0.5
    #: Rounding of a density, in units in the last place of its largest term.
    rounding: float = 8.0
    #: Share of the change along a line that may be rounding.
    rounding_share: float = 1e-3
    #: Share of the distance by which a point may come back changed from the constrained space.
    held: float = 0.01
    #: Latent numbers by which a direction is named, at most.
    named: int = 3
    #: Share of the largest coordinate that such a number has, at least.
    named_share: float = 0.3
    #: Distance at which a message looks where a number goes, in spreads.
    described: float = 80.0
    #: Factor by which a number has grown that goes up to infinity.
    grown: float = 10.0
    #: Share that is left of a number that goes down to 0.
    vanished: float = 1e-3


@dataclass(frozen=True)
class PyroCheckRecipe:
    """Pyro's own scores beside the log joint's."""

    #: Points near the start, and as many around the origin, before training.
    points: int = 8
    #: Draws after training. A share p of wrong draws is missed by n draws with probability
    #: (1 - p)^n: 10 % by 32 once in thirty.
    draws: int = 32
    #: Seconds after which no further one is begun; for most models all takes a tenth of it.
    seconds: float = 2.0
    #: Share of a limited time that a check may take.
    time_share: float = 0.03


@dataclass(frozen=True)
class LabelSwitchingRecipe:
    """Exchangeable latents."""

    #: Points at which a density is compared with itself.
    points: int = 6
    #: Draws from the prior among the candidates for these.
    prior_candidates: int = 3
    #: Standard normal draws about the origin among them.
    normal_candidates: int = 8
    #: How far beside the points some more lie, in units of how far these reach.
    aside: tuple[float, ...] = (3.0, -3.0, 10.0, -10.0)
    #: Axes of one length of which every subset is tried.
    axes: int = 6
    #: Sites of which every choice of signs is tried.
    signed_sites: int = 5
    #: Longest axis that is looked at: beyond, an axis stands for data, and not for labels.
    longest_axis: int = 32
    #: Images of a mode that are looked at together.
    images: int = 16
    #: Difference between the densities of a point and of its image, relative to their size, that
    #: is rounding: where the result is in double precision, data may still be in single precision.
    double: float = 1e-7
    #: The same in single precision.
    single: float = 2e-5
    #: The same in half precision.
    half: float = 1e-3


@dataclass(frozen=True)
class RescoringRecipe:
    """A loaded fit scored again."""

    #: Difference of two runs of one model, in nats.
    nats: float = 1e-3
    #: The same in units of the last place of the log joint, which is a sum of many terms.
    rounding: float = 100.0


@dataclass(frozen=True)
class ComparisonRecipe:
    """Fits side by side."""

    #: Draws of a fit that another fit's model scores, to see that it is the same.
    rows: int = 20
    #: Difference of log joints, relative to their size, that is rounding: single precision has 6e-8
    #: for each of many terms.
    rounding: float = 1e-3
    #: Directions of a sliced distance: it is known to some 3 % then.
    directions: int = 200
    #: Most draws on each side.
    draws: int = 2000


@dataclass(frozen=True)
class FileRecipe:
    """Limits of what is made of a fit's file."""

    #: Bytes of one tensor that any flow may need while it is built.
    bytes: int = 64 * 1024 * 1024
    #: Operations of its building.
    operations: int = 2_000
    #: Bytes of a tensor for each byte of the file, where that is more.
    bytes_per_byte: int = 16
    #: Operations for each tensor of the file, besides.
    operations_per_tensor: int = 200
    #: Rows that go back through the flow to tie guide and draws.
    tie_rows: int = 256
    #: The fewest of these, where each is long.
    tie_fewest_rows: int = 16
    #: Numbers of all of these rows.
    tie_numbers: int = 20_000
    #: Difference of two passes through one inverse, in units of the last place.
    tie_rounding: float = 1e4
    #: Difference of the pass back and the pass forth where no file tells it (version 0.1).
    tie_unknown: float = 0.05


@dataclass(frozen=True)
class ChainRecipe:
    """Checks of chains that ran through a fit."""

    #: Nested R-hat from which on superchains disagree a little: their means are 0.2 sds apart.
    nested_rhat: float = 1.02
    #: ... and from which on they cannot be trusted: 0.45 sds.
    nested_rhat_fault: float = 1.1
    #: R-hat from which on chains disagree, where each is long enough to be compared by itself:
    #: one chain of 64 that stays elsewhere gives 1.04.
    rhat: float = 1.03
    #: ... and from which on they cannot be trusted.
    rhat_fault: float = 1.2
    #: Draws of a chain from which on R-hat is read: that of 64 exact chains of 250 is below 1.02.
    rhat_draws: int = 250
    #: Share of divergent transitions from which on draws miss the places where they happen.
    divergent: float = 0.001
    #: ... and from which on they cannot be trusted.
    divergent_fault: float = 0.05
    #: Effective draws below which quantiles are rough: 100 for each of the usual four chains
    #: (Vehtari et al. 2021).
    effective: int = 400
    #: Nats by which the fit's density is too low where it has next to nothing; as the search for
    #: mass outside counts.
    outside: float = 3.0
    #: Share of the mass outside that chains have to have visited, for it to count as reached.
    visited: float = 0.7
    #: Rounding of the log density, in nats, from which on acceptance is not exact: 5 % of it.
    rounding: float = 0.05
    #: Most numbers that the draws of a run may hold: 1.6 GB of float64.
    numbers: int = 200_000_000
    #: Rows that go through a flow, or through the model, at once.
    rows: int = 4096


@dataclass(frozen=True)
class WordsRecipe:
    """Lengths of what a user reads."""

    #: Numbers that a sentence of the verdict names at most.
    named: int = 3
    #: Names that an error lists at most.
    listed: int = 10
    #: Quantiles of a summary.
    levels: tuple[float, ...] = (0.05, 0.5, 0.95)
    #: Numbers that the runs of one chunk of predictions hold together.
    prediction_numbers: int = 10_000_000


@dataclass(frozen=True)
class SearchWorkRecipe:
    """Limits of the random search, in numbers computed (0.3 to 1.2 ns each)."""

    #: All of it before training, about 0.4 s on one core.
    work: float = 6e8
    #: All of it after training, from the guide's draws.
    last: float = 2e8
    #: Most points.
    most: int = 2_000_000
    #: Numbers of the model that one call holds at most: they stay in the cache.
    cache: int = 400_000
    #: Rows of one call, at most.
    rows: int = 16_384
    #: Rows of the guide's draws, of which its nets hold many numbers each.
    pushed_rows: int = 4096
    #: Points near each draw, which cost no pass through the guide's nets.
    neighbours: int = 7
    #: How far off they are, in differences of two draws.
    nearness: float = 0.1
    #: The best of a chunk, at which the guide's own density is computed.
    rescored: int = 64
    #: Mass of a mode that the guide misses, relative to the guide's, from which on it is reported.
    least_share: float = 0.01
    #: Work of the search itself for a point.
    own: float = 50.0
    #: The same for each of its numbers.
    own_dim: float = 10.0


@dataclass(frozen=True)
class DensityCheckRecipe:
    """The look at a log density that is not of Pyro, before it is fitted."""

    #: Points near the start at which it is examined.
    points: int = 4
    #: How far from the start they are, in units of the vector.
    radius: float = 0.5
    #: Draws, uniform in (-2, 2) around the start, in search of points where it is finite.
    tries: int = 100
    #: Coordinates whose derivatives are compared with differences one by one; of a larger vector
    #: as many random directions.
    directions: int = 32
    #: Step of a central difference, in powers of the rounding unit: a third balances the error of
    #: the difference and that of rounding.
    step_power: float = 1 / 3
    #: Largest relative difference from the slope that is no fault: solvers of differential
    #: equations have gradients good to per mille.
    slope: float = 0.02
    #: The same in errors of the difference, as two steps of it tell them.
    errors: float = 10.0
    #: Points of the four at which a coordinate's derivative has to be off, since a kink is one.
    off_points: int = 2
    #: Largest relative difference of two evaluations of a row, in square roots of the rounding
    #: unit: sums over threads and matrix products differ by rounding.
    repeated: float = 1.0


@dataclass(frozen=True)
class PlateRecipe:
    """Numbers of fits whose latents stand in plates."""

    #: Latents above which a model whose plates do not subsample takes a plate flow: up to there a
    #: block-arrow Gaussian and a flow over all of the vector are tried, whose nets grow as D^2.
    least_dim: int = 1000
    #: Share of these that stands in plates with data, at least.
    least_share: float = 0.5
    #: Rows of a plate that make it one of local latents, at least.
    least_rows: int = 32
    #: Numbers in the rows of a plate that crosses a larger one up to which these go to the globals:
    #: the nets of a flow of so many still take a few milliseconds.
    most_joint: int = 256
    #: Nats a row by which the bound of a Gaussian of all rows may be below the evidence, for it to
    #: be judged before anything is trained: a quarter of the gap a row that fits aim at.
    start_gap: float = 0.005
    #: Numbers of a mini-batch's vector in all particles together: a step's cost grows with them.
    step_numbers: int = 2048
    #: Particles of a step, at least.
    least_particles: int = 4
    #: Passes over the rows of a training without ``max_steps``, where that is more steps.
    passes: int = 20
    #: Most steps of that.
    most_steps: int = 20_000
    #: Adam's rate of the rows' tables, relative to the rest: a row is drawn in few steps.
    table_rate: float = 3.0
    #: Rows of a plate that are examined one by one: 1 % of bad rows shows in nine fits of ten.
    examined_rows: int = 256
    #: Draws of the globals at which such a row is examined.
    examined_globals: int = 8
    #: Draws of such a row at each of these: enough for the fit of a tail.
    examined_draws: int = 128
    #: Draws of the globals that are judged on re-drawn rows, at most.
    judged_globals: int = 256
    #: Draws of the globals that are judged, at least.
    fewest_globals: int = 64
    #: Draws of each row for each of these, at most.
    judged_draws: int = 16
    #: Draws of each row for each of these, at least: their mean stands for an integral.
    fewest_draws: int = 4
    #: Draws of rows in all that the judgement of the globals may take.
    judged_numbers: int = 30_000_000
    #: Cost of it relative to that of the training, up to which it may take more draws than these.
    judged_share: float = 0.5
    #: Cost of a draw with its gradient, as a step takes it, in draws without.
    gradient_cost: float = 3.0
    #: The same of a guide whose flows are the identity, which are not run: 64 draws of the globals
    #: on four nodes of each of a million rows.
    plain_numbers: int = 300_000_000
    #: Moves of the globals to where re-drawn rows weigh them, at most: one makes an sd that is half
    #: of the truth some 1.25 times as large, by 64 draws.
    calibrations: int = 8
    #: Sds of a mean from which on the globals are moved.
    least_shift: float = 0.05
    #: Nats of an sd's logarithm from which on they are moved: half of the 5 % that sds aim at.
    least_stretch: float = 0.025
    #: Draws of a guide's globals for its own moments: their sds are known to half a percent.
    moment_draws: int = 16_384
    #: Effective draws below which the weights do not say where to.
    least_effective: float = 8.0
    #: Effective draws of a row's predictive density below which a warning says so: its error is
    #: 0.14 nats there, and that error itself is not known well.
    predictive_draws: float = 50.0
    #: Nats of gap from which on a row is not to be trusted.
    row_gap: float = 0.5
    #: Nats of gap up to which the weights of a row are so even that k-hat is of no account: as
    #: ``small_gap`` of the verdict.
    row_even: float = 0.05
    #: k-hat from which on a row is not to be trusted: the limit for means of any weights.
    row_khat: float = 0.7
    #: Share of such rows from which on the verdict is not good.
    doubted_rows: float = 0.02
    #: Share of such rows from which on they are a fault.
    untrusted_rows: float = 0.1
    #: Numbers of draws that are made at once.
    drawn_numbers: int = 20_000_000
    #: Most numbers that ``fit.sample`` returns: 8 GB of doubles.
    most_numbers: int = 1_000_000_000


@dataclass(frozen=True)
class RowStartRecipe:
    """Numbers of the Gaussian of each row from which a fit of rows starts."""

    #: Sd of each unconstrained number before the first step.
    scale: float = 0.3
    #: Mini-batches whose Gaussians are averaged for the globals, at most: the mean of 16 lies a
    #: quarter as far off as that of one.
    batches: int = 16
    #: Steps of a row: twice as many as a Gaussian posterior a few sds away needs.
    steps: int = 12
    #: Draws of a step, in mirrored pairs.
    draws: int = 8
    #: Factor by which a step changes a precision, at most.
    change: float = 4.0
    #: Sds that a step moves a mean, at most.
    reach: float = 4.0
    #: Share of the time for training that the start may take.
    time_share: float = 0.3


CALL_SIZES = CallSizes()
ROW_START = RowStartRecipe()
PLATES = PlateRecipe()
GAPS = GapRecipe()
TIME = TimeRecipe()
SCORING = ScoringRecipe()
GAUSSIAN_START = GaussianStartRecipe()
FLOW_GROWTH = FlowGrowthRecipe()
CONTINUED_TRAINING = ContinuedTrainingRecipe()
MULTIMODAL = MultimodalRecipe()
PARAMETERS = ParameterRecipe()
PARAMETER_START = ParameterStartRecipe()
PARAMETER_START_LOOP = ParameterStartLoopRecipe()
WEIGHTED_DRAWS = WeightedDrawsRecipe()
MODE_CHECK = ModeCheckRecipe()
SEARCH_WORK = SearchWorkRecipe()
MASS_OUTSIDE = MassOutsideRecipe()
MOMENTS = MomentRecipe()
SHORT_CHAINS = ShortChainsRecipe()
SUPPORT_EDGE = SupportEdgeRecipe()
PRECISION = PrecisionRecipe()
TAIL_CHECK = TailCheckRecipe()
IMPROPER = ImproperRecipe()
PYRO_CHECK = PyroCheckRecipe()
LABEL_SWITCHING = LabelSwitchingRecipe()
RESCORING = RescoringRecipe()
COMPARISON = ComparisonRecipe()
FILES = FileRecipe()
CHAINS = ChainRecipe()
WORDS = WordsRecipe()
DENSITY_CHECK = DensityCheckRecipe()
