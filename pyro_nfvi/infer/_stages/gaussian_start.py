"""The Gaussian stage: where the posterior is and how wide, before the flow learns its shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._gaussian_vi.block_arrow import BlockArrowGaussian
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.low_rank_gaussian import add_directions
from pyro_nfvi._gaussian_vi.multistart import GaussianFit, fit_gaussian
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._optim.torch_optimizers import LBFGS
from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._train.progress import SILENT, Progress
from pyro_nfvi.errors import WeightError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._recipe import GUIDES
from pyro_nfvi.infer._recipe import CALL_SIZES, GAUSSIAN_START
from pyro_nfvi.infer._stages.block_arrow_start import block_arrow_start


class _TimeOver(Exception):
    """Ends an ascent by an optimiser that cannot be asked to."""


def gaussian_stage(
    log_joint: LogJoint,
    like: Tensor,
    *,
    effort: float,
    generator: torch.Generator,
    budget: Budget = UNLIMITED,
    progress: Progress = SILENT,
) -> GaussianFit:
    """Fit a Gaussian to the model's posterior.

    Starts of several kinds stand side by side: the guide's initial point and the unconstrained
    origin, wide and narrow, draws uniform in (-2, 2) and from the prior, and points on ascents from
    these to a mode. Where the model can only be run one particle at a time, or sees a part of its
    data, the Gaussian starts from the initial point, and from points of the other kinds in turn
    where nothing can be evaluated around that.

    Args:
        log_joint: The model.
        like: A tensor of the guide's dtype and device.
        effort: 1 for the whole stage; a fraction for a fit of few steps.
        generator: Source of the noise.
        budget: Time for it; where that is spent, what was reached by then is returned.
        progress: Shows a bar.

    Raises:
        WeightError: No start can be evaluated, or the Gaussian diverges along a direction in
            which the density does not fall.
    """
    with progress.stage("fitting a Gaussian") as tick:
        target = Target(log_joint, like, budget=budget, tick=tick)
        found, size = _best_in_units(log_joint, target, effort, generator)
    init = log_joint.latent.init_loc.detach().double()
    unit = size.maximum(init.abs()).clamp(min=1.0)
    far = torch.maximum(found.scale, (found.loc - init).abs()) / unit
    if not bool((far < GAUSSIAN_START.diverged).all()):
        # Checks after the fit say whether there is a posterior at all.
        name = log_joint.latent.at(int(far.argmax()))
        raise WeightError(
            f"the Gaussian diverged along {name}, beyond {GAUSSIAN_START.diverged:g}."
        )
    return found


def _best_in_units(
    log_joint: LogJoint, target: Target, effort: float, generator: torch.Generator
) -> tuple[GaussianFit, Tensor]:
    """Fit in the latents' own units, and in those of the prior's draws where these are extreme.

    Returns:
        The Gaussian with the higher bound, and how large numbers are.
    """
    numbers = GAUSSIAN_START.start_particles * max(1, log_joint.size)
    most = max(1, min(GAUSSIAN_START.starts, CALL_SIZES.search // numbers))
    if log_joint.in_parts:
        most = 1  # many runs cost too much, and bounds on other data cannot be compared
    drawn = prior_points(log_joint, target, GAUSSIAN_START.prior_starts) if most > 1 else None
    size = _size(log_joint.latent.init_loc, drawn)
    units = [torch.ones_like(size)]
    if not bool(
        ((size > 1 / GAUSSIAN_START.extreme_units) & (size < GAUSSIAN_START.extreme_units)).all()
    ):
        units.append(size)
    tried: list[GaussianFit] = []
    for one in units:
        if tried and target.budget.over():
            break
        tried.append(_fitted(log_joint, target, one, drawn, most, effort, generator))
    return max(tried, key=lambda fit: fit.bound), size


def _size(init: Tensor, drawn: Tensor | None) -> Tensor:
    """Return the sizes of the latents, by draws from the prior: dollars may come in billions."""
    if drawn is None or not len(drawn):
        return torch.ones_like(init, dtype=torch.float64)
    return drawn.abs().amax(0).clamp(min=torch.finfo(init.dtype).tiny)


def _fitted(
    log_joint: LogJoint,
    target: Target,
    units: Tensor,
    drawn: Tensor | None,
    most: int,
    effort: float,
    generator: torch.Generator,
) -> GaussianFit:
    """Fit with the latents in these units, and give the fit back in their own."""
    if not bool((units == 1).all()):
        target = target.in_units(units)
    init = log_joint.latent.init_loc.detach().double() / units
    if bool((units == 1).all()):
        # The curvature sees the units by itself.
        none = init.new_zeros(0, len(init))
        known = block_arrow_start(log_joint, target, none if drawn is None else drawn, generator)
        if known is not None:
            return _of_arrow(known, target)
    if drawn is not None:
        tries = iter([_starts(target, init, drawn / units, most, effort, generator)])
    else:
        tries = _single_starts(log_joint, target, init, generator)
    while True:
        try:
            found = fit_gaussian(
                target,
                next(tries),
                effort=effort,
                num_particles=GAUSSIAN_START.loop_particles if log_joint.how == "loop" else None,
                noisy=bool(log_joint.subsampled),
                generator=generator,
            )
            break
        except WeightError as error:
            refused = error
        except StopIteration:
            raise refused from None
    return found if bool((units == 1).all()) else found.in_units(units)


def _of_arrow(known: BlockArrowGaussian, target: Target) -> GaussianFit:
    """Wrap a block-arrow Gaussian up."""
    scale = known.factor.precisions.rsqrt()
    return GaussianFit(
        known.loc, scale, known.bound, known.bound_se,
        Normals(known.loc[None], scale[None]), known.loc.new_full((1,), known.bound),
        known.loc.new_zeros(0), target.num_rows, known.factor,
    )  # fmt: skip


def start_along(
    guide: AutoFlow,
    log_joint: LogJoint,
    found: GaussianFit,
    generator: torch.Generator,
    *,
    budget: Budget = UNLIMITED,
) -> list[str]:
    """Give a diagonal Gaussian, of many latents, the directions in which it is far off.

    Returns:
        A line for the report, or none where nothing was gained.
    """
    unfit = log_joint.in_parts or guide._outer_kind != "whitened"
    if found.factor.dim() == 2 or found.arrow is not None or unfit or budget.over():
        return []
    target = Target(log_joint, guide.latent.init_loc, budget=budget)
    along = add_directions(target, found.loc, found.factor, generator=generator)
    if along is None:
        return []
    guide.start_along(along)
    return [
        f"{len(along.stretch)} directions beside the diagonal: ELBO {along.bound:.2f} ± "
        f"{along.bound_se:.2f} nats"
    ]


def _starts(
    target: Target,
    init: Tensor,
    drawn: Tensor,
    most: int,
    effort: float,
    generator: torch.Generator,
) -> Normals:
    """Starts of all kinds, and points on ascents from them; twelve at most."""
    origin = torch.zeros_like(init)
    apart = bool((init - origin).norm() > GAUSSIAN_START.origin_distance * math.sqrt(len(init)))
    roots = [init, *([origin] if apart else [])]
    given = GAUSSIAN_START
    cast = uniform_points(target, init, given.uniform_starts, generator)
    steps = max(1, round(given.ascent_steps * effort))
    near, cast_near = drawn[: given.prior_ascents], cast[: given.uniform_ascents]
    first, *later = (_ascend(target, row, steps) for row in [*roots, *near, *cast_near])
    ascended = [*first, *(point for pair in later for point in pair)]
    others = [*cast[given.uniform_ascents :], *drawn[given.prior_ascents :]]
    rows = [*roots, init, *ascended, *near, *others]
    centres = torch.stack(rows)[:most]
    widths = [given.wide] * len(roots) + [given.narrow] * (len(centres) - len(roots))
    scales = torch.tensor(widths)
    scales = scales[: len(centres)].to(centres)
    return Normals.around(centres, scales, diagonal=len(init) > GUIDES.full_dim)


def _single_starts(
    log_joint: LogJoint, target: Target, init: Tensor, generator: torch.Generator
) -> Iterator[Normals]:
    """One start after the other, for a model of which several cannot be compared."""
    diagonal, given = len(init) > GUIDES.full_dim, GAUSSIAN_START
    yield Normals.around(init[None], given.narrow, diagonal=diagonal)
    yield Normals.around(init[None], given.narrowest, diagonal=diagonal)
    cast = uniform_points(target, init, given.single_starts, generator)
    rows = torch.cat([torch.zeros_like(init)[None], cast])
    for row in rows[target(rows)[2]]:
        yield Normals.around(row[None], given.narrow, diagonal=diagonal)
    for row in prior_points(log_joint, target, given.prior_starts).to(init):
        yield Normals.around(row[None], given.narrow, diagonal=diagonal)


def uniform_points(target: Target, like: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Draw unconstrained points uniformly in (-2, 2) at which the model can be scored.

    Fewer than ``num`` come back, possibly none, where a few hundred draws do not have as many.
    """
    shape = (max(num, 1), len(like))
    found = like.new_zeros(0, len(like)).double()
    for _ in range(GAUSSIAN_START.tries):
        rows = torch.rand(shape, generator=generator, dtype=torch.float64, device=like.device)
        rows = GAUSSIAN_START.radius * (2 * rows - 1)
        found = torch.cat([found, rows[target(rows)[2]]])
        if len(found) >= num or target.budget.over():
            break
    return found[:num]


