"""Cross-validation by refits: leave-one-out where weights fail, and k-fold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pyro_nfvi._map_fits.fit_table import FitTable
from pyro_nfvi._map_fits.map_fits import map_fits
from pyro_nfvi._map_fits.recipe import MAP_FITS
from pyro_nfvi._map_fits.row_splits import RowSplit, split_rows
from pyro_nfvi._map_fits.spec import FitSpec
from pyro_nfvi._option_names import knows_options
from pyro_nfvi._processes.tasks import Executor
from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._pyro_model.model_run import is_observed
from pyro_nfvi._user_warning import warn
from pyro_nfvi.arviz._elpd import Observations, elpd_data, terms_of
from pyro_nfvi.diagnostics._verdict import BAD
from pyro_nfvi.errors import ConversionWarning, ModelError, OptionError


@knows_options
def loo_kfold(
    spec: FitSpec,
    num_folds: int = 10,
    *,
    rows: Sequence[int | str] | None = None,
    from_prior: Sequence[str] | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    folder: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> Any:
    r"""Predictive density of each part of the rows by a fit to the others, as ArviZ has it.

    .. math:: \mathrm{elpd} = \sum_k \sum_{i \in k} \log \frac1S \sum_s p(y_i \mid \theta_s), \qquad
        \theta_s \sim q_{-k}

    One more fit, to all rows, gives the effective number of parameters. Fits run side by side, as
    those of :func:`pyro_nfvi.map_fits`, and their draws count as they are, without weights.

    Args:
        spec: Model, data and options: ``FitSpec(model, (x, y), options={"guide": "iaf*2"})``.
        num_folds: Number of parts K; as many as there are rows leave one out at a time, and the
            result is then of the kind ``loo``.
        rows: Arguments with the rows in their first dimension, as of ``FitSpec.k_fold``.
        from_prior: Latents of held-out rows, as of ``FitSpec.k_fold``.
        seed: Seed of the parts.
        executor: Where to run, as of ``map_fits``.
        folder: Where results are kept, as of ``map_fits``.
        num_workers: Processes, as of ``map_fits``.
        progress: Show a bar.

    Returns:
        ArviZ's ``ELPDData``, which ``az.compare`` takes; ``elpd_i`` in the order of the rows.

    Units:
        Nats.

    Cost:
        K + 1 fits, divided over the workers.

    Raises:
        OptionError: Rows that are not clear, or more folds than rows.
        ModelError: A fit failed, or the model does not split into rows.

    Warns:
        ConversionWarning: Fits that are not to be trusted are among them.

    Source: Vehtari, Gelman & Gabry 2017, Statistics and Computing 27(5), sections 2.1 and 2.4
    (arXiv:1507.04544).

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> import pyro_nfvi as nfvi
        >>> from pyro_nfvi.arviz import loo_kfold
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> quick = {"guide": "affine", "max_steps": 50, "engine": "eager", "explore": "off"}
        >>> spec = nfvi.FitSpec(model, (torch.tensor([0.2, -1.0, 0.5, 1.3]),), options=quick)
        >>> found = loo_kfold(spec, 2, num_workers=1, progress=False)
        >>> found.elpd_i.shape, bool(found.p > 0)
        ((4,), True)
    """
    parts = _rows(spec, rows)
    folds = spec.k_fold(num_folds, rows=rows, from_prior=from_prior, seed=seed)
    run: dict[str, Any] = {
        "executor": executor,
        "folder": folder,
        "num_workers": num_workers,
        "progress": progress,
    }
    table = map_fits([_whole(spec, parts), *folds], **run)
    inside, outside = _scores(table[:1]), _scores(table[1:])
    _tell_doubts(table)
    alone = len(folds) == parts.count
    return elpd_data(
        Observations(outside, inside, np.zeros(parts.count) if alone else None, ("row",)),
        MAP_FITS.draws,
        num_folds=0 if alone else len(folds),
        approximate=False,
    )


@knows_options
def reloo(
    spec: FitSpec,
    loo: Any = None,
    *,
    threshold: float | None = None,
    rows: Sequence[int | str] | None = None,
    from_prior: Sequence[str] | None = None,
    executor: Executor | None = None,
    folder: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> Any:
    r"""Leave-one-out by refits, of the observations whose weights fail, or of all.

    The term of an observation that is refitted is :math:`\log \frac1S \sum_s p(y_i \mid \theta_s)`
    with draws of a fit to the others.

    Args:
        spec: Model, data and options of the fit.
        loo: Result of :func:`loo_approximate` or :func:`loo_moment_match` of that fit, for one
            observed site with a term for each row. None: every row is left out once.
        threshold: Observations with a k-hat above it are refitted; by default the threshold of
            trust, ``loo.good_k``.
        rows: As of :func:`loo_kfold`.
        from_prior: As of :func:`loo_kfold`.
        executor: As of :func:`loo_kfold`.
        folder: As of :func:`loo_kfold`.
        num_workers: As of :func:`loo_kfold`.
        progress: Show a bar.

    Returns:
        ArviZ's ``ELPDData``; the ``pareto_k`` of an observation that was refitted is 0, as of
        ``az.reloo``.

    Units:
        Nats.

    Cost:
        One fit for each observation above the threshold, or as many as there are rows and one.

    Raises:
        OptionError: ``loo`` has another number of terms than there are rows, or no k-hat.
        ModelError: A fit failed, or the model does not split into rows.

    Warns:
        ConversionWarning: Fits that are not to be trusted are among them.

    Source: Vehtari, Gelman & Gabry 2017, Statistics and Computing 27(5), section 2.1.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> import pyro_nfvi as nfvi
        >>> from pyro_nfvi.arviz import loo_approximate, reloo
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor([0.2, -1.0, 0.5, 12.0])
        >>> quick = {"guide": "affine", "max_steps": 50, "engine": "eager", "explore": "off"}
        >>> spec = nfvi.FitSpec(model, (y,), options=quick)
        >>> fit = nfvi.NFVI(model, seed=0, progress=False, **quick).run(y)
        >>> loo = loo_approximate(fit.to_arviz(num_samples=500))
        >>> found = reloo(spec, loo, num_workers=1, progress=False)
        >>> bool(found.pareto_k[3] == 0)
        True
    """
    parts = _rows(spec, rows)
    run: dict[str, Any] = {
        "executor": executor,
        "folder": folder,
        "num_workers": num_workers,
        "progress": progress,
    }
    if loo is None:
        return loo_kfold(spec, parts.count, rows=rows, from_prior=from_prior, **run)
    before, num_draws, good = terms_of(loo)
    if before.pareto_k is None or before.elpd.size != parts.count:
        raise OptionError(
            f"loo needs a term and a k-hat for each of the {parts.count} rows of the data; it has "
            f"{before.elpd.size} terms{'' if before.pareto_k is not None else ' without k-hat'}. "
            "Take loo_approximate of the fit, and rows=[...] for the arguments that have rows."
        )
    _one_site(spec)
    limit = good if threshold is None else float(threshold)
    bad = np.flatnonzero(before.pareto_k.reshape(-1) > limit)
    if not len(bad):
        return elpd_data(before, num_draws)
    # One group for each row that is left out; the group of all others is not fitted.
    labels = torch.full((parts.count,), -1)
    labels[bad] = torch.as_tensor(bad)
    every = spec.leave_group_out(labels, rows=rows, from_prior=from_prior)
    table = map_fits([one for one in every if one.labels["group"] != -1], **run)
    _tell_doubts(table)
    elpd, khats = before.elpd.copy(), before.pareto_k.copy()
    elpd.reshape(-1)[bad] = _scores(table)
    khats.reshape(-1)[bad] = 0.0
    return elpd_data(replace(before, elpd=elpd, pareto_k=khats), num_draws)


def _rows(spec: FitSpec, rows: Sequence[int | str] | None) -> RowSplit:
    if not isinstance(spec, FitSpec):
        raise OptionError(
            f"Refits need a FitSpec, the model with its data and options: FitSpec(model, (y,)); "
            f"got {type(spec).__name__}."
        )
    return split_rows(spec.model, spec.args, spec.kwargs, rows)


def _one_site(spec: FitSpec) -> None:
    """Refuse a model whose rows have several sites, of which ``loo`` has one."""
    nodes = prior_trace(spec.model, spec.args, dict(spec.kwargs)).nodes.items()
    names = [name for name, site in nodes if is_observed(site, ())]
    if len(names) > 1:
        raise OptionError(
            f"Refits score the observed sites of a row together ({', '.join(names)}), and loo is "
            "of one of them. Leave every row out: reloo(spec), or loo_kfold(spec)."
        )


def _whole(spec: FitSpec, parts: RowSplit) -> FitSpec:
    """Specify the fit to all rows, scored on these with their own latents."""
    return replace(spec, held_out=parts.held_out(torch.arange(parts.count), ()))


def _scores(table: FitTable) -> np.ndarray:
    """Log densities of the held-out rows, in the order of the rows."""
    for row in table:
        if row.error or row.lpd is None:
            raise ModelError(
                f"A refit is not done, and without it the sum is not that of all rows: {row.error}"
            )
        if bool(row.lpd.isnan().any()):
            raise ModelError(
                "The log density of the data does not split into rows, or is NaN at one of them, "
                "so that there is none for each row."
            )
    index = torch.cat([row.spec.held_out.index for row in table if row.spec.held_out is not None])
    lpd = torch.cat([row.lpd for row in table if row.lpd is not None])
    return lpd[index.argsort()].numpy()


def _tell_doubts(table: FitTable) -> None:
    doubted = [row for row in table if row.record.verdict == BAD]
    if doubted:
        warn(
            f"{len(doubted)} of {len(table)} fits are judged '{BAD}', and so are the terms "
            "of the rows that they leave out. Fit with another guide or for longer: "
            "FitSpec(..., options={...}).",
            ConversionWarning,
        )
