"""Importance weights of the rows of a plate, and of the globals on re-drawn rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._math import standard_normal_log_prob
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.plate_layout import PlateLayout
from pyro_nfvi._pyro_model.row_terms import row_terms
from pyro_nfvi._random import stream
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.errors import WeightError
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.infer._recipe import PLATES


@dataclass(frozen=True)
class RowGaps:
    r"""Quality of the local approximations, row by row.

    .. math::
        \mathrm{gap}_r = \mathbb{E}_{q(g)}\bigl[\log p(x_r \mid g)
            - \mathbb{E}_q \log w_r\bigr], \qquad
        w_r = \frac{p(x_r, z_r \mid g)}{q(z_r \mid g)}

    the divergence of the row's approximation from its posterior given all that stands outside of
    the plate.

    Attributes:
        plate: Name of the plate.
        rows: Numbers of the rows ``(M,)``.
        gap: Their gaps in nats ``(M,)``, float64.
        khat: Shape of the tail of each row's weights ``(M,)``.
        total: Number of all rows.
    """

    plate: str
    rows: Tensor
    gap: Tensor
    khat: Tensor
    total: int

    def bad(self) -> Tensor:
        """Tell which rows are not to be trusted ``(M,)``."""
        wide = ~(self.gap <= PLATES.row_gap)  # one that is no number included
        return wide | self.long_tails() & ~self.nearly_even()

    def nearly_even(self) -> Tensor:
        """Tell which rows have weights so even that k-hat is of no account ``(M,)``."""
        return self.gap <= PLATES.row_even

    def long_tails(self) -> Tensor:
        """Tell which rows have a k-hat from which on no mean of their weights is known ``(M,)``."""
        return self.khat > PLATES.row_khat

    def worst(self, count: int) -> list[int]:
        """Return the numbers of the rows with the largest gaps, the worst first."""
        order = self.gap.nan_to_num(nan=math.inf).argsort(descending=True)
        return [int(row) for row in self.rows[order[:count]]]


@dataclass(frozen=True)
class GlobalWeights:
    """Draws of the globals with both densities, the rows integrated out.

    Attributes:
        z: Draws ``(S, D)`` of the latents outside of the plate.
        log_p: Log density of data and draw ``(S,)``, in nats.
        log_q: Log density of the guide ``(S,)``.
        elbo: Evidence lower bound of globals and rows, in nats, and its standard error.
        elbo_se: That.
        rows_se: Standard error of all ``log_p`` together, from the noise of rows, which is common.
        share: Share of the rows that the figures are from; 1 for all.
    """

    z: Tensor
    log_p: Tensor
    log_q: Tensor
    elbo: float
    elbo_se: float
    rows_se: float
    share: float


class _Scan:
    """Weights of rows of one plate, batch by batch, on common noise.

    Args:
        guide: The guide.
        log_joint: The model at the layout of a mini-batch.
        plate: The plate.
        eps: Noise of all that stands outside of the plate ``(S, D_out)``.
        draws: Draws of each row for each of these.
        seed: Of the noise of rows.
        spread: Spread the draws of a row evenly, by :func:`latin_normal`; else independent ones.
        nodes: Numbers ``(K,)`` that take the place of the draws of rows of one coordinate.
        bare: The guide's flows are the identity still, and are not run.
    """

    def __init__(
        self,
        guide: AutoPlateFlow,
        log_joint: LogJoint,
        plate: str,
        eps: Tensor,
        draws: int,
        seed: int,
        *,
        spread: bool = False,
        nodes: Tensor | None = None,
        bare: bool = False,
    ) -> None:
        self.guide, self.log_joint, self.plate = guide, log_joint, plate
        self._spread, self._nodes, self._bare = spread, nodes, bare
        self._eps, self._draws, self._seed = eps, draws, seed

    def at(self, rows: TensorDict, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Score a batch.

        Returns:
            Log weights ``(S, K, B)`` of the rows, the rest of the log joint ``(S,)``, the log
            density ``(S,)`` and the vector ``(S, D_out)`` of what stands outside.
        """
        known = {p: index for p, index in rows.items() if p in self.guide.layout.sizes}
        layout = self.guide.layout.at(known, weighted=False)
        inner = inside(layout, self.plate)
        count, draws = len(self._eps), self._draws
        eps = self._eps.new_empty(count, draws, layout.dim)
        eps[..., ~inner] = self._eps.unsqueeze(1)
        noise = stream(self._seed, "rows", number, device=eps.device)
        # The same for all draws of the globals, so that it cancels in their comparison.
        width = int(inner.sum())
        if self._nodes is not None:
            eps[..., inner] = self._nodes.to(eps).unsqueeze(-1).expand(draws, width)
        elif self._spread:
            eps[..., inner] = latin_normal(draws, width, noise).to(eps)
        else:
            eps[..., inner] = torch.randn(
                draws, width, dtype=eps.dtype, device=eps.device, generator=noise
            )
        flat = eps.reshape(count * draws, layout.dim)
        parts, scored = [], []
        most = max(1, PLATES.drawn_numbers // (4 * layout.dim))
        with torch.no_grad(), scoring(self.guide):
            bound = self.guide._bind(layout, bare=self._bare)
            for part in flat.split(most):
                z, ladjs = bound.by_rows(part)
                parts.append((z, row_log_q(layout, part, ladjs, self.plate)))
                scored.append(row_terms(self.log_joint, z, rows, self.plate))
        z = torch.cat([one for one, _ in parts])
        log_q = torch.cat([one.rows for _, one in parts])
        outer_q = torch.cat([one.rest for _, one in parts])
        terms, rest = (torch.cat(one) for one in zip(*scored))
        size = len(log_q[0])
        log_w = (terms - log_q).reshape(count, draws, size)
        first = slice(None, None, draws)
        return log_w, rest[first], outer_q[first], z[first][:, ~inner]


def hermite_nodes(count: int) -> tuple[Tensor, Tensor]:
    r"""Return nodes and log weights ``(count,)`` of means under a standard normal, float64.

    .. math:: \mathbb{E} f(\varepsilon) \approx \sum_k \omega_k f(\varepsilon_k)

    by the rule of Gauss and Hermite, exact for polynomials of degree ``2 count - 1``.

    Example:
        >>> nodes, log_weights = hermite_nodes(4)
        >>> round(float((log_weights.exp() * nodes**6).sum()), 6)
        15.0
    """
    nodes, weights = hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum()).log()