def prior_points(log_joint: LogJoint, target: Target, num: int) -> Tensor:
    """Draw latents from the prior, as unconstrained points at which the model can be scored.

    Fewer than ``num`` come back, possibly none, where the prior cannot be drawn from.
    """
    latent = log_joint.latent
    found: list[Tensor] = []
    for _ in range(GAUSSIAN_START.tries):
        missing = num - len(found)
        if missing == 0 or target.budget.over():
            break
        drawn = []
        for _ in range(missing):
            if target.budget.over():
                break
            try:
                drawn.append(_prior_draw(log_joint.model, log_joint.args, log_joint.kwargs, latent))
            except Exception:  # a draw on which the model fails
                continue
        if drawn:
            ok = target(torch.stack(drawn))[2].tolist()
            found += [row for row, fine in zip(drawn, ok) if fine]
    return torch.stack(found) if found else latent.init_loc.new_zeros(0, latent.dim).double()


def _prior_draw(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], latent: LatentSpace
) -> Tensor:
    with pyro.validation_enabled(False):
        trace = prior_trace(model, args, kwargs)
    return latent.pack({name: trace.nodes[name]["value"] for name in latent.sites}).double()


def _ascend(target: Target, start: Tensor, steps: int) -> list[Tensor]:
    """Ascend by L-BFGS; return the maximum, and a point on the way.

    The point on the way is what counts where the density has a singular top, as a funnel has.
    """
    point = start.clone().requires_grad_()
    path: list[tuple[float, Tensor]] = []

    def descent() -> Tensor:
        if path and target.budget.over():
            raise _TimeOver
        log_p, score, ok = target(point.detach()[None])
        point.grad = -score[0]
        if bool(ok):
            path.append((float(log_p), point.detach().clone()))
            return -log_p[0]
        # A number that no line search takes, and that is finite in single precision.
        return torch.full((), 1e30, dtype=log_p.dtype)

    history = min(steps, max(GAUSSIAN_START.shortest_history, 2 * len(start)))
    optimizer = LBFGS([point], max_iter=steps, history_size=history, line_search_fn="strong_wolfe")
    with suppress(_TimeOver):
        optimizer.step(descent)
    if not path:
        return []
    top = max(height for height, _ in path)
    enough = path[0][0] + GAUSSIAN_START.rise_share * (top - path[0][0])
    return [
        next(here for height, here in path if height == top),
        next(here for height, here in path if height >= enough),
    ]
