"""Label switching: latents that a posterior lets change places, as a mixture's components do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._gaussian_vi.density_paths import valleys
from pyro_nfvi._gaussian_vi.mode_assignment import assign
from pyro_nfvi._gaussian_vi.recipe import MODE_SEARCH
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._pyro_model.constraints import bijection
from pyro_nfvi._pyro_model.latent_space import LatentSite, LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.infer._recipe import LABEL_SWITCHING


class Scored(Protocol):
    """A density of points of the latent space."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Score points ``(*b, D)``: ``(*b,)`` in nats."""
        ...


@dataclass(frozen=True)
class Family:
    """Axes whose entries may change places together.

    Attributes:
        length: Entries K of each.
        axes: Sites, and the axis of each from the left.
        flipped: Sites whose entry may change its sign, all together, each entry for itself.
    """

    length: int
    axes: tuple[tuple[str, int], ...]
    flipped: tuple[str, ...] = ()

    @property
    def order(self) -> int:
        """Number of the relabellings: K!, times 2^K where entries flip."""
        return math.factorial(self.length) * (2**self.length if self.flipped else 1)

    @property
    def names(self) -> tuple[str, ...]:
        """Sites that take part."""
        return tuple(dict.fromkeys(name for name, _ in self.axes))


@dataclass(frozen=True, eq=False)
class Relabelling:
    """The group of relabellings under which a posterior stays the same.

    Attributes:
        latent: The latent space.
        families: What may change places; families share no axis.
    """

    latent: LatentSpace
    families: tuple[Family, ...]

    @property
    def order(self) -> int:
        """Number of relabellings, the identity included."""
        return math.prod(family.order for family in self.families)

    @property
    def names(self) -> tuple[str, ...]:
        """Sites that take part."""
        return tuple(dict.fromkeys(n for family in self.families for n in family.names))

    def align(self, anchor: Tensor, points: Tensor) -> Tensor:
        """Move each of the points ``(N, D)`` to its image that is nearest to an anchor ``(D,)``.

        Nearest by the entries that one axis of a site has for a label; exactly so for all sites
        but matrices with two such axes, of which the diagonal counts.

        Cost:
            N assignments of K entries for each family, O(K^3) each.
        """
        for family in self.families:
            theirs, mine = self._parts(points), self._parts(anchor[None])
            plain_all, turned_all = [], []
            for name, moved in _features(family, theirs).items():
                other = _features(family, mine)[name]
                plain = (other.unsqueeze(2) - moved.unsqueeze(1)).square().sum(-1)
                turned = (other.unsqueeze(2) + moved.unsqueeze(1)).square().sum(-1)
                plain_all.append(plain)
                turned_all.append(turned if name in family.flipped else plain)
            plain, turned = torch.stack(plain_all).sum(0), torch.stack(turned_all).sum(0)
            order = assign(torch.minimum(plain, turned))
            sign = (turned < plain).gather(2, order.unsqueeze(-1)).squeeze(-1)
            points = self._moved(points, family, order, sign)
        return points

    def generators(self, point: Tensor) -> Tensor:
        """Return images ``(G, D)`` of a point under exchanges of two labels, and under flips."""
        images = []
        for family in self.families:
            size = family.length
            for one, other in itertools.combinations(range(size), 2):
                order = torch.arange(size)
                order[one], order[other] = other, one
                images.append(self._moved(point[None], family, order[None], None))
            for one in range(size if family.flipped else 0):
                sign = (torch.arange(size) == one)[None]
                images.append(self._moved(point[None], family, torch.arange(size)[None], sign))
        return torch.cat(images)

    # ---------------------------------------------------------------------------- the action

    def _parts(self, z: Tensor) -> dict[str, Tensor]:
        return {site.name: _values(site, z) for site in self.latent.records if _fits(site)}

    def _moved(self, z: Tensor, family: Family, order: Tensor, sign: Tensor | None) -> Tensor:
        """Give label k the entries of ``order[:, k]``, flipped where ``sign (N, K)`` is true."""
        moved = z.clone()
        order = order.to(z.device).expand(len(z), -1)
        for site in self.latent.records:
            axes = [axis for name, axis in family.axes if name == site.name]
            if not axes:
                continue
            value = _values(site, z)
            for axis in axes:
                shape = [len(z)] + [1] * len(site.shape)
                shape[axis + 1] = family.length
                index = order.view(shape).expand_as(value)
                value = value.gather(axis + 1, index)
                if sign is not None and site.name in family.flipped:
                    turn = sign.to(z.device).expand(len(z), -1).view(shape)
                    value = torch.where(turn, -value, value)
            if site.shape != site.unconstrained_shape:
                value = bijection(site.support).inv(value)
            moved[:, site.start : site.stop] = value.reshape(len(z), -1)
        return moved


