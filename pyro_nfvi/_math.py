"""Stable scalar mathematics: bounded scales, tanh layers and their monotone inverse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: ``softplus(RAW_ONE) = 1``: a softplus-positive number starts at one.
RAW_ONE = math.log(math.expm1(1.0))
#: Least slope of ``t + a tanh(t)``: bounds the condition number of the inverse.
MIN_SLOPE = 1e-3
#: Argument from which the series of a difference of log gammas has all digits of a double.
_SERIES_FROM = 25.0
#: Newton steps after which every bracketed start has converged (9 suffice for a <= 1000).
_NEWTON_STEPS = 14


def broadcast_shape(*shapes: Sequence[int]) -> torch.Size:
    """Return the shape that these broadcast to.

    ``torch.broadcast_shapes`` imports sympy, for half a second; compilers know that function.

    Raises:
        RuntimeError: They do not broadcast.
    """
    if torch.compiler.is_compiling():
        return torch.broadcast_shapes(*shapes)
    result = [1] * max(map(len, shapes), default=0)
    for shape in shapes:
        for place in range(-len(shape), 0):
            size = shape[place]
            if size != 1:
                if result[place] not in (1, size):
                    raise RuntimeError(f"Shapes {[tuple(s) for s in shapes]} do not broadcast.")
                result[place] = size
    return torch.Size(result)


def standard_normal_log_prob(x: Tensor) -> Tensor:
    """Log density of the standard normal at each number, in nats."""
    return -0.5 * (x.square() + math.log(2 * math.pi))


def log_normal_cdf(x: Tensor) -> Tensor:
    """Log of the standard normal's distribution function, of small and of large numbers alike.

    As ``torch.special.log_ndtr``, which has no rule for ``vmap``.
    """
    low, high = x.clamp_max(0) * math.sqrt(0.5), x.clamp_min(0) * math.sqrt(0.5)
    below = (0.5 * torch.special.erfcx(-low)).log() - low.square()
    return torch.where(x < 0, below, torch.log1p(-0.5 * torch.erfc(high)))


def softplus_inverse(y: Tensor) -> Tensor:
    """Solve ``softplus(x) = y`` for ``y > 0`` without overflow or cancellation."""
    return y + torch.log(-torch.expm1(-y))


def soft_clamp(x: Tensor, bound: float) -> Tensor:
    r"""Bound smoothly: :math:`(2c/\pi) \arctan(\pi x / 2c)`, slope 1 at 0, range (-c, c).

    Source: Andrade 2024, arXiv:2402.16408 (there asymmetric).
    """
    return (2 * bound / math.pi) * torch.atan(x * (math.pi / (2 * bound)))


def soft_clamp_slope(x: Tensor, bound: float) -> Tensor:
    """Derivative of :func:`soft_clamp`."""
    return 1 / (1 + (x * (math.pi / (2 * bound))).square())


def bounded(x: Tensor, bound: float) -> Tensor:
    r"""Bound smoothly: :math:`x / \sqrt{1 + (x/c)^2}`, slope 1 at 0, range (-c, c).

    An arc tangent (:func:`soft_clamp`) nears its bound more slowly and takes ten times as long.
    """
    return x * (1 + (x / bound).square()).rsqrt()


def bounded_below(x: Tensor, bound: float) -> Tensor:
    """Bound below at -c alone, as :func:`bounded` does; what is positive stays as it is."""
    return x * (1 + (x.clamp_max(0) / bound).square()).rsqrt()


def bounded_rows(x: Tensor, bound: float) -> Tensor:
    r"""Bound the length of each row smoothly: :math:`x / \sqrt{1 + |x|^2/c^2}`, shorter than c."""
    return x * (1 + x.square().sum(-1, keepdim=True) / bound**2).rsqrt()


def log_gamma_step(x: Tensor) -> Tensor:
    r""":math:`\log\Gamma(x + \tfrac12) - \log\Gamma(x)` for x > 0, where the two do not cancel.

    From x = 25 on by its series, :math:`\tfrac12\log x - \tfrac1{8x} + \tfrac1{192x^3} -
    \tfrac1{640x^5} + \tfrac{17}{14336x^7}`, which has all digits there.
    """
    few, rest = x.clamp_max(_SERIES_FROM), 1 / x.clamp_min(_SERIES_FROM)
    square = rest.square()
    series = 1 / 192 + square * (-1 / 640 + square * (17 / 14336))
    series = 0.5 * x.log() + rest * (-1 / 8 + square * series)
    return torch.where(x > _SERIES_FROM, series, torch.lgamma(few + 0.5) - torch.lgamma(few))


def sech2(t: Tensor) -> Tensor:
    r""":math:`1 - \tanh^2 t` without cancellation."""
    decay = torch.exp(-2 * t.abs())
    return 4 * decay / (1 + decay).square()


def one_plus_a(alpha: Tensor) -> Tensor:
    """Map a free number to ``1 + a > MIN_SLOPE``, with ``alpha = 0`` giving exactly ``a = 0``."""
    return MIN_SLOPE + (1 - MIN_SLOPE) * (F.softplus(alpha + RAW_ONE) / _softplus_at_one(alpha))


def one_plus_a_inverse(slope: Tensor) -> Tensor:
    """Invert :func:`one_plus_a` for ``slope > MIN_SLOPE``."""
    scaled = (slope - MIN_SLOPE) / (1 - MIN_SLOPE) * _softplus_at_one(slope)
    return softplus_inverse(scaled) - RAW_ONE


def _softplus_at_one(like: Tensor) -> Tensor:
    # softplus(RAW_ONE) rounds to 1 +- 1 ulp, differently in each dtype: dividing by it makes the
    # identity exact.
    return F.softplus(like.new_full((), RAW_ONE))


def tanh_slope(t: Tensor, slope: Tensor) -> Tensor:
    r""":math:`1 + a\,\mathrm{sech}^2 t` from ``slope = 1 + a``, as a sum of positive terms."""
    return torch.tanh(t).square() + slope * sech2(t)


def log_tanh_slope(t: Tensor, slope: Tensor) -> Tensor:
    r""":math:`\log(1 + a\,\mathrm{sech}^2 t)`, accurate near the identity and near ``a = -1``.

    ``log1p`` where the argument is above -1/2, otherwise the logarithm of positive terms. The
    argument of the branch not taken is replaced, so that it sends no NaN into the gradient.
    """
    decay = sech2(t)
    excess = (slope - 1) * decay
    near = excess > -0.5
    safe = torch.where(near, excess, torch.zeros_like(excess))
    positive = torch.tanh(t).square() + slope * decay
    far = torch.where(near, torch.ones_like(positive), positive)
    return torch.where(near, torch.log1p(safe), torch.log(far))


def solve_tanh(k: Tensor, slope: Tensor) -> Tensor:
    r"""Solve :math:`t + a \tanh t = k` for t, where ``slope = 1 + a > 0``.

    Newton from the end of a bracket at which it is monotone, each iterate clamped to the
    bracket, for a fixed number of steps (so that it runs under ``vmap`` and tracing). Two more
    steps carry the gradient: first and second derivatives in ``k`` and ``slope`` are exact.

    Cost: 16 evaluations of tanh per element.

    Source: the monotone starts follow from the convexity of tanh on either side of 0.
    """
    with torch.no_grad():
        t = _bracketed_newton(k.detach(), slope.detach())
    for _ in range(2):
        t = t - (t + (slope - 1) * torch.tanh(t) - k) / tanh_slope(t, slope)
    return t


def _bracketed_newton(k: Tensor, slope: Tensor) -> Tensor:
    a = slope - 1
    size = k.abs()
    tiny = torch.finfo(k.dtype).tiny
    # a >= 0: root in [max(k/(1+a), k-a), k]; Newton from the left end rises monotonically.
    left = torch.maximum(size / slope, size - a)
    # a < 0: root in [k, min(k/(1+a), k+|a|)], and t <= (4.2 k/|a|)^(1/3) where that is below 1;
    # Newton from the right end falls monotonically.
    right = torch.minimum(size / slope, size + a.abs())
    cubic = (4.2 * size / a.abs().clamp_min(tiny)).pow(1 / 3)
    right = torch.where(cubic <= 1, torch.minimum(right, cubic), right)
    expanding = a >= 0
    low = torch.where(expanding, left, size)
    high = torch.where(expanding, size, right)
    t = torch.where(expanding, low, high)
    for _ in range(_NEWTON_STEPS):
        residual = t + a * torch.tanh(t) - size
        t = torch.minimum(torch.maximum(t - residual / tanh_slope(t, slope), low), high)
    return torch.copysign(t, k)


def solve_monotone(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    target: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    max_steps: int = 100,
) -> Tensor:
    r"""Solve :math:`f(x) = y` for an increasing f with ``f(low) <= y <= f(high)``.

    Newton steps inside a bracket that shrinks at every evaluation, bisection where Newton leaves
    it or does not halve the residual: as safe as bisection, as fast as Newton near the root.
    Two more Newton steps carry the gradient: first and second derivatives in ``target`` and in
    whatever f depends on are exact.

    Args:
        function: Maps x to ``(f(x), f'(x))``, elementwise, with gradients to its parameters.
        target: y.
        low: A point at or below the root.
        high: A point at or above it.
        max_steps: Evaluations at most; it ends before where no element moves any more.
    """
    with torch.no_grad():
        low, high = low.detach(), high.detach()
        x = (low + high) / 2
        last = torch.full_like(x, math.inf)
        for _ in range(max_steps):
            value, slope = function(x)
            residual = value - target
            below = residual < 0
            low, high = torch.where(below, x, low), torch.where(below, high, x)
            newton = x - residual / slope
            good = (newton >= low) & (newton <= high) & (residual.abs() <= last / 2)
            previous, x = x, torch.where(good, newton, (low + high) / 2)
            last = residual.abs()
            moved = (x - previous).abs()
            if holds_everywhere(moved <= 2 * torch.finfo(x.dtype).eps * x.abs().clamp_min(1)):
                break
    for _ in range(2):
        value, slope = function(x)
        x = x - (value - target) / slope
    return x


def holds_everywhere(condition: Tensor) -> bool:
    """Tell whether a condition holds everywhere; False where values cannot be seen.

    Under ``vmap`` and tracing a loop that ends early by its values has to run its full course.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    try:
        return bool(condition.all())
    except RuntimeError:
        return False
