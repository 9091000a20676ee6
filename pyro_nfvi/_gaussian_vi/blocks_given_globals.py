"""Blocks of latents that are independent given a few globals, with the modes of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.block_mixtures import (
    BlockModes,
    GivenGlobals,
    ModeProduct,
    factor_of,
    fit_mode_product,
)
from pyro_nfvi._gaussian_vi.block_places import BlockPlaces
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.independent_blocks import (
    connected_parts,
    independent_blocks,
    interacting_pairs,
    interactions,
)
from pyro_nfvi._gaussian_vi.learnt_mixture import LearntMixture, even_noise, learn_mixture
from pyro_nfvi._gaussian_vi.mode_ascent import ascend
from pyro_nfvi._gaussian_vi.multistart import GaussianFit
from pyro_nfvi._gaussian_vi.random_search import heights
from pyro_nfvi._gaussian_vi.recipe import BLOCK_MIXTURES, GLOBALS, MODE_SEARCH
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._gaussian_vi.unseen_starts import unseen_starts
from pyro_nfvi._math import standard_normal_log_prob
from pyro_nfvi.flows._mixture_map import MixtureMap


def fit_given_globals(
    target: Target,
    found: GaussianFit,
    points: Tensor,
    ends: Tensor,
    *,
    more: Callable[[int], Tensor],
    effort: float = 1.0,
    generator: torch.Generator,
) -> ModeProduct | None:
    r"""Fit mixtures to blocks that are independent given globals, and one to the globals.

    .. math:: q(z) = q(g) \prod_b \sum_k w_{bk}(g)\, N(z_b; m_{bk}(g), C_{bk})

    Logits and means are linear in the globals. At their centre the blocks are those of
    :func:`~pyro_nfvi._gaussian_vi.block_mixtures.fit_mode_product`; the slopes are derivatives of
    the logarithm of a component's evidence and of its mean,

    .. math:: \nabla_g \log Z_{bk} = E_{bk}[\nabla_g \ell_b], \qquad
        \nabla_g m_{bk} = \mathrm{Cov}_{bk}(z_b, \nabla_g \ell_b),

    over weighted draws of the component. The marginal density of the globals is
    :math:`p(g, z) / q(z \mid g)`, averaged over draws of the others; what the mixtures do not
    follow, such as widths that change with a scale, is noise in it, and a gap of the whole.

    Args:
        target: The density.
        found: A Gaussian.
        points: Points of all kinds ``(N, D)``.
        ends: Where ascents ended ``(N, D)``.
        more: Gives ``n`` further starts.
        effort: Factor on numbers of steps.
        generator: Source of the noise.

    Returns:
        None where no few globals part the others into small blocks, or where these have no modes to
        combine.

    Cost:
        That of ``fit_mode_product``, up to three times, and of one more mixture.
    """
    ends = ends[torch.isfinite(ends).all(-1)]
    joined = interactions(target, torch.cat([points, ends]), generator)
    globals_ = None if joined is None else _globals(joined)
    if globals_ is None or target.budget.over():
        return None
    rest = torch.ones(len(found.loc), dtype=torch.bool)
    rest[globals_] = False
    others = rest.nonzero().squeeze(-1)
    centre, made = found.loc[globals_], None
    for _ in range(GLOBALS.rounds):
        product = _inner(
            target, found, globals_, others, centre, points, ends, more, effort, generator
        )
        if product is None or target.budget.over():
            return made
        made = _joined(target, found, globals_, others, centre, product, generator)
        mixture = made.blocks[0].mixture
        weights = mixture.log_weights.exp()
        mean = (weights.unsqueeze(-1) * mixture.locs).sum(0)
        spread = (mixture.factors.square().sum(-1) + (mixture.locs - mean).square()).mean(0).sqrt()
        if float(((mean - centre).abs() / spread).max()) < GLOBALS.near:
            break
        centre = mean
    return made


def _globals(joined: Tensor) -> Tensor | None:
    """Take the latents with most neighbours away until the others are in small blocks."""
    left = torch.arange(len(joined))
    taken: list[int] = []
    while len(taken) <= GLOBALS.most:
        parts = connected_parts(joined[left][:, left])
        if max(len(part) for part in parts) <= BLOCK_MIXTURES.most_dim and len(parts) > 1:
            few = len(left) >= GLOBALS.fewest_rest * max(1, len(taken))
            return torch.tensor(sorted(taken)) if taken and few else None
        degree = joined[left][:, left].sum(-1)
        worst = int(degree.argmax())
        taken.append(int(left[worst]))
        left = torch.cat([left[:worst], left[worst + 1 :]])
        if len(left) < 2:
            return None
    return None


def _inner(
    target: Target,
    found: GaussianFit,
    globals_: Tensor,
    others: Tensor,
    centre: Tensor,
    points: Tensor,
    ends: Tensor,
    more: Callable[[int], Tensor],
    effort: float,
    generator: torch.Generator,
) -> ModeProduct | None:
    """Fit the mixtures of the blocks at given globals; None where they are not independent."""
    held = target.holding(globals_, centre)
    inner = _conditional(found, others)
    frame = Normals(inner.loc[None], inner.scale[None])
    steps = max(1, round(MODE_SEARCH.ascent_steps * effort))
    inner_ends, height = ascend(held, frame, ends[:, others], steps)
    near = torch.cat([points[:, others], inner_ends])
    blocks = independent_blocks(held, near, generator)
    if blocks is None:
        return None
    for place in torch.randint(len(ends), (GLOBALS.checked,), generator=generator).tolist():
        elsewhere = target.holding(globals_, ends[place, globals_])
        if interacting_pairs(elsewhere, near, blocks, generator) is not None:
            return None
    tops = inner_ends[height.argsort(descending=True)]
    return fit_mode_product(
        held, inner, blocks, inner_ends, tops,
        more=lambda num: more(num)[:, others], effort=effort, generator=generator,
    )  # fmt: skip


def _conditional(found: GaussianFit, others: Tensor) -> GaussianFit:
    """Return a Gaussian of some latents given the rest of them."""
    if found.factor.dim() == 1:
        factor = found.factor[others]
    else:
        precision = torch.cholesky_inverse(found.factor)[others][:, others]
        factor = torch.linalg.cholesky(torch.linalg.inv(precision))
    return replace(found, loc=found.loc[others], factor=factor, arrow=None)


def _joined(
    target: Target,
    found: GaussianFit,
    globals_: Tensor,
    others: Tensor,
    centre: Tensor,
    product: ModeProduct,
    generator: torch.Generator,
) -> ModeProduct:
    """Learn how the blocks follow the globals, and a mixture of these."""
    blocks = [replace(block, index=others[block.index]) for block in product.blocks]
    reference = found.loc.clone()
    reference[globals_] = centre
    for block in blocks:
        best = int(block.mixture.log_weights.argmax())
        reference[block.index] = block.mixture.locs[best]
    slopes = [_slopes(target, block, globals_, reference, generator) for block in blocks]
    given = GivenGlobals(
        globals_, centre, tuple(logits for logits, _ in slopes), tuple(locs for _, locs in slopes)
    )
    start = Normals(centre[None], factor_of(found, globals_)[None])
    none = centre.new_zeros(1)
    first = LearntMixture(none, start.loc, start.factor, 0.0, 0)
    whole = replace(product, blocks=(_global_block(globals_, first, product), *blocks), given=given)
    density = _marginal(target, whole, generator)
    # What the mixtures of blocks do not follow is noise here, which no component takes away.
    mixture = learn_mixture(density, none, start, BLOCK_MIXTURES.gap, generator)
    top = _global_block(globals_, mixture, product)
    count = product.num_points + mixture.num_points
    return replace(whole, blocks=(top, *blocks), num_points=count)


def _global_block(index: Tensor, mixture: LearntMixture, product: ModeProduct) -> BlockModes:
    """Wrap the mixture of the globals up, as a block of one mode."""
    best = int(mixture.log_weights.argmax())
    hits = torch.tensor([product.num_starts])
    none = mixture.locs.new_zeros(1)
    places = BlockPlaces(
        mixture.locs[best][None], mixture.factors[best][None], none,
        torch.zeros(1, dtype=torch.long), hits, unseen_starts(hits, none),
    )  # fmt: skip
    return BlockModes(index, mixture, places)


def _slopes(
    target: Target,
    block: BlockModes,
    globals_: Tensor,
    reference: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Slopes of logits ``(K, p)`` and means ``(K, d, p)`` by the globals, over weighted draws."""
    mixture, num = block.mixture, GLOBALS.slope_draws
    normals = Normals(mixture.locs, mixture.factors)
    eps = torch.special.ndtri(even_noise(num, normals.dim, generator))
    z = normals.points(eps.expand(len(normals), -1, -1))
    rows = reference.expand(len(normals) * num, -1).clone()
    rows[:, block.index] = z.flatten(0, 1)
    log_p, score, ok = target(rows)
    each = normals.log_prob(z.flatten(0, 1)) + mixture.log_weights
    own = each.view(len(normals), num, -1).diagonal(dim1=0, dim2=2).mT
    # Draws of a component, weighted by its part of the density.
    share = own - torch.logsumexp(each, -1).view_as(own)
    log_w = log_p.view_as(own) + share - (own - mixture.log_weights.unsqueeze(-1))
    log_w = torch.where(ok.view_as(own) & torch.isfinite(log_w), log_w, -torch.inf)
    weight = torch.softmax(log_w, -1).nan_to_num(0.0)
    pull = score[:, globals_].view(len(normals), num, -1)
    logits = torch.einsum("kn,knp->kp", weight, pull)
    mean = torch.einsum("kn,kni->ki", weight, z)
    locs = torch.einsum("kn,kni,knp->kip", weight, z - mean.unsqueeze(1), pull)
    return logits - logits.mean(0), locs


def _marginal(
    target: Target, whole: ModeProduct, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """Return the log density of the globals ``(N, p)``, the others averaged out."""
    flow = MixtureMap(whole.groups())
    top = whole.blocks[0]
    normal = Normals(top.mixture.locs, top.mixture.factors)
    count, dim = GLOBALS.marginal_draws, flow.dim

    def log_density(g: Tensor) -> Tensor:
        many = g.repeat(count, 1)
        eps = torch.randn((len(many), dim), generator=generator, dtype=g.dtype, device=g.device)
        away = (many - normal.loc[0]).mT
        eps[:, top.index] = torch.linalg.solve_triangular(normal.factor[0], away, upper=False).mT
        with torch.no_grad():
            z, ladj = flow(eps)
        log_q = standard_normal_log_prob(eps).sum(-1) - ladj - normal.log_prob(many)[:, 0]
        log_w = heights(target, z).double() - log_q
        log_w = torch.where(torch.isfinite(log_w), log_w, -torch.inf)
        return torch.logsumexp(log_w.view(count, -1), 0) - math.log(count)

    return log_density