class UpToLabels:
    r"""A guide's density, of points moved to the image nearest to its draws.

    With :math:`g` the relabelling that moves z, the log density is
    :math:`\log q(gz) + \log|\partial\theta/\partial z|(z) - \log|\partial\theta/\partial z|(gz)`:
    relabelling keeps volumes of the constrained values, and not those of z.

    Args:
        density: The guide's density.
        relabelling: The group.
        anchor: The middle of its draws ``(D,)``.
    """

    def __init__(self, density: Scored, relabelling: Relabelling, anchor: Tensor) -> None:
        self.density, self.relabelling, self.anchor = density, relabelling, anchor

    def log_prob(self, z: Tensor) -> Tensor:
        """Score points ``(N, D)``: ``(N,)`` in nats."""
        moved = self.relabelling.align(self.anchor, z)
        latent = self.relabelling.latent
        return self.density.log_prob(moved) + latent.constrain(z)[1] - latent.constrain(moved)[1]


def count_images(
    log_joint: LogJoint,
    relabelling: Relabelling,
    loc: Tensor,
    most: int,
    budget: Budget = UNLIMITED,
) -> int:
    """Count the images of a mode at ``loc (D,)``, itself included: a valley lies between each two.

    A mode that some relabellings leave where it is has fewer images than there are relabellings: of
    three coordinates that are 4 or -4 each, 48 exchanges and flips make eight.

    Args:
        log_joint: The model.
        relabelling: The group.
        loc: The mode.
        most: Number beyond which the count ends.
        budget: Time; where it is spent before the count ends, all relabellings count.

    Cost:
        At most 21 rows of the model with gradients for each pair of one of ``most`` images and an
        exchange or flip of another one.
    """
    target = Target(log_joint, log_joint.latent.init_loc, budget=budget)
    images = [loc]
    place = 0
    while place < len(images):
        for new in relabelling.generators(images[place]).split(LABEL_SWITCHING.images):
            if budget.over():
                return relabelling.order if len(images) > 1 else 1
            for known in images:
                if len(new):
                    new = new[valleys(target, known, new, MODE_SEARCH.valley)]
            while len(new):
                images.append(new[0])
                if len(images) > most:
                    return len(images)
                new = new[valleys(target, new[0], new, MODE_SEARCH.valley)]
        place += 1
    return len(images)


def count_once(
    log_joint: LogJoint, relabelling: Relabelling, locs: Tensor, budget: Budget = UNLIMITED
) -> int:
    """Count modes at ``locs (N, D)``, of images of each other one.

    Modes for which there is no time left count each for itself.
    """
    target = Target(log_joint, log_joint.latent.init_loc, budget=budget)
    left, count = locs, 0
    while len(left):
        if budget.over():
            return count + len(left)
        apart = valleys(target, left[0], relabelling.align(left[0], left), MODE_SEARCH.valley)
        apart[0] = False
        left, count = left[apart], count + 1
    return count


def find_relabelling(
    log_joint: LogJoint, points: Tensor, budget: Budget = UNLIMITED
) -> Relabelling | None:
    r"""Find exchangeable latents by comparing the density with itself.

    Axes of equal length, of one site or of several, are exchanged together: entries 0 and 1, at
    some points, for every choice of axes. Where :math:`p(\theta, x)` is the same (as a density
    of the constrained values, without the Jacobian), neighbouring entries follow, and then signs.

    Args:
        log_joint: The model.
        points: Points ``(N, D)``, of which the first six that can be scored are taken. They are
            spread as the prior is, and about the origin: around one mode of a mixture, weights of
            one size may seem to change places alone.
        budget: Time; choices of axes for which there is none left are not tried.

    Returns:
        The group of relabellings, or the part of it that was found in time; None where there is
        none.

    Cost:
        Three runs of the model for each choice of axes: at most 63 for each length.
    """
    latent = log_joint.latent
    if log_joint.subsampled:
        return None
    points = points.detach().double()
    with torch.no_grad():
        ok = torch.isfinite(log_joint(points.to(latent.init_loc), {}))
    points = points[ok][: LABEL_SWITCHING.points]
    if len(points) < 2:
        return None
    points = _with_far_points(log_joint, points)
    heights = _heights(log_joint, points)
    if heights is None:
        return None
    found: list[Family] = []
    sites = {site.name: site for site in latent.records if _fits(site)}
    taken: set[tuple[int, tuple[str, int]]] = set()
    for family in _choices(sites):
        if budget.over():
            break
        members = {(family.length, axis) for axis in family.axes}
        if taken & members or not _exchanges(log_joint, family, points, heights):
            continue
        found.append(_signed(log_joint, family, sites, points, heights, budget))
        taken |= members
    return Relabelling(latent, tuple(found)) if found else None


def _choices(sites: dict[str, LatentSite]) -> Iterator[Family]:
    """Axes that may change places together: of each length, few before many."""
    for size in sorted({size for site in sites.values() for size in site.shape}):
        if not 2 <= size <= LABEL_SWITCHING.longest_axis:
            continue
        axes = [(n, i) for n, s in sites.items() for i, k in enumerate(s.shape) if k == size]
        for count in range(1, len(axes) + 1 if len(axes) <= LABEL_SWITCHING.axes else 2):
            for chosen in itertools.combinations(axes, count):
                yield Family(size, chosen)


