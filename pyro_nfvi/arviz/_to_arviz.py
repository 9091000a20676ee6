"""``to_arviz``: draws and a model in, an ArviZ result out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_nfvi._option_names import knows_options
from pyro_nfvi._pyro_model.pyro_state import takes_turn
from pyro_nfvi._random import seeded
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.arviz._chains import as_chains
from pyro_nfvi.arviz._draws import Draws, read
from pyro_nfvi.arviz._gather import Gatherer, report, weight_attrs
from pyro_nfvi.arviz._model_view import ModelView
from pyro_nfvi.arviz._predictions import add_predictions, made_at
from pyro_nfvi.arviz._recipe import RECIPE
from pyro_nfvi.arviz._tree import ORDER, Groups, build_tree, require_arviz
from pyro_nfvi.diagnostics._importance import resample
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.errors import OptionError
from pyro_nfvi.infer._predict import Predictions
from pyro_nfvi.infer._target import Target


@knows_options
@takes_turn
def to_arviz(
    source: Any,
    *,
    model: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 2000,
    reweighted: bool = False,
    groups: Sequence[str] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    predictions: Any = None,
    likelihood: Sequence[str] | None = None,
    seed: int = 0,
) -> Any:
    """Convert a posterior to ArviZ: ``InferenceData`` (ArviZ 0.2x) or ``DataTree`` (1 and later).

    The result has, as far as the model allows: ``posterior`` (deterministic sites included),
    ``posterior_predictive``, ``log_likelihood`` (observed sites and factors in plates, unscaled),
    ``log_prior`` (the latent sites' terms of ``log_p``), ``sample_stats`` with ``log_p`` and
    ``log_q`` of every draw, ``prior``, ``prior_predictive``, ``observed_data`` and
    ``constant_data``. Plates name the dimensions. What could not be made is said in
    ``posterior.attrs["missing_<group>"]``; what is missing of the log likelihood,
    or of a log prior that is there in part, is warned about.

    The draws of a fit are independent: R-hat and ESS say nothing about its quality. Read
    ``sample_stats.attrs["khat"]`` (see :func:`pyro_nfvi.diagnostics.psis`), or convert several
    fits as chains and look at R-hat then: it compares the fits. For leave-one-out with the
    approximation accounted for: ``az.loo_approximate_posterior(data, log_p, log_q)`` with the
    variables of ``sample_stats``.

    Args:
        source: A fit, a guide (of ours or any of Pyro's), a Pyro ``MCMC`` after its run, a dict
            ``{site: draws (S, *shape)}``, or a list of these, which become chains. The model and
            its arguments are those of the first; values of ``pyro.param`` are each fit's own.
        model: The model, where the source does not know it (a dict, a loaded fit), or another
            one with the same latent sites.
        args: Positional arguments of the model; those of the fit or MCMC run by default.
        kwargs: Keyword arguments of the model.
        num_samples: Draws from each fit or guide; MCMC runs and dicts bring their own.
        reweighted: Weigh four times as many draws by Pareto-smoothed importance sampling and
            keep ``num_samples`` of them. ``log_q`` is then the density that the draws have after
            it: ``log_p`` less the estimated log evidence.
        groups: Make these groups only, and make them whatever their size. By default all are
            made but for variables of more than 5e7 numbers, and for ``unconstrained_posterior``
            (the latent sites on the reals), which is made only where it is named here.
        coords: Labels of dimensions, such as ``{"schools": ["Choate", "Deerfield", ...]}``.
        dims: Names of the last dimensions of a variable, such as ``{"beta": ["covariate"]}`` for a
            vector without a plate; ``coords`` may label them.
        predictions: The model at other data, for the groups ``predictions`` and
            ``predictions_constant_data``: a tuple of positional arguments or a dict of keyword
            arguments of the model, which is then run at the draws of ``posterior``; or what
            ``fit.predict(...)`` returned, with draws of its own.
        likelihood: Observed sites and factors that are data, where not all are, or where a factor
            without a plate is; other factors are then of the prior, and not warned about.
        seed: Of all that is drawn. The same seed gives the same result; torch's own random state
            is neither read nor changed.

    Units:
        ``log_p``, ``log_q`` and ``log_likelihood`` in nats; ``log_p`` is the log joint of the
        constrained sites in Pyro's measure, so ``log_p - log_q`` is the log importance weight.

    Cost:
        Two runs of the model for all draws and one of the prior, in chunks; a run for each draw
        where the model cannot be vectorised.

    Raises:
        MissingPackageError: ArviZ is not installed.
        OptionError: The source cannot be converted, sources differ, or an option is wrong.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import AutoIAF
        >>> from pyro_nfvi import to_arviz
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0])
        >>> guide = AutoIAF(model).setup(y)
        >>> idata = to_arviz(guide, args=(y,), num_samples=100)
        >>> dict(idata["log_likelihood"]["y"].sizes)
        {'chain': 1, 'draw': 100, 'data': 3}
        >>> sorted(idata["sample_stats"].data_vars)
        ['log_p', 'log_q']
    """
    require_arviz()
    return build_tree(
        collect(
            source,
            model=model,
            args=args,
            kwargs=kwargs,
            num_samples=num_samples,
            reweighted=reweighted,
            groups=groups,
            coords=coords,
            dims=dims,
            predictions=predictions,
            likelihood=likelihood,
            seed=seed,
        )
    )


@takes_turn
def collect(
    source: Any,
    *,
    model: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 2000,
    reweighted: bool = False,
    groups: Sequence[str] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    predictions: Any = None,
    likelihood: Sequence[str] | None = None,
    seed: int = 0,
) -> Groups:
    """Do all of :func:`to_arviz` but the last step, which needs ArviZ."""
    num_samples, seed = whole("num_samples", num_samples), seed_number(seed) or 0
    unknown = sorted(set(groups or ()) - set(ORDER))
    if unknown:
        raise OptionError(f"groups may name {', '.join(ORDER)}; got {unknown[0]!r}.")
    sources = list(source) if isinstance(source, (list, tuple)) else [source]
    if not sources:
        raise OptionError("to_arviz was given an empty list.")
    args = tuple(args) if isinstance(args, (list, tuple)) else (args,)
    count = num_samples * (RECIPE.pool_per_draw if reweighted else 1)
    parts = []
    for number, one in enumerate(sources):
        with _scope(one), seeded(seed, "to_arviz: draws", number):
            parts.append(read(one, count, model=model, args=args, kwargs=dict(kwargs or {})))
    _check_alike(parts)
    made: list[Groups] = []
    missing: dict[str, str] = {}
    remarks: list[str] = []
    subsample: Mapping[str, Tensor] | None = None
    for number, (one, part) in enumerate(zip(sources, parts)):
        # The first knows the model; each is evaluated with the parameters that it trained.
        part.model, part.args, part.kwargs = parts[0].model, parts[0].args, parts[0].kwargs
        with _scope(one), seeded(seed, "to_arviz: model", number):
            view, reason = _view(part, subsample)
            log_p = None
            if reweighted:
                if view is None:
                    raise OptionError(f"reweighted=True needs the model at work, but {reason}.")
                part, scores = _reweight(part, view, num_samples)
                log_p = scores[None]
            gatherer = Gatherer(
                part, view, reason, groups, parts=len(parts), prior=not made, likelihood=likelihood
            )
            made.append(gatherer.run(log_p))
            remarks += gatherer.remarks
            if predictions is not None and not isinstance(predictions, Predictions):
                if view is None:
                    raise OptionError(f"predictions=... needs the model at work, but {reason}.")
                new = made_at(view, gatherer.flat | gatherer.discrete, predictions)
                add_predictions(made[-1], new, view, gatherer.chains)
        missing = {**gatherer.missing, **missing}
        subsample = None if view is None else view.subsample
    found = as_chains(made)
    if isinstance(predictions, Predictions):
        add_predictions(found, predictions, view)
    has_terms = not (parts[0].model is None or isinstance(parts[0].model, Target))
    report(
        missing,
        groups,
        made=found.variables,
        has_model=has_terms,
        remarks=remarks,
    )
    _name_dims(found, dims or {})
    for dim, labels in (coords or {}).items():
        found.coords[dim] = np.asarray(labels)
    _check_coords(found, coords or {})
    return found


def _scope(source: Any) -> AbstractContextManager[None]:
    """Let the model see what a fit trained for its own parameters."""
    scope = getattr(source, "model_scope", None)
    return nullcontext() if scope is None else scope()


def _view(draws: Draws, subsample: Mapping[str, Tensor] | None) -> tuple[ModelView | None, str]:
    """The model at work, or why it is not."""
    if draws.model is None:
        return None, "there is no model; pass model=..., args=..., kwargs=..."
    first = {name: value[0, 0] for name, value in draws.values.items()}
    try:
        return ModelView(draws.model, draws.args, draws.kwargs, first, subsample), ""
    except Exception as error:  # whatever the user's model raises is a reason, not a crash
        lines = str(error).strip().splitlines() or [""]
        reason = f"the model could not be run at the draws: {type(error).__name__}: {lines[0]}"
        if not draws.args and not draws.kwargs:
            reason += " (it was called without arguments: pass args=..., kwargs=...)"
        return None, reason


def _check_alike(parts: Sequence[Draws]) -> None:
    first = {name: tuple(value.shape[1:]) for name, value in parts[0].values.items()}
    for index, part in enumerate(parts[1:], 1):
        other = {name: tuple(value.shape[1:]) for name, value in part.values.items()}
        if other != first:
            raise OptionError(
                "Chains need the same sites with the same shapes and equally many draws; the first "
                f"source has {first}, number {index + 1} has {other}."
            )


def _reweight(draws: Draws, view: ModelView, num_samples: int) -> tuple[Draws, Tensor]:
    """Resample one source's draws by their smoothed weights; also return their ``log_p``."""
    if draws.log_q is None or len(draws.log_q) != 1:
        raise OptionError(
            "reweighted=True needs draws with a known density, from a fit or a guide; "
            f"{draws.attrs.get('source', 'this source')} has none."
        )
    if view.mini_batch:
        raise OptionError(
            f"reweighted=True needs the log joint of all data, and here it is that of one "
            f"mini-batch ({view.mini_batch}), whose weights are noise. Give the model with the "
            "whole plate: to_arviz(fit, model=whole_model, reweighted=True)."
        )
    flat = {name: value[0] for name, value in draws.values.items()}
    log_p = torch.cat([part.log_p for part in view.evaluate(flat, deterministic=False)])
    log_q = draws.log_q[0]
    log_w = (log_p - log_q).double()
    log_w = torch.where(log_w < torch.inf, log_w, -torch.inf)
    kept = resample(psis(log_w).log_weights, num_samples)
    attrs = {**draws.attrs, **weight_attrs(log_w[None]), "reweighted": 1}
    return (
        Draws(
            {name: value[kept][None] for name, value in flat.items()},
            (log_p[kept] - attrs["log_evidence"])[None],
            draws.model,
            draws.args,
            draws.kwargs,
            attrs=attrs,
        ),
        log_p[kept],
    )