def _one_wide(layout: PlateLayout, plate: str) -> bool:
    """Tell whether each row of a plate has one coordinate in all."""
    inner = [block for block in layout.blocks if plate in block.plates]
    return len(inner) == 1 and inner[0].plates == (plate,) and inner[0].width == 1


def latin_normal(draws: int, width: int, generator: torch.Generator) -> Tensor:
    r"""Draw a Latin hypercube of standard normal numbers ``(draws, width)``, float64.

    Each column has one number in each of K strata of equal probability, in an order of its own.
    Each number is standard normal, so that means stay unbiased; of what is a sum over columns the
    variance falls as :math:`K^{-3}` in place of :math:`K^{-1}`. Of a hundred thousand rows each of
    which follows the globals a little wrongly, independent draws add up to a nat of noise in how
    the evidence depends on the globals, however many rows there are.

    Source: McKay, Beckman and Conover 1979, Technometrics 21(2); Stein 1987, Technometrics 29(2).

    Example:
        >>> from pyro_nfvi._random import stream
        >>> eps = latin_normal(1_000, 1, stream(0, "noise"))
        >>> abs(float(eps.mean())) < 1e-3
        True
    """
    order, within = torch.rand(
        2, draws, width, generator=generator, device=generator.device, dtype=torch.float64
    )
    u = (order.argsort(0) + within) / draws
    # Half a step of double precision off the ends, where the quantile is infinite.
    return torch.special.ndtri(u.clamp(2.0**-53, 1 - 2.0**-53))


@dataclass(frozen=True)
class RowLogQ:
    """Log densities of a guide: of the rows of a plate ``(S, B)``, and of all else ``(S,)``."""

    rows: Tensor
    rest: Tensor


def inside(layout: PlateLayout, plate: str) -> Tensor:
    """Tell which coordinates of a vector stand in a plate ``(D,)``."""
    found = torch.zeros(layout.dim, dtype=torch.bool, device=layout.space.init_loc.device)
    for block in layout.blocks:
        if plate in block.plates:
            found[block.positions.reshape(-1)] = True
    return found


def row_log_q(layout: PlateLayout, eps: Tensor, ladjs: list[Tensor], plate: str) -> RowLogQ:
    """Sum log densities of a guide to rows of a plate ``(S, B)``, and the rest ``(S,)``."""
    size = layout.sizes[plate]
    rows = eps.new_zeros(len(eps), size).double()
    rest = eps.new_zeros(len(eps)).double()
    for block, ladj in zip(layout.blocks, ladjs):
        own = standard_normal_log_prob(layout.part(block, eps)).sum(-1).double() - ladj.double()
        if plate in block.plates:
            rows.index_add_(1, layout.cells(block)[plate].to(eps.device), own)
        else:
            rest = rest + own.sum(-1)
    return RowLogQ(rows, rest)


def top_plates(layout: PlateLayout) -> list[str]:
    """Return the plates whose rows enclose all others, in the order of the blocks.

    Example:
        Counties with floors in them have ``["county"]``; persons and items that cross have both.
    """
    found: list[str] = []
    for block in sorted(layout.blocks, key=lambda one: len(one.plates)):
        if block.plates and not any(plate in found for plate in block.plates):
            found.append(block.plates[0])
    return found


