"""Checks of a model before it is fitted; every error names the site and the cure."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_nfvi._pyro_model.constraints import support_of, support_spec
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.missing_data import mask_of
from pyro_nfvi._pyro_model.model_run import (
    ModelRun,
    check_sites,
    is_deterministic,
    is_observed,
)
from pyro_nfvi._pyro_model.recipe import MODELS
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import ModelError, ModelWarning, OptionError


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pyro's warnings about non-finite sites where an error of ours says more."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered (NaN|[+-]?inf)")
        yield


def _samples(trace: Trace) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield name, site


def nonfinite_sites(trace: Trace) -> list[str]:
    """Names of the sites whose value or log density is not finite, in trace order."""
    found = []
    for name, site in _samples(trace):
        bad = not bool(torch.isfinite(site["log_prob"]).all())
        # A deterministic site may score zero, so that only its value can tell.
        if not bad and is_deterministic(site) and torch.is_tensor(site["value"]):
            bad = bool(torch.isnan(site["value"]).any())
        if bad:
            found.append(name)
    return found


def check_model(user: str, model: Any) -> None:
    """Refuse what cannot be run as a Pyro model.

    Args:
        user: Name of what needs the model.
        model: The model.

    Raises:
        OptionError: It cannot be called, is a class, a generator or a coroutine.
    """
    if not callable(model):
        raise OptionError(
            f"{user} needs a Pyro model to call; got {type(model).__name__}. Pass the function "
            "itself, NFVI(model).run(data), and not what it returned."
        )
    if isinstance(model, type):
        raise OptionError(
            f"{user} needs a Pyro model to call; got the class {model.__name__}. Make an instance "
            "of it first."
        )
    if inspect.isgeneratorfunction(model) or inspect.iscoroutinefunction(model):
        raise OptionError(
            f"{user} needs a Pyro model to call; a generator or coroutine, with `yield` or "
            "`async`, runs nothing when it is called. Write it as a plain function."
        )


def check_data(
    trace: Trace,
    latent: LatentSpace,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Refuse NaN in the data, and say so if there is no data at all.

    A density without data is a fair thing to fit (a funnel, a prior), so it is only warned about;
    where an argument is None, the data has been forgotten.

    Raises:
        ModelError: An observed value is NaN where it counts, or there is no data and an argument
            that could have brought it is None.

    Needs no log densities, since scoring NaN is already an error where Pyro validates.
    """
    observed = {n: site for n, site in _samples(trace) if is_observed(site, latent.sites)}
    for name, site in observed.items():
        value = site["value"]
        if not torch.is_tensor(value) and not isinstance(value, int | float):
            raise ModelError(
                f"The observed site {name!r} has a value of type {type(value).__name__}. Pass data "
                "as tensors: torch.as_tensor(data)."
            )
        if (
            torch.is_tensor(value)
            and value.is_floating_point()
            and bool(torch.isnan(value).any())
            and not _nan_is_meant(site)
        ):
            count = int(torch.isnan(value).sum())
            raise ModelError(
                f"The observed site {name!r} has {count} NaN of {value.numel()} values"
                f"{_first_row(trace, site)}. Drop them, "
                "or hide them: pyro.sample(..., obs=..., obs_mask=...) makes them latent, "
                "pyro.poutine.mask leaves them out."
            )
    if not observed:
        names = ", ".join(latent.sites)
        forgotten = _missing_argument(model, args, kwargs)
        if forgotten is not None:
            raise ModelError(
                f"There is no data: the model has no observed site, and its argument {forgotten} "
                "is None. Pass the data, run(..., data); obs=None makes a site latent, so that "
                f"{names} would be drawn from the prior. If the prior is what you want to fit, "
                "give the arguments inside: NFVI(lambda: model(...)).run()."
            )
        warn(
            "The model has no observed site, so the fit will be of the prior of "
            f"{names}. If that is not meant, pass the data: run(data), with "
            "pyro.sample(..., obs=data) in the model (obs=None makes a site latent). If the "
            "density is meant as it stands, pyro.factor('no_data', torch.zeros(())) says so.",
            ModelWarning,
        )


