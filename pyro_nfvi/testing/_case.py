"""Laws, and the cases that they are examined on: one size and dtype of a flow, seeded points."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from pyro_nfvi._random import seeded, stream
from pyro_nfvi.errors import LawError
from pyro_nfvi.flows._base import Flow

_Module = TypeVar("_Module", bound=nn.Module)


class FlowFactory(Protocol):
    """Anything that builds a flow from its sizes; usually the class itself."""

    def __call__(self, dim: int, context_dim: int, /) -> Flow: ...


class _Broken(Exception):
    """A law failed; :func:`law` adds the name of the law and the case."""


@dataclass(frozen=True)
class FlowCase:
    """One size and dtype of a flow under examination, with its source of seeded numbers.

    The same case always builds the same flow and draws the same points, and leaves the global
    random number generators as they were.

    Args:
        factory: Builds the flow from ``(dim, context_dim)``.
        dim: Event size D.
        context_dim: Size C of the context.
        dtype: Floating-point type of the flow and of the points.
        seed: Fixes the flow's initialisation, the far parameters and the points.
        slack: Factor on what the laws allow; 1 for none.
        device: Where the flow and the points live.

    Example:
        >>> from pyro_nfvi.flows import DiagonalAffine
        >>> from pyro_nfvi.testing._check_flow import LAWS
        >>> case = FlowCase(DiagonalAffine, dim=2)
        >>> flow, x = case.build(far=1.0), case.points(7)
        >>> LAWS["ladj"](case)  # raises LawError where the law is broken
    """

    factory: FlowFactory
    dim: int
    context_dim: int = 0
    dtype: torch.dtype = torch.float64
    seed: int = 0
    slack: float = 1.0
    device: torch.device | str = "cpu"

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"dim={self.dim}, context_dim={self.context_dim}, {dtype}"

    def build(self, *, far: float = 0.0, seed: int = 0) -> Flow:
        """Build the flow; with ``far`` > 0 at parameters that far from initialisation."""
        return self._build(self.context_dim, far, seed)

    def build_unconditional(self) -> Flow:
        """Build the flow without context, from the same seed."""
        return self._build(0, 0.0, 0)

    def _build(self, context_dim: int, far: float, seed: int) -> Flow:
        with seeded(self.seed, "build", seed):
            flow = self.factory(self.dim, context_dim)
        if not isinstance(flow, Flow):
            raise _Broken(f"the factory returned a {type(flow).__name__}; it must return a Flow")
        if (flow.dim, flow.context_dim) != (self.dim, context_dim):
            raise _Broken(
                f"the factory returned a flow of dim={flow.dim}, context_dim={flow.context_dim} "
                f"when asked for dim={self.dim}, context_dim={context_dim}"
            )
        flow = flow.to(device=self.device, dtype=self.dtype)
        if far:
            perturb(flow, far, stream(self.seed, "far", seed))
        return flow

    def points(self, *batch: int, scale: float = 1.0, salt: int = 0) -> Tensor:
        """Draw points of shape ``(*batch, D)`` from a normal of this scale."""
        return self._randn((*batch, self.dim), 10 + salt) * scale

    def contexts(self, *batch: int, salt: int = 0) -> Tensor | None:
        """Draw contexts of shape ``(*batch, C)``; None for a flow without context."""
        return self._randn((*batch, self.context_dim), 20 + salt) if self.context_dim else None

    def weights(self, *shape: int, salt: int = 0) -> Tensor:
        """Draw numbers to weigh outputs with."""
        return self._randn(shape, 30 + salt)

    def _randn(self, shape: tuple[int, ...], salt: int) -> Tensor:
        # Drawn in float64 on the CPU, so that every dtype and device sees the same numbers.
        noise = stream(self.seed, "case", salt)
        drawn = torch.randn(shape, generator=noise, dtype=torch.float64)
        return drawn.to(device=self.device, dtype=self.dtype)

    def at_most(
        self, found: float, *, double: float, what: str, hint: str, single: float | None = None
    ) -> None:
        """Break the law unless ``found`` is at most what is allowed in this dtype."""
        narrow = torch.finfo(self.dtype).eps > 1e-12
        allowed = self.slack * (single if narrow and single is not None else double)
        if not found <= allowed:  # a NaN is broken too
            self.broken(f"{what}: found {found:.3g}, allowed {allowed:.3g}", hint)

    def finite(self, value: Tensor, what: str, hint: str) -> None:
        """Break the law unless all numbers are finite."""
        bad = int((~value.isfinite()).sum())
        if bad:
            self.broken(f"{what}: found {bad} of {value.numel()} not finite, allowed 0", hint)

    def broken(self, message: str, hint: str) -> None:
        """Break the law."""
        raise _Broken(f"{message}. {hint}")


@dataclass(frozen=True)
class Scope:
    """On which of the cases :func:`pyro_nfvi.testing.check_flow` examines a law.

    Args:
        dtype: Only this dtype.
        max_dim: Only up to this D.
        context: Only flows with a context.
        once: Only the largest D, for laws that take long.
    """

    dtype: torch.dtype | None = None
    max_dim: int | None = None
    context: bool = False
    once: bool = False

    def covers(self, case: FlowCase) -> bool:
        """Tell whether the law speaks about this case."""
        return (
            (self.dtype is None or case.dtype == self.dtype)
            and (self.max_dim is None or case.dim <= self.max_dim)
            and (not self.context or case.context_dim > 0)
        )


@dataclass(frozen=True)
class Law:
    """A law: a function of a case that raises :class:`LawError` where the flow breaks it.

    Made by the decorator :func:`law`.
    """

    name: str
    scope: Scope
    function: Callable[[FlowCase], None]

    @property
    def promise(self) -> str:
        """The promise of a flow that keeps the law, in a sentence or two."""
        return inspect.getdoc(self.function) or ""

    def __call__(self, case: FlowCase) -> None:
        try:
            self.function(case)
        except _Broken as broken:
            raise LawError(f"The law {self.name!r} is broken at {case}: {broken}") from None
        except Exception as error:
            raise LawError(
                f"The law {self.name!r} is broken at {case}: found {type(error).__name__}, "
                f"allowed no error. It says: {error}"
            ) from error


def law(name: str, scope: Scope = Scope()) -> Callable[[Callable[[FlowCase], None]], Law]:
    """Make a function of a case a law of this name."""
    return lambda function: Law(name, scope, function)


def perturb(flow: _Module, scale: float, generator: torch.Generator | None = None) -> _Module:
    r"""Move every parameter, in place, far from where it started; return the flow.

    A vector or a number moves by ``scale`` times a standard normal; a matrix by
    ``scale / sqrt(columns)`` times one, so that what it does to a unit input moves by ``scale``
    whatever its width.

    Args:
        flow: Any module.
        scale: Size of the move; 1 is far for parameters of order 1.
        generator: Where the numbers come from; a fixed seed of its own if None. The global
            generator is not touched.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Planar
        >>> flow = perturb(Planar(3), 1.0)
        >>> bool((flow(torch.zeros(3))[0] != 0).any())
        True
    """
    if generator is None:
        generator = stream(0, "perturb")
    with torch.no_grad():
        for parameter in flow.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            width = max(parameter.shape[-1], 1) if parameter.dim() > 1 else 1
            parameter.add_((scale / width**0.5 * drawn).to(parameter))
    return flow


def gap(found: Tensor, expected: Tensor) -> float:
    """Largest ``|found - expected| / (1 + |expected|)``; infinite if the shapes differ or a NaN."""
    if found.shape != expected.shape:
        return float("inf")
    if found.numel() == 0:
        return 0.0
    error = ((found - expected).abs() / (1 + expected.abs())).max().item()
    return float("inf") if math.isnan(error) else error