#: Groups whose variables have the dimensions of one number for each term of the density.
_TERMS = ("log_likelihood", "log_prior", "unconstrained_posterior")


def _name_dims(found: Groups, dims: Mapping[str, Sequence[str]]) -> None:
    """Name the last dimensions of variables as the user does."""
    for name, given in dims.items():
        names = (given,) if isinstance(given, str) else tuple(given)
        held = {
            group: variables[name]
            for group, variables in found.variables.items()
            if name in variables and group not in _TERMS
        }
        if not held:
            raise OptionError(f"dims names {name!r}, which is no variable of the result.")
        for group, (old, array) in held.items():
            own = (*old[: len(old) - len(names)], *names)
            if len(names) > len(old) or len(set(own)) < len(own):
                raise OptionError(
                    f"dims gives {name!r} {list(names)}; it needs at most {len(old)} names in "
                    f"{group}, all different, in place of {list(old)}."
                )
            found.variables[group][name] = (own, array)


def _check_coords(found: Groups, coords: Mapping[str, Sequence[Any]]) -> None:
    sizes: dict[str, set[int]] = {}  # a plate may have another size in the predictions
    for variables in found.variables.values():
        for dims, array in variables.values():
            for dim, size in zip(dims, array.shape[len(array.shape) - len(dims) :]):
                sizes.setdefault(dim, set()).add(size)
    for dim, labels in coords.items():
        if dim not in sizes:
            raise OptionError(f"coords names {dim!r}; the dimensions are {sorted(sizes)}.")
        if len(labels) not in sizes[dim]:
            entries = " or ".join(map(str, sorted(sizes[dim])))
            raise OptionError(
                f"coords gives {len(labels)} labels for {dim!r}, which has {entries} entries."
            )