def _with_far_points(log_joint: LogJoint, points: Tensor) -> Tensor:
    """Add points whose real sites lie beside all others, each site as a whole.

    Where components sit among the data, those of exactly equal size let their weights change places
    alone. From one side of the data, one component is the nearest to all of them.
    """
    aside = points.new_tensor(LABEL_SWITCHING.aside).unsqueeze(-1)
    far = points[torch.arange(len(aside), device=points.device) % len(points)].clone()
    for site in log_joint.latent.records:
        if site.shape and site.shape == site.unconstrained_shape and _is_real(site):
            part = points[:, site.start : site.stop]
            reach = 1 + float(part.abs().max())
            far[:, site.start : site.stop] += reach * aside
    ok = [_heights(log_joint, one[None]) is not None for one in far]
    return torch.cat([points, far[torch.tensor(ok, device=far.device)]])


def _exchanges(log_joint: LogJoint, family: Family, points: Tensor, heights: Tensor) -> bool:
    """Tell whether neighbouring entries may change places; the first two are tried alone."""
    group = Relabelling(log_joint.latent, (family,))
    for first, last in ((0, 1), (1, family.length - 1)):
        moved = []
        for place in range(first, last):
            order = torch.arange(family.length)
            order[place], order[place + 1] = place + 1, place
            moved.append(group._moved(points, family, order[None], None))
        if moved and not _same(log_joint, moved, heights):
            return False
    return True


def _signed(
    log_joint: LogJoint,
    family: Family,
    sites: dict[str, LatentSite],
    points: Tensor,
    heights: Tensor,
    budget: Budget,
) -> Family:
    """Return the family with the most sites that may change signs together, if any may."""
    real = [n for n in family.names if _is_real(sites[n])]
    real = [n for n in real if sum(name == n for name, _ in family.axes) == 1][
        : LABEL_SWITCHING.signed_sites
    ]
    first = (torch.arange(family.length) == 0)[None]
    plain = torch.arange(family.length)[None]
    for count in range(len(real), 0, -1):
        for names in itertools.combinations(real, count):
            if budget.over():
                return family
            signed = Family(family.length, family.axes, names)
            group = Relabelling(log_joint.latent, (signed,))
            if _same(log_joint, [group._moved(points, signed, plain, first)], heights):
                return signed
    return family


def _same(log_joint: LogJoint, moved: Sequence[Tensor], heights: Tensor) -> bool:
    found = _heights(log_joint, torch.cat(list(moved)))
    if found is None:
        return False
    apart = (found.view(len(moved), -1) - heights).abs()
    given = LABEL_SWITCHING
    known = {torch.float32: given.single, torch.float64: given.double}
    tolerance = known.get(found.dtype, given.half)
    return bool((apart <= tolerance * (1 + heights.abs().double())).all())


def _heights(log_joint: LogJoint, z: Tensor) -> Tensor | None:
    """Log joint of the constrained values, in nats; None where it is not finite.

    In float64 where the model takes it: far from the data, numbers are so large that single
    precision does not see what an exchange changes.
    """
    for points in (z.double(), z.to(log_joint.latent.init_loc)):
        try:
            with torch.no_grad():
                found = log_joint(points, {}) - log_joint.latent.constrain(points)[1]
        except (RuntimeError, ValueError):  # a model that cannot be run there, or takes no float64
            continue
        if bool(torch.isfinite(found).all()):
            return found
    return None


def _fits(site: LatentSite) -> bool:
    """Tell whether entries of a site can be exchanged: it has axes, free or of a simplex."""
    return bool(site.shape) and (site.shape == site.unconstrained_shape or _is_simplex(site))


def _is_simplex(site: LatentSite) -> bool:
    support = site.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.simplex


def _is_real(site: LatentSite) -> bool:
    support = site.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def _values(site: LatentSite, z: Tensor) -> Tensor:
    """Return the exchanged numbers ``(N, *shape)``: unconstrained, or the weights of a simplex."""
    part = z[:, site.start : site.stop]
    if site.shape == site.unconstrained_shape:
        return part.reshape(len(z), *site.shape)
    return bijection(site.support)(part.reshape(len(z), *site.unconstrained_shape))


def _features(family: Family, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Numbers of each label ``(N, K, *)``, by which labels are distinguished."""
    found = {}
    for name in family.names:
        value = values[name]
        axes = [axis for other, axis in family.axes if other == name]
        if len(axes) == 2:
            found[name] = value.diagonal(dim1=axes[0] + 1, dim2=axes[1] + 1).movedim(-1, 1)
        else:
            found[name] = value.movedim(axes[0] + 1, 1)
        found[name] = found[name].reshape(len(value), family.length, -1)
    return found
