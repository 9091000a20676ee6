"""The map of a standard normal to a product of Gaussian mixtures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from pyro_nfvi._math import log_normal_cdf, standard_normal_log_prob
from pyro_nfvi._typing import Contexts, Image, Points
from pyro_nfvi.errors import ShapeError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._recipe import MIXTURE_MAP


@dataclass(frozen=True, eq=False)
class GlobalSlopes:
    """Linear dependence of mixtures on p global coordinates.

    Attributes:
        positions: Where the globals stand in the vector ``(p,)``.
        centre: Values of the globals at which logits and means are those given ``(p,)``.
        logits: Slopes of the logits ``(B, K, p)``, in nats.
        locs: Slopes of the means ``(B, K, d, p)``.
    """

    positions: Tensor
    centre: Tensor
    logits: Tensor
    locs: Tensor


@dataclass(frozen=True, eq=False)
class MixtureBlocks:
    r"""B blocks of d coordinates each, every one with a mixture of K Gaussians of its own.

    Attributes:
        positions: Where each block's coordinates stand in the vector ``(B, d)``.
        logits: Log weights ``(B, K)`` in nats, up to a constant.
        locs: Means ``(B, K, d)``.
        factors: Lower triangular L of each covariance :math:`LL^\top`, ``(B, K, d, d)``.
        slopes: How logits and means follow globals; None where they do not.
    """

    positions: Tensor
    logits: Tensor
    locs: Tensor
    factors: Tensor
    slopes: GlobalSlopes | None = None

    def fits(self) -> bool:
        """Tell whether the shapes belong together."""
        if self.positions.dim() != 2 or self.logits.dim() != 2:
            return False
        (blocks, size), count = self.positions.shape, self.logits.shape[-1]
        alone = (
            self.logits.shape == (blocks, count)
            and self.locs.shape == (blocks, count, size)
            and self.factors.shape == (blocks, count, size, size)
        )
        if self.slopes is None:
            return alone
        given = self.slopes
        num = len(given.positions)
        return (
            alone
            and given.centre.shape == (num,)
            and given.logits.shape == (blocks, count, num)
            and given.locs.shape == (blocks, count, size, num)
        )

    def to(self, like: Tensor) -> MixtureBlocks:
        """Return the same numbers with dtype and device of a tensor."""
        given = self.slopes
        if given is not None:
            given = GlobalSlopes(
                given.positions.to(like.device),
                given.centre.to(like),
                given.logits.to(like),
                given.locs.to(like),
            )
        return MixtureBlocks(
            self.positions.to(like.device),
            self.logits.to(like),
            self.locs.to(like),
            self.factors.to(like),
            given,
        )


@final
class MixtureMap(Flow):
    r"""Push standard normal noise to a product of Gaussian mixtures, block by block.

    .. math:: q(y) = \prod_b \sum_k w_{bk}\, N(y_b; m_{bk}, L_{bk} L_{bk}^\top)

    Within a block the coordinates follow each other: the conditional distribution of the i-th given
    those before it is a mixture again, with distribution function :math:`F_i`, and

    .. math:: F_i(y_i \mid y_{<i}) = \Phi(x_i),

    the triangular map of Rosenblatt. Logits and means of later blocks may follow coordinates of
    earlier ones, the globals, linearly: the blocks are then independent given these. Densities are
    those of the mixtures, exactly, however well the equation is solved. Noise that is a little
    different changes the component where :math:`\Phi(x_1)` passes a sum of weights, so that chains
    and flows in front of the map can go from mode to mode. It trains nothing: its numbers are
    buffers, saved with its state.

    Args:
        blocks: Mixtures; each coordinate of the vector is in one block. Those that follow globals
            come after the blocks of these.

    Shape:
        ``x (*b, D)`` -> ``y (*b, D)``, ``ladj (*b,)`` in nats.

    Units:
        The arithmetic is in float64.

    Cost:
        O(K d^2) for each block and row; forward, d times some five steps of Newton's method, with
        K distribution functions each.

    Raises:
        ShapeError: Shapes that do not belong together, or coordinates that are in no block or in
            two.

    Source: Rosenblatt 1952, doi 10.1214/aoms/1177729394.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows._mixture_map import MixtureBlocks, MixtureMap
        >>> wells = MixtureBlocks(
        ...     torch.tensor([[0], [1]]), torch.zeros(2, 2),
        ...     torch.tensor([[[-4.0], [4.0]]] * 2), torch.ones(2, 2, 1, 1))
        >>> flow = MixtureMap([wells])
        >>> y, _ = flow(torch.tensor([-0.7, 0.7]))  # the quartiles, nearly
        >>> y.round().tolist()
        [-4.0, 4.0]
    """

    inverse_kind = "exact"

    def __init__(self, blocks: Sequence[MixtureBlocks]) -> None:
        taken: list[int] = []
        fine = all(group.fits() for group in blocks)
        for group in blocks:
            given = [] if group.slopes is None else group.slopes.positions.tolist()
            fine = fine and set(given) <= set(taken)
            taken += group.positions.flatten().tolist()
        if sorted(taken) != list(range(len(taken))) or not fine:
            raise ShapeError(
                "MixtureMap needs blocks in which each of D coordinates stands once, with logits "
                "(B, K), locs (B, K, d) and factors (B, K, d, d), and slopes by coordinates of "
                "earlier blocks; got blocks of shapes "
                f"{[tuple(group.locs.shape) for group in blocks]} over {len(taken)} positions."
            )
        super().__init__(len(taken))
        for place, group in enumerate(blocks):
            for name, value in _parts(group).items():
                self.register_buffer(f"{name}_{place}", value)
            if group.slopes is not None:  # where the globals are among the images before
                known = [taken.index(position) for position in group.slopes.positions.tolist()]
                index = group.slopes.positions.new_tensor(known)
                self.register_buffer(f"known_{place}", index, persistent=False)
        self._count = len(blocks)
        self.register_buffer(
            "back", torch.as_tensor(taken, device=blocks[0].positions.device).argsort(),
            persistent=False,
        )  # fmt: skip
        self.back: Tensor

    @classmethod
    def from_state(cls, state: dict[str, Tensor], like: Tensor) -> MixtureMap:
        """Make a map of the tensors that its ``state_dict`` has.

        Raises:
            ShapeError: They are no such map of vectors like ``like (D,)``.
            KeyError: One is missing.
        """
        count = sum(name.startswith("positions_") for name in state)
        groups = [_group_of(state, place).to(like) for place in range(count)]
        made = cls(groups)
        if made.dim != len(like):
            raise ShapeError(
                f"Mixtures over {made.dim} coordinates do not fit a vector of {len(like)}. Save "
                "the fit again."
            )
        return made

    @property
    def blocks(self) -> list[MixtureBlocks]:
        """The mixtures, of the buffers as they are."""
        buffers = {name: value for name, value in self.named_buffers() if name != "back"}
        return [_group_of(buffers, place) for place in range(self._count)]

    @property
    def loc(self) -> Tensor:
        """The mean ``(D,)``, with globals at their centre."""
        parts = []
        for group in self.blocks:
            weights = torch.softmax(group.logits, -1)
            parts.append((weights.unsqueeze(-1) * group.locs).sum(-2).flatten())
        return torch.cat(parts)[self.back]

    def enter(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, context = super().enter(x, context)
        own = self.get_buffer("locs_0").dtype
        if x.dtype != own:
            raise ShapeError(
                f"MixtureMap(dim={self.dim}) has numbers of {own}; got a point of {x.dtype}. "
                "Convert the point with .to(dtype), or the flow with .double()."
            )
        return x, context

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, _ = self.enter(x, context)
        images: list[Tensor] = []
        total = x.new_zeros(x.shape[:-1], dtype=torch.float64)
        for place, group in enumerate(self.blocks):
            given = None
            if group.slopes is not None:
                given = torch.cat(images, -1)[..., self.get_buffer(f"known_{place}")]
            image, ladj = _pushed(group, x[..., group.positions].double(), given)
            images.append(image.flatten(-2))
            total = total + ladj
        return torch.cat(images, -1)[..., self.back].to(x), total.to(x)

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, _ = self.enter(y, context)
        images, total = [], y.new_zeros(y.shape[:-1], dtype=torch.float64)
        for group in self.blocks:
            given = None if group.slopes is None else y[..., group.slopes.positions].double()
            image, ladj = _pulled(group, y[..., group.positions].double(), given)
            images.append(image.flatten(-2))
            total = total + ladj
        return torch.cat(images, -1)[..., self.back].to(y), total.to(y)


def _parts(group: MixtureBlocks) -> dict[str, Tensor]:
    """Return the tensors of a group by name."""
    parts = {
        "positions": group.positions,
        "logits": group.logits,
        "locs": group.locs,
        "factors": group.factors,
    }
    given = group.slopes
    if given is not None:
        parts |= {
            "given": given.positions,
            "centre": given.centre,
            "logit_slopes": given.logits,
            "loc_slopes": given.locs,
        }
    return parts


def _group_of(state: Mapping[str, Tensor], place: int) -> MixtureBlocks:
    """Make a group of the tensors in a state."""

    def tensor(name: str) -> Tensor:
        return state[f"{name}_{place}"]

    slopes = None
    if f"given_{place}" in state:
        slopes = GlobalSlopes(
            tensor("given"), tensor("centre"), tensor("logit_slopes"), tensor("loc_slopes")
        )
    return MixtureBlocks(
        tensor("positions"), tensor("logits"), tensor("locs"), tensor("factors"), slopes
    )


class _Conditionals:
    """Conditional mixtures of the coordinates of each block, one after the other."""

    def __init__(self, group: MixtureBlocks, given: Tensor | None) -> None:
        locs, logits = group.locs.double(), group.logits.double()
        if group.slopes is not None and given is not None:
            away = given - group.slopes.centre.double()
            locs = locs + torch.einsum("...p,bkdp->...bkd", away, group.slopes.locs.double())
            logits = logits + torch.einsum("...p,bkp->...bk", away, group.slopes.logits.double())
        self.locs, self.factors = locs, group.factors.double()
        #: Log weights given the coordinates before this one ``(*b, B, K)``.
        self.log_weights = torch.log_softmax(logits, -1)
        self._noise: list[Tensor] = []

    def at(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights, means and sds ``(*b, B, K)`` of the i-th coordinates."""
        loc, scale = self.locs[..., i], self.factors[..., i, i]
        for j, noise in enumerate(self._noise):
            loc = loc + self.factors[..., i, j] * noise
        return self.log_weights, loc, scale

    def take(self, i: int, y: Tensor) -> Tensor:
        """Go on with the i-th coordinates ``y (*b, B)``; return their log density."""
        log_weights, loc, scale = self.at(i)
        noise = (y.unsqueeze(-1) - loc) / scale
        each = log_weights + standard_normal_log_prob(noise) - scale.log()
        log_density = torch.logsumexp(each, -1)
        self.log_weights = each - log_density.unsqueeze(-1)
        self._noise.append(noise)
        return log_density


