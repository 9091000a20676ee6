"""Simulation-based calibration at the data of one fit."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._map_fits.results_folder import ResultsFolder
from pyro_nfvi._map_fits.spec import check_options
from pyro_nfvi._processes.tasks import Executor, check_executor, refuse_inside
from pyro_nfvi._random import fold_in, fresh_seed, stream
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.calibration._replication import Replicator
from pyro_nfvi.calibration._result import PosteriorSBC
from pyro_nfvi.calibration._simulated_fits import (
    check_finite,
    check_numbers,
    chosen_sites,
    fit_all,
    tasks_of,
)
from pyro_nfvi.calibration._simulation import Simulation
from pyro_nfvi.errors import OptionError
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._nfvi import NFVI


class _Stream(IntEnum):
    """Streams of random numbers apart from those of the simulations."""

    DRAWS = 3


def posterior_sbc(
    fit: Fit,
    *,
    num_simulations: int = 100,
    draws: Mapping[str, Tensor] | None = None,
    observed: str | Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    reweighted: bool = False,
    level: float = 0.01,
    executor: Executor | None = None,
    folder: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
    seed: int | None = None,
    progress: bool = True,
    **options: Any,
) -> PosteriorSBC:
    r"""Posterior simulation-based calibration: are fits right at *these* data?

    Draws :math:`\theta'_i` of the fit to the data :math:`y` replicate them,
    :math:`y'_i \sim p(y' \mid \theta'_i)`, and the model is fitted anew to both together. A draw of
    the posterior that made new data is a draw of the posterior given these too,

    .. math:: \theta' \sim p(\theta \mid y),\ y' \sim p(y' \mid \theta')
        \quad\Rightarrow\quad \theta' \mid y', y \sim p(\theta \mid y, y'),

    so :math:`p_i = \Pr_q(\theta < \theta'_i \mid y, y'_i)` is uniform where fits are right. The
    tests are those of :func:`vsbc`; unlike these simulations those here stay where the data are,
    and the prior may be vague or improper. A fit that misses a mode of the posterior draws no
    :math:`\theta'` there: that stays unseen.

    Covariates, and whatever else the model is given, are the same for the replicate. A discrete
    site that is summed out is drawn anew for it.

    Args:
        fit: A fit that has its model.
        num_simulations: Replicates to draw and to fit. At the default level 100 see sds of one
            number that are half of what they should be in more than 95 % of runs.
        draws: Draws of the posterior by another method, ``(n, *shape)`` for every latent site, of
            which ``num_simulations`` are taken: ``fit.mcmc().get_samples(deterministic=True)``,
            say. None takes the fit's own.
        observed: Names of the sites that are replicated; None for all that are observed. Those
            that are left out are data all the same.
        sites: Which sites to judge: all continuous latent ones (None), or names, deterministic
            sites among them.
        reweighted: Take draws of the fit and p under smoothed importance weights: whether
            they repair the fits.
        level: Largest chance of a false alarm over all numbers and both tests (Bonferroni).
        executor: Where the fits run, as for :func:`pyro_nfvi.map_fits`; None is processes of this
            machine.
        folder: Where results are kept, as for :func:`pyro_nfvi.map_fits`.
        num_workers: Processes; as many as there are cores by default.
        seed: Same seed, same result, however many workers there are; None draws one.
        progress: Show a bar.
        options: How to fit, as for :class:`NFVI`: those that ``fit`` was made with.

    Returns:
        Probabilities, tests and every fit, with ``.summary()``, ``.plot()``, ``.verdict`` and
        recalibrated ``.intervals(fit)``.

    Raises:
        NotSetUpError: The fit was loaded without its model.
        ModelError: No data can be replicated (no observed site that has a sampler, a subsampling
            plate, a scaled site, trained parameters), a replicate is not finite, or every fit
            failed.
        OptionError: An option that cannot be used, or a fit of rows of plates.
        FileError: The folder cannot be written to.

    Cost:
        ``num_simulations`` fits to twice the data, divided over the workers.

    Source: Säilynoja, Schmitt, Bürkner & Vehtari 2025, arXiv:2502.03279, section 3.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> import pyro_nfvi as nfvi
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> how = dict(guide="affine", max_steps=50, engine="eager", explore="off")
        >>> fit = nfvi.NFVI(model, seed=0, progress=False, **how).run(torch.zeros(5))
        >>> found = nfvi.posterior_sbc(
        ...     fit, num_simulations=3, num_workers=1, seed=0, progress=False, **how
        ... )
        >>> found.p["mu"].shape, found.verdict  # a verdict takes 20 or more
        (torch.Size([3]), 'not known')
    """
    refuse_inside("posterior_sbc")
    begin = time.monotonic()
    if not isinstance(fit, Fit):
        raise OptionError(
            f"fit is a Fit, as NFVI(model).run(data) returns it; got a {type(fit).__name__}."
        )
    log_joint = fit.require_model()
    check_numbers(num_simulations, level, num_workers, seed)
    check_options(options)
    check_executor(executor)
    home = None if folder is None else ResultsFolder.open(folder)
    NFVI(log_joint.model, **options)  # checks its own options before any work is done
    base = fresh_seed() if seed is None else seed
    truths = _truths(fit, draws, num_simulations, base, reweighted=reweighted)
    latents = tuple(fit.latent.sites)
    held = [{name: truth[name] for name in latents} for truth in truths]
    replicator = Replicator(log_joint.model, fit.args, fit.kwargs, observed, held[0])
    seeds = [fold_in(base, index) for index in range(num_simulations)]
    drawn = [
        Simulation(truth, replicator.draw(one, number).data)
        for truth, one, number in zip(truths, held, seeds)
    ]
    names = chosen_sites(latents, drawn[0], sites)
    check_finite(
        drawn, "The fit reaches parameters at which the model overflows; make the model safe there."
    )
    found = fit_all(
        tasks_of(drawn, seeds, names, replicator.augment),
        fit.args,
        fit.kwargs,
        options,
        reweighted=reweighted,
        executor=executor,
        home=home,
        num_workers=num_workers,
        title="posterior SBC",
        progress=progress,
    )
    return PosteriorSBC(
        found.p,
        found.truth,
        found.fits,
        num_simulations,
        level,
        reweighted,
        found.interrupted,
        found.num_workers,
        base,
        time.monotonic() - begin,
        found.note,
        found.scores,
    )


def _truths(
    fit: Fit, draws: Mapping[str, Tensor] | None, count: int, seed: int, *, reweighted: bool
) -> list[TensorDict]:
    """Return parameters for each simulation, from draws that are given or from the fit."""
    if draws is None:
        draw = fit.resample if reweighted else fit.sample
        taken = draw(count, seed=fold_in(seed, _Stream.DRAWS), deterministic=True)
        return [{name: value[i] for name, value in taken.items()} for i in range(count)]
    lengths = {len(value) for value in draws.values()}
    shapes = {name: site.shape for name, site in fit.latent.sites.items()}
    wrong = [
        name
        for name, shape in shapes.items()
        if name not in draws or tuple(draws[name].shape[1:]) != tuple(shape)
    ]
    if wrong or len(lengths) != 1 or min(lengths) < count:
        raise OptionError(
            f"draws holds {count} or more draws (num_simulations) of every latent site, a tensor "
            f"(n, *shape) each: {shapes}; got "
            f"{ {name: tuple(value.shape) for name, value in draws.items()} }. As from "
            "fit.mcmc().get_samples(deterministic=True)."
        )
    order = torch.randperm(lengths.pop(), generator=stream(seed, _Stream.DRAWS))
    return [{name: value[i] for name, value in draws.items()} for i in order[:count]]