def _first_row(trace: Trace, site: Mapping[str, Any]) -> str:
    """Name the rows of plates in which the first NaN of a site stands."""
    value = site["value"]
    place = torch.isnan(value).nonzero()[0]
    batch = value.dim() - site["fn"].event_dim
    found = []
    for frame in sorted(
        (frame for frame in site["cond_indep_stack"] if frame.dim is not None),
        key=lambda frame: frame.dim,
    ):
        axis = batch + frame.dim
        if axis < 0 or value.shape[axis] != int(frame.size):
            continue
        row = int(place[axis])
        index = trace.nodes[frame.name]["value"] if frame.name in trace.nodes else None
        number = row if index is None else int(torch.as_tensor(index)[row])
        found.append(f"row {number} of the plate {frame.name!r}")
    return f", the first in {' and '.join(found)}" if found else ""


def _missing_argument(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """Name an argument of the model that is None, given or by default; None if there is none."""
    call = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        bound = inspect.signature(call).bind(*args, **kwargs)
        bound.apply_defaults()
        found = dict(bound.arguments)
    except (TypeError, ValueError):
        found = {f"number {index}": value for index, value in enumerate(args)} | dict(kwargs)
    for name, value in [*found.items()]:
        if isinstance(value, tuple):
            found |= {f"{name}[{index}]": inner for index, inner in enumerate(value)}
        elif isinstance(value, dict):
            found |= value
    return next((repr(name) for name, value in found.items() if value is None), None)


def _nan_is_meant(site: Mapping[str, Any]) -> bool:
    """NaN under a mask, or in a distribution that can score it, is no fault."""
    mask = mask_of(site)
    if mask is not None:
        return not bool((torch.isnan(site["value"]) & mask).any())
    try:
        return bool(torch.isfinite(site["fn"].log_prob(site["value"])).all())
    except ValueError:  # the distribution validates, and NaN is in no support
        return False


def check_structure(
    trace: Trace, latent: LatentSpace, enumerated: frozenset[str], nesting: int | None = None
) -> None:
    """Refuse a model whose sites are not those of the latent space.

    ``nesting`` is that of an enumerated trace: dimensions left of it are those of discrete values.

    Raises:
        ModelError: A latent site is missing, new, of another shape, or has a support that
            depends on other latents.
    """
    check_sites(trace, latent, enumerated)
    for name, record in latent.sites.items():
        site = trace.nodes[name]
        shape = _batch_shape(site, len(record.batch_shape), nesting)
        shape += tuple(site["fn"].event_shape)
        if shape != record.shape:
            raise ModelError(
                f"The latent site {name!r} has shape {shape} in this run of the model, and had "
                f"{record.shape} when the guide was set up. A flow needs fixed shapes: pass "
                "arguments of the same sizes, or build a new guide."
            )
        found = support_of(site["fn"])
        if not _close(support_spec(found), support_spec(record.support)):
            raise ModelError(
                f"The support of the latent site {name!r} depends on other latents (it was "
                f"{record.support}, now {found}), so that no fixed map onto it "
                "exists. Draw a site of fixed support and rescale it, for instance "
                "u ~ Uniform(0, 1) and x = pyro.deterministic('x', low + (high - low) * u)."
            )


def _batch_shape(site: Mapping[str, Any], length: int, nesting: int | None) -> tuple[int, ...]:
    """Batch shape of a site, without the dimensions of discrete values that it depends on."""
    shape = tuple(site["fn"].batch_shape)
    if nesting is None or len(shape) <= nesting:
        return shape
    shape = shape[len(shape) - nesting :]
    while len(shape) > length and shape[0] == 1:
        shape = shape[1:]
    return shape


def _close(one: Any, other: Any) -> bool:
    """Compare two descriptions of supports: numbers up to rounding, and up to what repeats them.

    A bound is repeated for each value of a discrete site that another parameter depends on.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[k], other[k]) for k in one)
    if isinstance(one, float | list) and isinstance(other, float | list):
        try:
            first, second = torch.broadcast_tensors(
                torch.tensor(one, dtype=torch.double), torch.tensor(other, dtype=torch.double)
            )
        except RuntimeError:  # sizes of which neither repeats the other
            return False
        return torch.allclose(first, second, rtol=1e-5, atol=1e-8)
    return bool(one == other)


def check_same_numbers(first: Trace, second: Trace) -> None:
    """Refuse a model whose own code draws random numbers, from two runs at one point.

    Raises:
        ModelError: A site scored differently.
    """
    for name, site in _samples(first):
        one, other = site["log_prob"], second.nodes[name]["log_prob"]
        if one.shape != other.shape or not torch.equal(
            torch.nan_to_num(one), torch.nan_to_num(other)
        ):
            raise ModelError(
                f"Two runs of the model at the same latent values score the site {name!r} "
                "differently: the model draws random numbers outside of pyro.sample (torch.randn, "
                "dropout, a shuffled data set, pyro.infer.reparam.ConjugateReparam ...). Draw them "
                "once outside and pass them as arguments, or make them latent sites; a "
                "ConjugateReparam is left out, since the guide learns what it computes."
            )


def check_discrete_plates(
    run: ModelRun, values: Mapping[str, Tensor], subsample: Mapping[str, Tensor]
) -> None:
    """Refuse a site outside of a plate that depends on a discrete site inside.

    Enumeration gives all rows of a plate the same discrete value at a time, so that such a site
    would be scored at no value that occurs: Pyro's TraceEnum_ELBO warns of what looks so. Here the
    model is run with one discrete site changed, and the sites are named whose density changes.

    Raises:
        ModelError: Names both sites and the plate.
    """
    first = run.trace(dict(values), subsample, enumerate_sites=False)
    held = {name: first.nodes[name]["value"] for name in first.nodes if name in run.enumerated}
    inside = {name: _plates(first.nodes[name]) for name in held}
    for name in [name for name in held if inside[name]][: MODELS.most_discrete]:
        other = {**held, name: _next_value(first.nodes[name])}
        second = run.trace({**values, **other}, subsample, enumerate_sites=False)
        for found, site in _samples(second):
            outside = inside[name] - _plates(site)
            if found == name or not outside or found not in first.nodes:
                continue
            one, two = site["unscaled_log_prob"], first.nodes[found]["unscaled_log_prob"]
            if not torch.equal(torch.nan_to_num(one), torch.nan_to_num(two)):
                raise ModelError(
                    f"The site {found!r} depends on the discrete site {name!r}, which lies in the "
                    f"plate {sorted(outside)[0]!r}, and is outside of that plate. The rows of the "
                    f"plate cannot be summed out one by one then. Put {found!r} into the plate, "
                    "or make the plate sequential: for i in pyro.plate(...)."
                )


def _plates(site: Mapping[str, Any]) -> set[str]:
    """Names of the vectorised plates of more than one row."""
    return {f.name for f in site["cond_indep_stack"] if f.vectorized and int(f.size) > 1}


def _next_value(site: Mapping[str, Any]) -> Tensor:
    """Every entry of a discrete site's value replaced by the next of its support."""
    fn, value = site["fn"], site["value"]
    support = fn.enumerate_support(expand=False)
    support = support.reshape(len(support), *fn.event_shape)
    event = tuple(range(-len(fn.event_shape), 0))
    same = value.unsqueeze(0) == support.reshape(
        len(support), *(1,) * (value.dim() - len(fn.event_shape)), *fn.event_shape
    )
    index = (same.all(event) if event else same).long().argmax(0)
    return support[(index + 1) % len(support)]


def check_finite(trace: Trace, log_p: Tensor, row: str = "") -> None:
    """Refuse an infinite or NaN log joint at the initial point.

    Args:
        trace: The run there.
        log_p: Its log joint.
        row: The row at fault of the first site, as a clause.

    Raises:
        ModelError: Names the sites at which it is not finite.
    """
    if bool(torch.isfinite(log_p)):
        return
    found = nonfinite_sites(trace)
    parts = [f"{name!r} ({float(trace.nodes[name]['log_prob'].sum()):g})" for name in found]
    raise ModelError(
        f"The log joint at the initial point is {float(log_p):g}; not finite at the sites "
        f"{', '.join(parts) or '(none alone: the sum overflows)'}{row}. Check the data against the "
        "likelihood, or start elsewhere: AutoFlow(model, init_loc_fn=init_to_value(values=...)) "
        "or init_to_feasible."
    )
