"""The start of a guide of rows: a Gaussian of the globals, then one of each row given these."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._budget import Budget
from pyro_nfvi._gaussian_vi.block_arrow import BlockArrowGaussian, fit_block_arrow
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.plate_layout import PlateLayout
from pyro_nfvi._pyro_model.subsampling import cover
from pyro_nfvi._train.distributed_density import DistributedDensity
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import ModelError, OptionError
from pyro_nfvi.flows._block_arrow import ArrowBlock, ArrowFactor, BlockArrow
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._recipe import ROW_START


@dataclass(frozen=True, eq=False)
class RowStart:
    """Means and sds of all latents to start from ``(D,)``, and a line for the report.

    Where all rows were seen at once, ``arrow`` is a factor of the whole covariance, and ``gap``
    what its bound is below the evidence, in nats to second order.
    """

    loc: Tensor
    scale: Tensor
    note: str
    arrow: ArrowFactor | None = None
    gap: float = math.inf


def start_rows(
    problem: Problem,
    guide: AutoPlateFlow,
    budget: Budget,
    tick: Callable[[int], object] = lambda _: None,
) -> RowStart | None:
    r"""Find a diagonal Gaussian near the posterior, in a few passes over the rows.

    A block-arrow Gaussian of globals and rows; where the plate does not subsample, that is all.
    Else first one of each of some mini-batches, as data of their own with a share of the prior; the
    globals start at the mean of these Gaussians, with the precision of their product, and each row
    takes natural-gradient steps on its own, in one batch after the other:

    .. math::
        \frac{1}{s^2} \leftarrow \frac{1 - \rho}{s^2} - \rho\, \mathbb{E}[\partial^2 \log p], \qquad
        m \leftarrow m + \rho\, s^2\, \mathbb{E}[\partial \log p]

    with the curvature from :math:`\mathbb{E}[\varepsilon\, \partial \log p] / s`. From there a
    block arrow of all rows, whose log joint is summed batch by batch, if one plate subsamples.

    Args:
        problem: The posterior, at the layout of a mini-batch.
        guide: The guide.
        budget: Rows for which there is no time start where the guide starts.
        tick: Called with the number of rows done.

    Raises:
        ModelError: The model is not finite at a row, which is named.

    Returns:
        None where the density cannot be evaluated around the start.

    Source: Khan and Rue 2021, arXiv:2107.04562, section 3 (variational online Newton); the product
    of posteriors of parts of the data, Scott et al. 2016, Bayes and Big Data, section 3.
    """
    log_joint, layout = problem.log_joint, guide.layout
    noise = problem.stream("row start")
    loc = layout.space.init_loc.double().clone()
    scale = torch.full_like(loc, ROW_START.scale)
    parts: list[_Part] = []
    batches = max((size / count for size, count in log_joint.subsampled.values()), default=1.0)
    for _ in range(min(ROW_START.batches, math.ceil(batches))):
        if parts and budget.over():
            break
        part = _fit_part(log_joint, layout, noise, budget)
        if part is None:
            return None
        parts.append(part)
        loc[part.place] = part.found.loc.to(loc)
        scale[part.place] = part.found.factor.precisions.rsqrt().to(loc)  # given all others
    found = parts[0].found
    for block in parts[0].layout.blocks:
        if not block.plates:
            own = block.positions.reshape(-1)
            means = torch.stack([part.found.loc[own] for part in parts])
            spreads = torch.stack([part.found.factor.variances[own] for part in parts])
            place = parts[0].place[own]
            loc[place] = means.mean(0).to(loc)
            scale[place] = (spreads.mean(0) / parts[0].weight).sqrt().to(loc)
    words = f"ELBO {found.bound:.2f} ± {found.bound_se:.2f} nats"
    if not log_joint.subsampled:
        note = f"started at a block-arrow Gaussian: {words}"
        return RowStart(loc, scale, note, found.factor, found.gap)
    count = "one mini-batch" if len(parts) == 1 else f"each of {len(parts)} mini-batches"
    done = _sweep(problem, layout, loc, scale, noise, budget, tick)
    arrow = _arrow(layout) if guide.takes_arrow and done == 1 else None
    whole = None if arrow is None or budget.over() else AllRows.of(log_joint, layout)
    if arrow is not None and whole is not None:
        target = Target(whole, layout.space.init_loc, budget=budget)
        entire = fit_block_arrow(target, [(loc, scale)], arrow, generator=noise)
        if entire is not None and math.isfinite(entire.bound):
            words = f"ELBO {entire.bound:.2f} ± {entire.bound_se:.2f} nats"
            note = f"started at a block-arrow Gaussian of all rows: {words}"
            return RowStart(
                entire.loc, entire.factor.variances.sqrt(), note, entire.factor, entire.gap
            )
    words = "each row" if done == 1 else f"{100 * done:.0f} % of the rows"
    note = f"started at the mean of block-arrow Gaussians of {count}, then at a Gaussian of {words}"
    return RowStart(loc, scale, note)


@dataclass(frozen=True, eq=False)
class AllRows:
    """The log joint of all rows, summed over mini-batches that count each row once.

    Attributes:
        log_joint: The log joint of a mini-batch.
        batches: For each mini-batch its rows by plate, the places of its latents among those of
            all rows ``(D_B,)``, and its weight; the weights sum to one.
    """

    log_joint: LogJoint
    batches: tuple[tuple[TensorDict, Tensor, float], ...]

    @classmethod
    def of(cls, log_joint: LogJoint, layout: PlateLayout) -> AllRows | None:
        """Lay mini-batches out; None unless one plate subsamples, and latents stand in it.

        None as well where the model is not compiled: some thousand passes over all rows by Python
        take longer than a training.
        """
        if len(log_joint.subsampled) != 1 or not log_joint.subsampled.keys() <= layout.sizes.keys():
            return None
        compiled = log_joint.compiled
        if isinstance(compiled, DistributedDensity):
            compiled = compiled.alone
        if compiled is None:
            return None
        ((plate, (size, count)),) = log_joint.subsampled.items()
        index, weights = cover(size, count)
        device = layout.space.init_loc.device
        batches = (
            ({plate: rows}, layout.index({plate: rows}).to(device), float(weight))
            for rows, weight in zip(index, weights)
        )
        return cls(log_joint, tuple(batches))

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density ``(N,)`` of points ``(N, D)`` and its gradient, float64."""
        total = z.new_zeros(len(z), dtype=torch.float64)
        gradient = torch.zeros_like(z, dtype=torch.float64)
        for rows, place, weight in self.batches:
            log_p, slope = self.log_joint.value_and_grad(z[:, place], rows)
            total += weight * log_p.double()
            gradient.index_add_(1, place, slope.double(), alpha=weight)
        return total, gradient