def _pushed(group: MixtureBlocks, x: Tensor, follows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Images ``(*b, B, d)`` of noise, and the sum of ladjs ``(*b,)``."""
    parts, given = [], _Conditionals(group, follows)
    total = x.new_zeros(x.shape[:-2])
    for i in range(x.shape[-1]):
        noise = x[..., i]
        log_weights, loc, scale = given.at(i)
        if group.logits.shape[-1] == 1:
            y = loc[..., 0] + scale[..., 0] * noise
        else:
            y = _point_of(noise, log_weights, loc, scale)
        total = total + (standard_normal_log_prob(noise) - given.take(i, y)).sum(-1)
        parts.append(y)
    return torch.stack(parts, -1), total


def _pulled(group: MixtureBlocks, y: Tensor, follows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Noise ``(*b, B, d)`` of points, and the sum of ladjs ``(*b,)``."""
    parts, given = [], _Conditionals(group, follows)
    total = y.new_zeros(y.shape[:-2])
    for i in range(y.shape[-1]):
        point = y[..., i]
        log_weights, loc, scale = given.at(i)
        if group.logits.shape[-1] == 1:
            noise = (point - loc[..., 0]) / scale[..., 0]
        else:
            noise = _noise_of(point, log_weights, loc, scale)
        total = total + (given.take(i, point) - standard_normal_log_prob(noise)).sum(-1)
        parts.append(noise)
    return torch.stack(parts, -1), total


def _log_tails(y: Tensor, log_weights: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of distribution function and survival function of a mixture at ``y``."""
    t = (y.unsqueeze(-1) - loc) / scale
    lower = torch.logsumexp(log_weights + log_normal_cdf(t), -1)
    return lower, torch.logsumexp(log_weights + log_normal_cdf(-t), -1)


def _log_density(y: Tensor, log_weights: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    t = (y.unsqueeze(-1) - loc) / scale
    return torch.logsumexp(log_weights + standard_normal_log_prob(t) - scale.log(), -1)


def _noise_of(y: Tensor, log_weights: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Solve for the noise in closed form, in the tail that is smaller."""
    lower, upper = _log_tails(y, log_weights, loc, scale)
    below = lower < upper
    tail = torch.where(below, lower, upper)

    def step(x: Tensor) -> Tensor:
        log_cdf = log_normal_cdf(x)
        return (tail - log_cdf) * _slope(log_cdf - standard_normal_log_prob(x))

    noise = _with_derivatives(torch.ops.pyro_nfvi.normal_quantile(tail.detach()), step)
    return torch.where(below, noise, -noise)


def _point_of(noise: Tensor, log_weights: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Solve for the point."""
    shape = torch.broadcast_shapes(noise.shape, log_weights.shape[:-1])
    full = (*shape, log_weights.shape[-1])
    found = torch.ops.pyro_nfvi.mixture_quantile(
        noise.detach().expand(shape),
        log_weights.detach().expand(full),
        loc.detach().expand(full),
        scale.detach().expand(full),
    )
    below, wanted = noise < 0, log_normal_cdf(-noise.abs())

    def step(y: Tensor) -> Tensor:
        lower, upper = _log_tails(y, log_weights, loc, scale)
        tail = torch.where(below, lower, upper)
        size = (wanted - tail) * _slope(tail - _log_density(y, log_weights, loc, scale))
        return torch.where(below, size, -size)

    return _with_derivatives(found, step)


def _slope(log_slope: Tensor) -> Tensor:
    return log_slope.clamp_max(MIXTURE_MAP.log_slope).exp()


def _with_derivatives(root: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
    """Give a root first and second derivatives: those of two steps of Newton's method from it."""
    if torch.is_grad_enabled():
        for _ in range(2):
            moved = step(root)
            root = root + (moved - moved.detach())
    return root


def _normal_quantile(log_tail: Tensor) -> Tensor:
    """Return the normal quantile of the exponentials of numbers up to ``-log 2``."""
    near = log_tail.clamp_min(MIXTURE_MAP.far)
    found = torch.special.ndtri(near.exp())
    far = log_tail < MIXTURE_MAP.far
    if not bool(far.any()):
        return found
    x = -(-2 * log_tail).sqrt()
    for _ in range(4):  # Newton's method, whose error is squared from 1e-2 on
        tail = log_normal_cdf(x)
        x = x - (tail - log_tail) * (tail - standard_normal_log_prob(x)).exp()
    return torch.where(far, x, found)


def _quantile(noise: Tensor, log_weights: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Solve ``F(y) = Phi(noise)`` by Newton's method between bounds, rows that are done left out.

    Each component's own quantile lies at ``loc + scale * noise``; that of the mixture lies between
    the lowest and the highest of these.
    """
    count = log_weights.shape[-1]
    e = noise.reshape(-1)
    log_w, m, s = (one.reshape(-1, count) for one in (log_weights, loc, scale))
    own = m + s * e.unsqueeze(-1)
    low, high = own.amin(-1), own.amax(-1)
    y = _first_guess(e, log_w, m, s).clamp(low, high)
    found = y.clone()
    left = torch.arange(len(e), device=e.device)
    last = 4 * (high - low)
    sign = torch.where(e < 0, 1.0, -1.0).to(e)
    wanted = log_normal_cdf(-e.abs())
    for _ in range(MIXTURE_MAP.most_steps):
        t = (y.unsqueeze(-1) - m) / s
        tail = torch.logsumexp(log_w + log_normal_cdf(sign.unsqueeze(-1) * t), -1)
        log_density = torch.logsumexp(log_w + standard_normal_log_prob(t) - s.log(), -1)
        rest = tail - wanted
        high = torch.where(sign * rest > 0, y, high)
        low = torch.where(sign * rest < 0, y, low)
        step = sign * rest * (tail - log_density).exp()
        tried = y - step
        # Halved where Newton's method leaves the bounds, or does not halve its own steps.
        bad = ~((tried > low) & (tried < high)) | (step.abs() > 0.5 * last)
        tried = torch.where(bad, 0.5 * (low + high), tried)
        narrow = (high - low) <= MIXTURE_MAP.tolerance * (1 + y.abs())
        done = (rest.abs() <= MIXTURE_MAP.tolerance * (1 + wanted.abs())) | narrow
        found[left] = torch.where(done, y, tried)
        on = ~done
        if not bool(on.any()):
            break
        last = (tried - y).abs()[on]
        left, y, low, high = left[on], tried[on], low[on], high[on]
        log_w, m, s, sign, wanted = log_w[on], m[on], s[on], sign[on], wanted[on]
    return found.view(noise.shape)


def _first_guess(e: Tensor, log_weights: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Return the quantile of the component that the cumulated weights choose, at what is left."""
    order = loc.argsort(-1)
    weights = log_weights.gather(-1, order).exp()
    sums = weights.cumsum(-1)
    p = torch.special.ndtr(e).unsqueeze(-1)
    place = (sums < p).sum(-1, keepdim=True).clamp_max(order.shape[-1] - 1)
    weight = weights.gather(-1, place)
    part = (p - sums.gather(-1, place) + weight) / weight.clamp_min(1e-300)
    chosen = order.gather(-1, place)
    local = torch.special.ndtri(part.clamp(1e-15, 1 - 1e-15))
    guess = loc.gather(-1, chosen) + scale.gather(-1, chosen) * local
    return guess.squeeze(-1)


# Operations of their own, since rows end at different steps, which no recorded graph can hold. Not
# torch.library.custom_op, whose first call imports the whole compiler of torch.
_LIBRARY = torch.library.Library("pyro_nfvi", "FRAGMENT")
_LIBRARY.define(
    "mixture_quantile(Tensor noise, Tensor log_weights, Tensor loc, Tensor scale) -> Tensor"
)
_LIBRARY.impl("mixture_quantile", _quantile, "CPU")
_LIBRARY.impl("mixture_quantile", _quantile, "CUDA")
_LIBRARY.impl("mixture_quantile", lambda noise, *_: torch.empty_like(noise), "Meta")
_LIBRARY.define("normal_quantile(Tensor log_tail) -> Tensor")
_LIBRARY.impl("normal_quantile", _normal_quantile, "CPU")
_LIBRARY.impl("normal_quantile", _normal_quantile, "CUDA")
_LIBRARY.impl("normal_quantile", lambda log_tail: torch.empty_like(log_tail), "Meta")


def _rowwise(op: str) -> Callable[..., tuple[Tensor, int]]:
    """Return the rule of an operation of independent rows under vmap: one more axis of rows."""

    def rule(info: Any, dims: tuple[int | None, ...], *args: Tensor) -> tuple[Tensor, int]:
        moved = [
            arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            for arg, dim in zip(args, dims, strict=True)
        ]
        return getattr(torch.ops.pyro_nfvi, op)(*moved), 0

    return rule


_register_vmap = getattr(torch.library, "register_vmap", None)  # since PyTorch 2.5
if _register_vmap is not None:
    for _name in ("mixture_quantile", "normal_quantile"):
        _register_vmap(f"pyro_nfvi::{_name}", _rowwise(_name), lib=_LIBRARY)
