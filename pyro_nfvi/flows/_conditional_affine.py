"""Affine maps whose shifts and scales follow coordinates that were mapped before."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from pyro_nfvi._typing import Contexts, Image, Points
from pyro_nfvi.errors import ShapeError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._recipe import CONDITIONAL_AFFINE


@dataclass(frozen=True, eq=False)
class ConditionalStage:
    r"""Coordinates whose location and scale are functions of p others.

    Attributes:
        given: Where the p others stand in the vector ``(p,)``.
        own: Where the c coordinates stand ``(c,)``.
        centre: What is subtracted from the others ``(p,)``.
        width: What they are divided by then ``(p,)``.
        knots: Centres of the bumps for each of the others, evenly spaced ``(K,)``; may be empty.
        means: Coefficients of the location by feature ``(c, B)``; see :func:`features`.
        log_scales: Those of the logarithm of the scale ``(c, B)``.
    """

    given: Tensor
    own: Tensor
    centre: Tensor
    width: Tensor
    knots: Tensor
    means: Tensor
    log_scales: Tensor

    def to(self, like: Tensor) -> ConditionalStage:
        """Return the same numbers with dtype and device of a tensor."""
        return ConditionalStage(
            self.given.to(like.device),
            self.own.to(like.device),
            self.centre.to(like),
            self.width.to(like),
            self.knots.to(like),
            self.means.to(like),
            self.log_scales.to(like),
        )

    def at(self, index: Tensor) -> ConditionalStage:
        """Return the stage of a longer vector, in which coordinate i stands at ``index[i]``."""
        return ConditionalStage(
            index[self.given],
            index[self.own],
            self.centre,
            self.width,
            self.knots,
            self.means,
            self.log_scales,
        )

    def fits(self) -> bool:
        """Tell whether the shapes belong together."""
        if self.given.dim() != 1 or self.own.dim() != 1 or self.knots.dim() != 1:
            return False
        count, size = len(self.given), len(self.own)
        width = len(monomials(count)) + count * len(self.knots)
        return self.centre.shape == self.width.shape == (
            count,
        ) and self.means.shape == self.log_scales.shape == (size, width)


def monomials(count: int) -> list[tuple[int, int, int]]:
    """Return the monomials of up to degree three, as places among ``count`` numbers and a one.

    Place 0 is the one: (0, 0, 0) is the constant, (0, 0, 1) the first number.
    """
    return list(itertools.combinations_with_replacement(range(1 + count), 3))


def features(given: Tensor, knots: Tensor) -> Tensor:
    """Return the functions of which locations and log-scales consist.

    All monomials of up to degree three, then, for each number, cubic B-splines at the knots, which
    are 0 outside.

    Args:
        given: Standardised numbers ``(*b, p)``.
        knots: ``(K,)``, evenly spaced.

    Returns:
        ``(*b, B)``.
    """
    count = given.shape[-1]
    index = torch.tensor(monomials(count), device=given.device)
    whole = torch.cat([torch.ones_like(given[..., :1]), given], -1)
    found = whole[..., index[:, 0]] * whole[..., index[:, 1]] * whole[..., index[:, 2]]
    if not len(knots):
        return found
    step = knots[1] - knots[0]
    away = ((given.unsqueeze(-1) - knots) / step).abs()
    bumps = (2 - away).clamp(min=0) ** 3 / 6 - 4 * (1 - away).clamp(min=0) ** 3 / 6
    return torch.cat([found, bumps.flatten(-2)], -1)


@final
class ConditionalAffine(Flow):
    r"""A Gaussian, then coordinates relative to others: :math:`y_i = m_i(y_G) + e^{s_i(y_G)} u_i`.

    .. math:: u = m + L x

    Stage by stage, :math:`m_i` and :math:`s_i` are combinations of polynomials and splines of
    coordinates that stand in no later stage; those in no stage are :math:`y_i = u_i`. With a
    constant m and :math:`s_i = y_g / 2` it maps a Gaussian to a funnel, with :math:`m_i = y_g^2` to
    a banana. It trains nothing: its numbers are buffers, saved with its state.

    Args:
        loc: m ``(D,)``.
        factor: L: lower triangular ``(D, D)``, or the diagonal alone ``(D,)``.
        stages: In the order in which they are mapped.

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Cost:
        O(D^2) per row both ways, O(D) with a diagonal, and O(c B) for each stage of c coordinates
        and B features.

    Raises:
        ShapeError: Shapes that do not belong together, a coordinate in two stages, or one that
            follows a later stage.

    Source: the partially non-centred forms of Gorinova et al. 2020, arXiv:1906.03028, with any
    function of the others.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows._conditional_affine import ConditionalAffine, ConditionalStage
        >>> half = torch.tensor([[0.0, 0.5, 0.0, 0.0]])  # of the monomials 1, g, g^2, g^3
        >>> stage = ConditionalStage(
        ...     torch.tensor([0]), torch.tensor([1]), torch.zeros(1), torch.ones(1),
        ...     torch.zeros(0), torch.zeros(1, 4), half)
        >>> funnel = ConditionalAffine(torch.zeros(2), torch.ones(2), [stage])
        >>> y, ladj = funnel(torch.tensor([2.0, 1.0]))
        >>> [round(value, 3) for value in (*y.tolist(), ladj.item())]
        [2.0, 2.718, 1.0]
    """

    inverse_kind = "exact"

    def __init__(self, loc: Tensor, factor: Tensor, stages: Sequence[ConditionalStage]) -> None:
        dim = len(loc)
        own = [place for stage in stages for place in stage.own.tolist()]
        roots = [place for place in range(dim) if place not in set(own)]
        known, fine = list(roots), factor.shape in ((dim,), (dim, dim))
        for stage in stages:
            fine = fine and stage.fits() and set(stage.given.tolist()) <= set(known)
            known += stage.own.tolist()
        if sorted(known) != list(range(dim)) or not fine:
            raise ShapeError(
                "ConditionalAffine needs loc (D,), factor (D,) or (D, D), and stages in which each "
                f"coordinate stands once at most and follows earlier ones; got {tuple(loc.shape)}, "
                f"{tuple(factor.shape)} and stages of {[stage.own.tolist() for stage in stages]}."
            )
        super().__init__(dim)
        self.register_buffer("loc", loc)
        self.register_buffer("factor", factor)
        self.loc: Tensor
        self.factor: Tensor
        at = loc.device
        self.register_buffer("roots", torch.tensor(roots, device=at).long(), persistent=False)
        self.register_buffer("back", torch.tensor(known, device=at).argsort(), persistent=False)
        self.roots: Tensor
        self.back: Tensor
        for number, stage in enumerate(stages):
            for name, value in vars(stage).items():
                self.register_buffer(f"{name}_{number}", value)
            places = [known.index(place) for place in stage.given.tolist()]
            index = torch.tensor(places, device=at)
            self.register_buffer(f"among_{number}", index, persistent=False)
        self._count = len(stages)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], like: Tensor) -> ConditionalAffine:
        """Make a map of the tensors that its ``state_dict`` has.

        Raises:
            ShapeError: They are no such map of vectors like ``like (D,)``.
            KeyError: One is missing.
        """
        count = sum(name.startswith("own_") for name in state)
        stages = [_stage_of(state, number).to(like) for number in range(count)]
        made = cls(state["loc"].to(like), state["factor"].to(like), stages)
        if made.dim != len(like):
            raise ShapeError(
                f"A map of {made.dim} coordinates does not fit a vector of {len(like)}. Save the "
                "fit again."
            )
        return made

    @property
    def stages(self) -> list[ConditionalStage]:
        """The stages, of the buffers as they are."""
        buffers = dict(self.named_buffers())
        return [_stage_of(buffers, number) for number in range(self._count)]

    def enter(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, context = super().enter(x, context)
        if x.dtype != self.loc.dtype:
            raise ShapeError(
                f"ConditionalAffine(dim={self.dim}) has numbers of {self.loc.dtype}; got a point "
                f"of {x.dtype}. Convert the point with .to(dtype), or the flow with .double()."
            )
        return x, context

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, _ = self.enter(x, context)
        full = self.factor.dim() == 2
        u = self.loc + (x @ self.factor.mT if full else x * self.factor)
        diagonal = self.factor.diagonal() if full else self.factor
        total = diagonal.log().sum().expand(x.shape[:-1])
        y = u[..., self.roots]
        for number, stage in enumerate(self.stages):
            loc, log_scale = _moments(stage, y[..., self.get_buffer(f"among_{number}")])
            y = torch.cat([y, loc + log_scale.exp() * u[..., stage.own]], -1)
            total = total + log_scale.sum(-1)
        return y[..., self.back], total

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, _ = self.enter(y, context)
        full = self.factor.dim() == 2
        diagonal = self.factor.diagonal() if full else self.factor
        total = -diagonal.log().sum().expand(y.shape[:-1])
        parts = [y[..., self.roots]]
        for stage in self.stages:
            loc, log_scale = _moments(stage, y[..., stage.given])
            parts.append((y[..., stage.own] - loc) * (-log_scale).exp())
            total = total - log_scale.sum(-1)
        away = torch.cat(parts, -1)[..., self.back] - self.loc
        if full:
            away = away.unsqueeze(-1)
            x = torch.linalg.solve_triangular(self.factor, away, upper=False).squeeze(-1)
        else:
            x = away / self.factor
        return x, total


def _moments(stage: ConditionalStage, given: Tensor) -> tuple[Tensor, Tensor]:
    """Return locations and log-scales ``(*b, c)`` at given coordinates ``(*b, p)``."""
    found = features((given - stage.centre) / stage.width, stage.knots)
    most = CONDITIONAL_AFFINE.log_scale
    return found @ stage.means.mT, (found @ stage.log_scales.mT).clamp(-most, most)


def _stage_of(state: Mapping[str, Tensor], number: int) -> ConditionalStage:
    """Make a stage of the tensors in a state."""
    names = ConditionalStage.__dataclass_fields__
    return ConditionalStage(**{name: state[f"{name}_{number}"] for name in names})