@dataclass(frozen=True, eq=False)
class _Part:
    """The posterior of one mini-batch: its layout, its places among all latents, its Gaussian."""

    layout: PlateLayout
    place: Tensor
    found: BlockArrowGaussian
    weight: float


def _fit_part(
    log_joint: LogJoint, layout: PlateLayout, noise: torch.Generator, budget: Budget
) -> _Part | None:
    """Fit a block-arrow Gaussian to what one mini-batch says by itself.

    In the log joint each of its rows counts N / B times, which a density of them does not: its
    (N / B)-th root is the posterior of B rows under the same share of the prior, and the product of
    N / B such is the posterior of all.
    """
    rows = log_joint.draw_subsample(noise)
    known = {p: index for p, index in rows.items() if p in layout.sizes}
    batch = layout.at(known)
    arrow = _arrow(batch)
    if arrow is None:
        return None
    weight = max(block.weight for block in batch.blocks)
    like = batch.space.init_loc
    target = Target(lambda z: log_joint(z, rows) / weight, like, budget=budget)
    sds = torch.full_like(like, ROW_START.scale).double()
    found = fit_block_arrow(target, [(like.double(), sds)], arrow, generator=noise)
    if found is None:
        _refuse_rows(log_joint, like, rows)
        return None
    place = layout.index(known) if known else torch.arange(layout.dim)
    return _Part(batch, place, found, weight)


