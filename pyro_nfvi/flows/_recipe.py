"""The numbers of the flows: bounds that keep inverses well conditioned, and default sizes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """Bounds of what a layer's free numbers, or a conditioner, can do to the map."""

    #: Log-scale of an affine transformer, in nats: a funnel's scale e^(v/2) needs about 4.5.
    log_scale: float = 5.0
    #: Log-slope of a parametric ReLU, in nats: many kinks in a row multiply.
    log_slope: float = 3.0
    #: Log of a diagonal weight of a block autoregressive net, in nats.
    log_weight: float = 4.0
    #: Log of a diagonal entry of a Sylvester layer, in nats.
    sylvester_log_scale: float = 3.0
    #: Log-sharpness of a unit of a monotone net, in nats.
    log_sharpness: float = 3.0
    #: Free number below 0 to which a context drives a scale: to 0.0006. Above 0 it has no bound,
    #: since a map that widens loses nothing.
    lowest_scale: float = 8.0
    #: Longest row of a triangular map beside its diagonal, in units of it, that a context gives:
    #: the inverse of chance rows of bounded length grows as a power of D, of bounded numbers as
    #: e^D.
    triangular_row: float = 3.0
    #: The same of both factors of an LU map, whose inverses multiply.
    lu_row: float = 1.5
    #: Free number of a scale of an LU map that a context gives.
    lu_scale: float = 3.0
    #: Least value of alpha and of alpha + beta of a radial layer.
    radial: float = 1e-3
    #: Distance of a Moebius map's centre from that of the circle, at most: slopes up to 199.
    moebius: float = 0.99


@dataclass(frozen=True)
class Spline:
    """The rational-quadratic spline."""

    #: Least width and height of a bin, as a share of the whole interval.
    least_bin: float = 1e-3
    #: Least slope at a knot.
    least_slope: float = 1e-3
    #: Bound of the free numbers behind widths, heights and slopes, wherever a conditioner goes.
    logit: float = 3.0


@dataclass(frozen=True)
class Tail:
    """The tail transformer."""

    #: Bound of h: a tail index of 1 / h just above 1, where the mean still exists.
    heaviest: float = 0.9
    #: h per unit of the free number: a step of Adam moves far draws by a few percent.
    pace: float = 0.25
    #: Beyond it, in widths, the map is a straight line: a normal draw is there once in 5e8.
    edge: float = 6.0
    #: Below it 3 |h| counts as 0 in the lighter branch, where its square root has no slope.
    tiny: float = 1e-10
    #: Iterations of Lambert's function in the inverse: errors are 2e-2, 6e-5 and 1e-9 in turn, and
    #: two steps of Newton come after.
    lambert_steps: int = 3


@dataclass(frozen=True)
class Sizes:
    """Default sizes, and where the way to compute something changes."""

    #: Least hidden width of an autoregressive net, which is 2 D otherwise.
    least_hidden: int = 32
    #: Largest one: weights grow as D^2.
    most_hidden: int = 512
    #: Weights of an autoregressive layer above which a warning names cheaper flows.
    large_net: int = 5_000_000
    #: D above which the Jacobian for path gradients (rows x D x D) is formed in blocks.
    explicit_jacobian: int = 64
    #: Number of these blocks on its diagonal.
    jacobian_blocks: int = 32
    #: Columns of a Sylvester layer's basis, where D is above it.
    sylvester_rank: int = 8
    #: Reflections of a Sylvester layer of kind "householder".
    reflections: int = 8
    #: D up to which a continuous flow takes its trace exactly.
    exact_trace: int = 10
    #: Range over which the centres of a monotone net's units are spread at the start.
    unit_spread: float = 2.0


@dataclass(frozen=True)
class MixtureQuantiles:
    """Quantile functions of mixtures, behind the map from noise to them."""

    #: Error of the logarithm of the smaller tail, in nats, at which a solution has converged; and
    #: width of its bounds, relative to it.
    tolerance: float = 1e-13
    #: Most steps: bisections alone halve bounds of a thousand sds down to the tolerance in 54.
    most_steps: int = 60
    #: Logarithm of a tail, in nats, below which its normal quantile is found by Newton's method:
    #: near the smallest number of double precision.
    far: float = -650.0
    #: Largest logarithm of a slope: in a valley between two modes it has none, and no draw is
    #: there.
    log_slope: float = 30.0


@dataclass(frozen=True)
class ConditionalAffineRecipe:
    """Coordinates relative to others."""

    #: Largest logarithm of a scale, and smallest with a minus: beyond it a number of single
    #: precision has no digit left beside one of ordinary size.
    log_scale: float = 30.0


BOUNDS, SPLINE, TAIL, SIZES = Bounds(), Spline(), Tail(), Sizes()
MIXTURE_MAP = MixtureQuantiles()
CONDITIONAL_AFFINE = ConditionalAffineRecipe()
