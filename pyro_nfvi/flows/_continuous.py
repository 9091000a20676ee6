"""Continuous flow: the solution of an ordinary differential equation whose field is a net."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_nfvi._nn.mlp import hidden_widths
from pyro_nfvi._typing import Contexts, Hidden, Image, Points, TensorPair
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import MissingPackageError, OptionError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._recipe import SIZES

Solver = Literal["rk4", "dopri5"]
Trace = Literal["auto", "exact", "hutchinson"]

_Field = Callable[[Tensor, Tensor], TensorPair]


class _Net(nn.Module):
    """A tanh net of point, time and context, with its derivative along given directions."""

    def __init__(self, dim: int, context_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (dim + 1 + context_dim, *hidden, dim)
        self.dim = dim
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        # A field of zero: the flow starts as the identity.
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, time: Tensor, x: Tensor, context: Tensor | None, along: Tensor) -> TensorPair:
        """Return the field ``(*b, D)`` and its derivative ``(*b, P, D)`` along P directions."""
        inputs = [x, time.expand(*x.shape[:-1], 1)]
        if context is not None:
            inputs.append(context.expand(*x.shape[:-1], context.shape[-1]))
        h = torch.cat(inputs, -1)
        tangent = along
        layers = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        for i, layer in enumerate(layers):
            # The first layer's other inputs do not move with the point.
            weight = layer.weight[:, : self.dim] if i == 0 else layer.weight
            h, tangent = layer(h), F.linear(tangent, weight)
            if i < len(layers) - 1:
                h = torch.tanh(h)
                tangent = tangent * (1 - h.square()).unsqueeze(-2)
        return h, tangent


@final
class Continuous(Flow):
    r"""Free-form continuous flow (FFJORD): :math:`\dot x = f(x, t)` from t = 0 to 1.

    .. math:: \log\Bigl|\det \frac{\partial x(1)}{\partial x(0)}\Bigr|
        = \int_0^1 \mathrm{tr}\,\frac{\partial f}{\partial x}(x(t), t)\,dt

    The field is a tanh net. Its trace is exact up to D = 10; above, Hutchinson's estimate
    :math:`v^\top (\partial f/\partial x) v` with random signs v, one draw per call from torch's
    generator: unbiased, but noisy, so that two calls differ. In ``eval`` mode it is exact for any
    D, at D times the cost. The noise enters the scores of path gradients too (unbiased as well),
    and grows with the field: where a guide of more than ten latents trains unsteadily, take
    ``trace="exact"``, or ``objective="total"``, which needs no score.

    **Errors.** With ``"rk4"`` the error of points and log-determinants is that of the classical
    Runge-Kutta method, of order 4 in 1/steps: with fields of size 1 about 1e-6 at 16 steps (each
    doubling takes a sixteenth). The inverse integrates back, so a round trip meets twice that.
    With ``"dopri5"`` both are within about ten times ``tolerance``; its steps are shared by the
    rows of a batch, so rows depend on each other within that error.

    Args:
        dim: Event size D.
        context_dim: Size of the context, an input of the field; 0 for none.
        hidden_dim: Hidden width of the field, or several. Default (64, 64).
        solver: ``"rk4"``, fixed steps, needs nothing else and runs under ``vmap`` and tracing; or
            ``"dopri5"``, adaptive steps of torchdiffeq (``pip install 'pyro-nfvi[ode]'``).
        steps: Steps of ``"rk4"``.
        tolerance: Relative and absolute error per step of ``"dopri5"``.
        trace: ``"exact"``, ``"hutchinson"`` or ``"auto"`` (exact up to D = 10).

    Shape:
        ``x (*b, D)``, ``context (*b, C)`` or broadcastable -> ``y (*b, D)``, ``ladj (*b,)``.

    Cost:
        Four net passes per step both ways, times 1 + D for the exact trace, 2 for Hutchinson's.

    Raises:
        OptionError: An unknown solver or trace, or numbers out of range.
        MissingPackageError: ``"dopri5"`` without torchdiffeq.
        ShapeError: A point or context of the wrong size.

    Source: Grathwohl et al. 2019, arXiv:1810.01367, equation 3 and section 3.1; Chen et al. 2018,
    arXiv:1806.07366, theorem 1.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Continuous
        >>> y, ladj = Continuous(2, hidden_dim=16)(torch.ones(5, 2))
        >>> bool((y == 1).all()), ladj.shape
        (True, torch.Size([5]))
    """

    inverse_kind = "numeric"

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        *,
        hidden_dim: Hidden = None,
        solver: Solver = "rk4",
        steps: int = 16,
        tolerance: float = 1e-6,
        trace: Trace = "auto",
    ) -> None:
        super().__init__(dim, context_dim)
        if solver not in get_args(Solver):
            raise OptionError(f"Continuous needs solver 'rk4' or 'dopri5'; got {solver!r}.")
        if trace not in get_args(Trace):
            raise OptionError(
                f"Continuous needs trace 'auto', 'exact' or 'hutchinson'; got {trace!r}."
            )
        steps = whole("Continuous: steps", steps)
        if not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
            raise OptionError(f"Continuous needs a tolerance between 0 and 1; got {tolerance!r}.")
        self.solver, self.steps, self.tolerance, self.trace = solver, steps, tolerance, trace
        if solver == "dopri5":
            _torchdiffeq()  # better now than at the first call
        widths = (64, 64) if hidden_dim is None else hidden_widths(hidden_dim, 64)
        self.field = _Net(dim, context_dim, widths)

    #: A random trace in train mode, the exact one in eval mode.
    mode_dependent = True

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, context = self.enter(x, context)
        return self._integrate(x, context, 0.0, 1.0)

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, context = self.enter(y, context)
        return self._integrate(y, context, 1.0, 0.0)

    def _directions(self, x: Tensor) -> Tensor:
        """Directions ``(*b, P, D)`` along which the field is differentiated."""
        exact = self.trace == "exact" or (self.trace == "auto" and self.dim <= SIZES.exact_trace)
        if exact or not self.training:
            eye = torch.eye(self.dim, dtype=x.dtype, device=x.device)
            return eye.expand(*x.shape[:-1], self.dim, self.dim)
        return (2 * torch.rand_like(x).round() - 1).unsqueeze(-2)

    def _integrate(self, x: Tensor, context: Tensor | None, start: float, end: float) -> TensorPair:
        along = self._directions(x)

        def rates(time: Tensor, point: Tensor) -> TensorPair:
            rate, tangent = self.field(time, point, context, along)
            return rate, (tangent * along).sum((-2, -1))

        if x.numel() == 0:
            return x, x.new_zeros(x.shape[:-1])
        solve = _rk4 if self.solver == "rk4" else _dopri5
        return solve(rates, x, start, end, self)

    def extra_repr(self) -> str:
        how = f"steps={self.steps}" if self.solver == "rk4" else f"tolerance={self.tolerance}"
        return super().extra_repr() + f", solver={self.solver}, {how}, trace={self.trace}"


def _rk4(rates: _Field, x: Tensor, start: float, end: float, flow: Continuous) -> TensorPair:
    """Classical Runge-Kutta steps; the log-determinant is integrated beside the point."""
    step = (end - start) / flow.steps
    total = x.new_zeros(x.shape[:-1])
    for i in range(flow.steps):
        now = x.new_full((), start + i * step)
        a, ladj_a = rates(now, x)
        b, ladj_b = rates(now + step / 2, x + step / 2 * a)
        c, ladj_c = rates(now + step / 2, x + step / 2 * b)
        d, ladj_d = rates(now + step, x + step * c)
        x = x + step / 6 * (a + 2 * b + 2 * c + d)
        total = total + step / 6 * (ladj_a + 2 * ladj_b + 2 * ladj_c + ladj_d)
    return x, total


def _dopri5(rates: _Field, x: Tensor, start: float, end: float, flow: Continuous) -> TensorPair:
    """Adaptive steps of torchdiffeq."""
    times = torch.tensor([start, end], dtype=x.dtype, device=x.device)
    points, totals = _torchdiffeq().odeint(
        lambda time, state: rates(time, state[0]),
        (x, x.new_zeros(x.shape[:-1])),
        times,
        rtol=flow.tolerance,
        atol=flow.tolerance,
        method="dopri5",
    )
    return points[-1], totals[-1]


def _torchdiffeq() -> Any:
    from pyro_nfvi._optional_import import process_kept

    try:
        with process_kept():
            import torchdiffeq
    except ImportError as error:
        raise MissingPackageError(
            "solver='dopri5' needs torchdiffeq: pip install 'pyro-nfvi[ode]'. "
            "solver='rk4' needs nothing."
        ) from error
    return torchdiffeq