def _arrow(layout: PlateLayout) -> BlockArrow | None:
    """Return the structure of a layout; None where plates cross."""
    index = {block.name: place for place, block in enumerate(layout.blocks)}
    blocks = [
        ArrowBlock(
            block.positions,
            tuple((index[name], rows) for name, rows in block.parents.items()),
        )
        for block in layout.blocks
    ]
    try:
        return BlockArrow.tree(blocks)
    except OptionError:
        return None


def _sweep(
    problem: Problem,
    layout: PlateLayout,
    loc: Tensor,
    scale: Tensor,
    noise: torch.Generator,
    budget: Budget,
    tick: Callable[[int], object],
) -> float:
    """Take steps of each row, batch by batch; write into ``loc`` and ``scale``.

    Returns:
        The share of the rows that had their steps.
    """
    log_joint = problem.log_joint
    plate = max(log_joint.subsampled, key=lambda name: log_joint.subsampled[name][0])
    size, count = log_joint.subsampled[plate]
    others = {p: i for p, i in log_joint.draw_subsample(noise).items() if p != plate}
    index, _ = cover(size, count)
    done = 0
    for row in index:
        if done and budget.over():
            break
        rows: TensorDict = {**others, plate: row}
        batch = layout.at({p: i for p, i in rows.items() if p in layout.sizes})
        place = layout.index({p: i for p, i in rows.items() if p in layout.sizes})
        local = torch.zeros(batch.dim, dtype=torch.bool)
        weight = torch.ones(batch.dim, dtype=torch.float64)
        for block in batch.blocks:
            if block.plates:
                local[block.positions.reshape(-1)] = True
                weight[block.positions.reshape(-1)] = block.weight
        target = Target(lambda z, rows=rows: log_joint(z, rows), batch.space.init_loc)  # type: ignore[misc]
        moved = _natural_steps(target, loc[place], scale[place], local, weight, noise)
        if moved is None:
            _refuse_rows(log_joint, batch.space.init_loc, rows)
        else:
            loc[place[local]], scale[place[local]] = (one[local] for one in moved)
        done += count
        tick(count)
    return min(1.0, done / size)


def _refuse_rows(log_joint: LogJoint, z: Tensor, rows: TensorDict) -> None:
    """Refuse rows at which the model is not finite where the guide starts.

    Raises:
        ModelError: Names the site and the row.
    """
    sites = log_joint.locate_nonfinite(z, rows)
    if not sites:
        return
    row = log_joint.nonfinite_row(z, rows, sites[0])
    raise ModelError(
        f"The log joint is not finite at the start: the site {sites[0]!r} is not{row}. Look at the "
        "data of that row: take it out, or hide what is missing by pyro.poutine.mask."
    )


def _natural_steps(
    target: Target,
    loc: Tensor,
    scale: Tensor,
    local: Tensor,
    weight: Tensor,
    noise: torch.Generator,
) -> tuple[Tensor, Tensor] | None:
    """Move the local coordinates of one batch; the others stay at their mean."""
    given = ROW_START
    for step in range(given.steps):
        half = torch.randn(given.draws // 2, len(loc), dtype=loc.dtype, generator=noise)
        eps = torch.cat([half, -half]) * local  # of globals none
        _, slope, ok = target(loc + scale * eps)
        if not bool(ok.any()):
            return None
        slope, eps = slope[ok] / weight, eps[ok]
        rate = 1.0 if step < given.steps // 2 else 0.5
        # Second derivatives from first ones: with mirrored draws, exact for a quadratic.
        bend = -(eps * slope).mean(0) / (eps.square().mean(0).clamp_min(1e-12) * scale)
        precision = scale.square().reciprocal()
        factor = (bend / precision).clamp(1 / given.change, given.change)
        precision = precision * ((1 - rate) + rate * factor)
        shift = rate * slope.mean(0) / precision
        most = given.reach / precision.sqrt()
        loc = torch.where(local, loc + shift.clamp(-most, most), loc)
        scale = torch.where(local, precision.rsqrt(), scale)
    return loc, scale