def row_gaps(
    guide: AutoPlateFlow,
    log_joint: LogJoint,
    plate: str,
    seed: int,
    *,
    rows: Tensor | None = None,
    bare: bool = False,
    budget: Budget = UNLIMITED,
) -> RowGaps:
    """Estimate the gap and k-hat of some rows of a plate.

    Args:
        guide: The guide.
        log_joint: The model at the layout of a mini-batch.
        plate: The plate.
        seed: Of the noise, and of the choice of rows.
        rows: The rows; by default some drawn at random, all where they are few.
        bare: The guide's flows are the identity still, and are not run.
        budget: Rows for which there is no time are left out.

    Cost:
        A thousand draws of each row.

    Raises:
        ModelError: The log joint is no sum over rows.
    """
    total = guide.layout.sizes[plate]
    if rows is None:
        order = torch.randperm(total, generator=stream(seed, "examined rows", plate))
        rows = order[: PLATES.examined_rows].sort().values
    count, draws = PLATES.examined_globals, PLATES.examined_draws
    gaps: list[Tensor] = []
    khats: list[Tensor] = []
    done: list[Tensor] = []
    batches = batches_of(log_joint.subsampled, plate, rows, total, seed)
    for number, (batch, own) in enumerate(batches):
        if gaps and budget.over():
            break
        eps = _outer_noise(guide, batch, plate, count, seed)
        scan = _Scan(guide, log_joint, plate, eps, draws, seed, bare=bare)
        log_w, _, _, _ = scan.at(batch, number)
        log_w = log_w[..., own]
        level = log_w.logsumexp(1) - math.log(draws)
        gaps.append((level - log_w.mean(1)).mean(0))
        khats.append(_khats((log_w - level.unsqueeze(1)).flatten(0, 1)))
        done.append(batch[plate][own] if plate in batch else rows[: len(own)])
    return RowGaps(plate, torch.cat(done), torch.cat(gaps).cpu(), torch.cat(khats), total)


def _khats(log_w: Tensor) -> Tensor:
    """Return k-hat of each column ``(S, M)``; infinite where a row has no finite weight."""
    found = []
    for column in log_w.T:
        try:
            found.append(psis(column).khat)
        except WeightError:
            found.append(math.inf)
    return torch.tensor(found, dtype=torch.float64)


def batches_of(
    subsampled: Mapping[str, tuple[int, int]], plate: str, rows: Tensor, total: int, seed: int
) -> list[tuple[TensorDict, Tensor]]:
    """Lay some rows out in batches of the model's own size, and say which of each are asked for.

    Other plates that subsample have a batch of their own, the same for all.
    """
    others = {
        name: torch.randperm(size, generator=stream(seed, "other rows", name))[:count]
        for name, (size, count) in subsampled.items()
        if name != plate
    }
    if plate not in subsampled:
        return [(others, rows)]
    _, count = subsampled[plate]
    found = []
    for part in rows.split(count):
        batch = part
        if len(part) < count:  # filled up with rows that are in none
            taken = torch.zeros(total, dtype=torch.bool)
            taken[part] = True
            rest = (~taken).nonzero()[: count - len(part), 0]
            batch = torch.cat([part, rest])
        found.append(({**others, plate: batch}, torch.arange(len(part))))
    return found


def _outer_noise(
    guide: AutoPlateFlow, batch: TensorDict, plate: str, count: int, seed: int
) -> Tensor:
    """Draw noise ``(count, D_out)`` for all that stands outside of a plate; the same each time."""
    known = {p: index for p, index in batch.items() if p in guide.layout.sizes}
    layout = guide.layout.at(known, weighted=False)
    outside = int((~inside(layout, plate)).sum())
    like = layout.space.init_loc
    noise = stream(seed, "judged globals", device=like.device)
    return torch.randn(count, outside, dtype=like.dtype, device=like.device, generator=noise)


