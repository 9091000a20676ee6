"""Baselines: Laplace's approximation, Pathfinder and DADVI in the place of a trained guide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.dadvi import dadvi
from pyro_nfvi._gaussian_vi.laplace import FlatTopError, laplace
from pyro_nfvi._gaussian_vi.pathfinder import Path, pathfinder
from pyro_nfvi._gaussian_vi.recipe import BASELINES
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._train.density_selection import present
from pyro_nfvi.errors import ModelError, OptionError, WeightError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.guides._recipe import GUIDES
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._stages.gaussian_start import uniform_points
from pyro_nfvi.infer._stages.scoring import score_guide, settings_of
from pyro_nfvi.infer._stages.warm_start import WarmStart
from pyro_nfvi.infer._time_plan import TimePlan
from pyro_nfvi.infer._training import Training
from pyro_nfvi.infer._weighted_draws import WholeDensity, whole_density


@dataclass(frozen=True)
class _Density:
    """The density on all data: for gradients, and to be differentiated twice."""

    target: Target
    twice: Any


def fit_baseline(
    problem: Problem, options: Options, time: TimePlan, guide: AutoFlow, start: WarmStart
) -> Fit:
    """Compute an approximation that has no steps of training, and score it as any guide.

    The ascent begins where the model's initial values are, as that of others would; what the
    search for modes found is for the verdict alone.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call.
        guide: A full Gaussian, set up; it is moved.
        start: Result of the stages before.

    Raises:
        OptionError: There are more latents than a full matrix is kept for.
        ModelError: The density has no top, cannot be scored, or not on all data.
    """
    assert options.baseline is not None
    name, paths = options.baseline
    paths = BASELINES.paths if paths is None else paths
    _check_size(name, problem.latent.dim, paths)
    density = _density(problem, name, time)
    made: AutoFlow | AutoMixture = guide
    with time.watch.part("training"), options.progress.stage(f"computing {name}", 1, unit="fit"):
        try:
            if name == "laplace":
                found = laplace(density.target, density.twice, problem.latent.init_loc)
                guide.start_at(*_like(guide, found.loc, found.factor))
                detail = (
                    f"Laplace's approximation at the highest point, where the log joint is "
                    f"{found.height:.2f} nats in the unconstrained space: {found.steps} "
                    "iterations of L-BFGS."
                )
            elif name == "dadvi":
                detail = _dadvi(problem, density, guide)
            else:
                made, detail = _pathfinder(problem, density, guide, paths)
        except FlatTopError as error:
            raise ModelError(
                f"guide={name!r} needs a density that falls from its top in all directions, and "
                f"along {problem.latent.at(error.place % problem.latent.dim)} it does not. Give "
                "that latent a prior, or take guide='gaussian' or 'auto'."
            ) from error
        except WeightError as error:
            raise ModelError(
                f"guide={name!r} could not be computed: {error} Take guide='gaussian' or 'auto', "
                "which start from several points."
            ) from error
    back_end = present(problem.density, problem.log_joint)
    engine = "eager" if back_end.backend == "eager" else "compiled"
    settings = replace(
        settings_of(problem, options, made), flow=str(options.guide), objective="",
        num_particles=0, max_steps=0,
    )  # fmt: skip
    training = Training(
        torch.zeros(0, dtype=torch.float64),
        StopReason("converged", detail),
        engine,
        f"no steps of training; the model: {back_end.reason}",
        settings,
        start.notes,
    )
    return score_guide(problem, options, time, made, training)


def _check_size(name: str, dim: int, paths: int) -> None:
    if dim > BASELINES.most_latents:
        raise OptionError(
            f"guide={name!r} keeps a full covariance, of up to {BASELINES.most_latents} latents; "
            f"the model has {dim}. Take guide='gaussian' or 'auto'."
        )
    if name == "pathfinder" and paths > 1 and dim > GUIDES.full_dim:
        raise OptionError(
            f"guide='pathfinder*{paths}' is a mixture of full Gaussians, of up to "
            f"{GUIDES.full_dim} latents; the model has {dim}. Take guide='pathfinder*1'."
        )


def _density(problem: Problem, name: str, time: TimePlan) -> _Density:
    log_joint = problem.log_joint
    whole = whole_density(log_joint, BASELINES.fixed_draws)
    if whole is None:
        raise ModelError(
            f"guide={name!r} needs all data at once, and the model's mini-batches are too many. "
            "Take guide='gaussian' or 'auto'."
        )
    twice = WholeDensity(log_joint.eager) if log_joint.subsampled else log_joint.eager
    return _Density(Target(whole, problem.latent.init_loc, budget=time.training), twice)


def _like(guide: AutoFlow, loc: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    like = guide.latent.init_loc
    return loc.to(like), factor.to(like)


def _dadvi(problem: Problem, density: _Density, guide: AutoFlow) -> str:
    found = dadvi(
        density.target, density.twice, problem.latent.init_loc, problem.stream("fixed draws")
    )
    guide.start_at(*_like(guide, found.loc, found.factor))
    sd = found.factor.square().sum(-1).sqrt()
    narrow = (found.scale / sd).min()
    error = (found.error / sd).max()
    return (
        f"DADVI on {BASELINES.fixed_draws} fixed draws, {found.steps} iterations of L-BFGS; the "
        "covariance is that of the linear response, beside which the mean-field standard "
        f"deviations are as small as {float(narrow):.2f}. Other fixed draws would move a mean by "
        f"up to {float(error):.2g} sd."
    )


def _pathfinder(
    problem: Problem, density: _Density, guide: AutoFlow, count: int
) -> tuple[AutoFlow | AutoMixture, str]:
    noise = problem.stream("pathfinder")
    init = problem.latent.init_loc.detach().double()
    # One path from the model's initial point, the others from all over, as Stan's.
    others = uniform_points(density.target, init, count - 1, noise) if count > 1 else init[None][:0]
    found: list[Path] = []
    refused: WeightError | None = None
    for start in torch.cat([init[None], others]):
        try:
            found.append(pathfinder(density.target, start, noise))
        except WeightError as error:
            refused = error
    if not found:
        assert refused is not None
        raise refused
    steps = ", ".join(f"{one.place} of {one.steps}" for one in found)
    bounds = ", ".join(f"{one.bound:.2f}" for one in found)
    if count == 1:
        guide.start_at(*_like(guide, found[0].loc, found[0].factor))
        return guide, (
            f"Pathfinder: the Gaussian of iterate {steps} of L-BFGS, ELBO {bounds} nats by "
            f"{BASELINES.path_draws} draws."
        )
    with problem.own_names():
        mixture = AutoMixture(problem.model, len(found), None)
        mixture.setup(*problem.log_joint.args, **problem.log_joint.kwargs)
    mixture.start_at(
        torch.stack([one.loc for one in found]), torch.stack([one.factor for one in found])
    )
    return mixture, (
        f"Multi-path Pathfinder: {len(found)} of {count} paths, an equal share of each; their "
        f"Gaussians are of iterates {steps} of L-BFGS, ELBOs {bounds} nats. fit.resample() "
        "resamples by importance, as the method does."
    )