def judge_globals(
    guide: AutoPlateFlow,
    log_joint: LogJoint,
    plate: str,
    seed: int,
    *,
    bare: bool = False,
    trained: int = 0,
    budget: Budget = UNLIMITED,
    tick: Callable[[int], object] = lambda _: None,
) -> GlobalWeights:
    r"""Weigh draws of the globals with rows that are drawn anew for each, and integrated out.

    .. math::
        \log \hat p(x, g) = \log p(g) + \sum_r \log \frac1K \sum_k
            \frac{p(x_r, z_{rk} \mid g)}{q(z_{rk} \mid g)}, \qquad z_{rk} \sim q(\cdot \mid g)

    The noise of rows is common to all draws of the globals, so that most of what K draws get wrong
    of an integral is the same in all and cancels between them; and the K draws are spread evenly
    (:func:`latin_normal`). The errors stated are those of independent draws, which are larger.
    Where rows have one coordinate and the guide is Gaussian still, quadrature takes the place of
    the draws (:func:`hermite_nodes`) and has no noise; the error stated is that of rounding. Flows
    have kinks, of which a rule of few nodes does not see enough. Rows whose weights are no smooth
    function show in :func:`row_gaps`, which has draws.

    Args:
        guide: The guide.
        log_joint: The model at the layout of a mini-batch.
        plate: The plate that has all local latents.
        seed: Of the noise.
        bare: The guide's flows are the identity still, and are not run.
        trained: Draws of rows in all steps of the training, a share of whose cost this may take.
        budget: Where it is spent first, the figures are those of some of the rows.
        tick: Called with the number of rows done.

    Cost:
        ``judged_numbers`` draws of rows at most, ``plain_numbers`` of bare ones, or
        ``judged_share`` of the training where that is more; of more rows, as many are looked at.
        Rows come in the model's own mini-batches, so that memory does not grow with them.

    Raises:
        ModelError: The log joint is no sum over rows.
    """
    total = guide.layout.sizes[plate]
    count, draws = _sizes(total)
    most = PLATES.plain_numbers if bare else PLATES.judged_numbers
    most = max(most, int(PLATES.judged_share * PLATES.gradient_cost * trained))
    seen = min(total, most // (count * draws))
    order = torch.randperm(total, generator=stream(seed, "judged rows", plate))
    rows = torch.arange(total) if seen == total else order[:seen].sort().values
    log_marginal = log_mean = None
    per_row = []
    done = 0
    noise_of_mean = noise_of_level = 0.0  # variances
    nodes = None
    log_share = torch.full((draws,), -math.log(draws), dtype=torch.float64)
    if bare and _one_wide(guide.layout, plate):
        nodes, log_share = hermite_nodes(draws)
    batches = batches_of(log_joint.subsampled, plate, rows, total, seed)
    for number, (batch, own) in enumerate(batches):
        if done and budget.over():
            break
        eps = _outer_noise(guide, batch, plate, count, seed)
        scan = _Scan(guide, log_joint, plate, eps, draws, seed, spread=True, nodes=nodes, bare=bare)
        log_w, rest, log_q, z = scan.at(batch, number)
        log_w, share = log_w[..., own], log_share.to(log_w.device)[:, None]
        by_row = (log_w + share).logsumexp(1)
        level = by_row.sum(-1)
        mean = (share.exp() * log_w).sum(1)
        if nodes is None:
            # The means over the globals of what each draw of a row adds to the two.
            noise_of_mean += float(log_w.mean(0).var(0).sum()) / draws
            weights = (log_w - by_row.unsqueeze(1)).exp().mean(0)
            noise_of_level += float(weights.var(0).sum()) / draws
        else:  # rounding is left, of a batch in the dtype of the model
            rounding = torch.finfo(z.dtype).eps * float(level.abs().mean())
            noise_of_mean, noise_of_level = (
                noise_of_mean + rounding**2,
                noise_of_level + rounding**2,
            )
        log_marginal = level if log_marginal is None else log_marginal + level
        log_mean = mean.sum(-1) if log_mean is None else log_mean + mean.sum(-1)
        per_row.append(mean.mean(0))
        done += len(own)
        tick(len(own))
    assert log_marginal is not None
    assert log_mean is not None
    scale = total / done
    bound = rest + scale * log_mean - log_q
    spread = torch.cat(per_row).std() if done > 1 else torch.zeros(())
    error = math.hypot(float(bound.std()) / math.sqrt(count), scale * math.sqrt(noise_of_mean))
    if done < total:
        error = math.hypot(error, total * float(spread) / math.sqrt(done))
    return GlobalWeights(
        z,
        rest + scale * log_marginal,
        log_q,
        float(bound.mean()),
        error,
        scale * math.sqrt(noise_of_level),
        done / total,
    )


def _sizes(total: int) -> tuple[int, int]:
    """Return how many draws of the globals, and of each row, are affordable for so many rows."""
    least = PLATES.fewest_globals * PLATES.fewest_draws
    most = max(least, PLATES.judged_numbers // (4 * max(1, total)))
    draws = min(PLATES.judged_draws, max(PLATES.fewest_draws, most // PLATES.judged_globals))
    return max(PLATES.fewest_globals, min(PLATES.judged_globals, most // draws)), draws


def separable(log_joint: LogJoint, layout: PlateLayout) -> bool:
    """Tell whether all local latents stand in the rows of one plate."""
    tops = top_plates(layout)
    return len(tops) == 1 and all(
        not block.plates or tops[0] in block.plates for block in layout.blocks
    )
