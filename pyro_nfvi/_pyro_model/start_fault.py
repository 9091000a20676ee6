"""Faults of initial points at which a model has no finite log joint."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_nfvi._error_text import describe_error, place_of
from pyro_nfvi._pyro_model.latent_space import LatentSpace, is_point_mass
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.missing_data import Complete, fillings
from pyro_nfvi._pyro_model.model_checks import check_data, nonfinite_sites, quiet
from pyro_nfvi._pyro_model.model_run import ModelRun, is_deterministic
from pyro_nfvi._pyro_model.recipe import MODELS
from pyro_nfvi.errors import ModelError


@dataclass(frozen=True)
class StartFault:
    """The fault of one initial point.

    Attributes:
        site: The first site at fault; empty where none could be named.
        reason: A sentence without its full stop.
        others: Further sites at fault.
    """

    site: str
    reason: str
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.reason

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites at fault."""
        return (self.site, *self.others) if self.site else self.others

    @classmethod
    def of(cls, error: BaseException) -> StartFault:
        r"""Describe an exception of the model at a point; its site where Pyro names it.

        Example:
            >>> StartFault.of(ValueError("Error while computing log_prob at site 'y':\nbad rate"))
            StartFault(site='y', reason='ValueError: bad rate', others=())
        """
        named = re.search(r"log_prob at site '([^']*)':\n?", str(error))
        if named is None or not str(error)[named.end() :].strip():
            text = describe_error(error)
            place = place_of(error)
            text += place if place not in text else ""
        else:
            text = f"{type(error).__name__}: {str(error)[named.end() :].strip().splitlines()[0]}"
        # Values of tensors differ from point to point; what was expected does not.
        reason = text.split(", but found invalid values")[0][: MODELS.text].rstrip(": .")
        return cls(named[1] if named else "", reason)


def start_fault(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    latent: LatentSpace,
) -> StartFault | None:
    """Evaluate the log joint at ``latent.init_loc``, with the user's own validation.

    Enumerated discrete sites are summed out. Of sites that the guide does not see (hidden from it,
    drawn anew in each run), an infinite density proves nothing and is let pass.

    Returns:
        The fault; None where the log joint is finite.

    Raises:
        ModelError: The data itself is NaN.

    Cost:
        One run of the model; two more where discrete sites are summed out.
    """
    devices = [latent.init_loc.device.index] if latent.init_loc.is_cuda else []
    with torch.random.fork_rng(devices=devices), quiet():
        try:
            with torch.no_grad():
                return _fault(model, args, kwargs, latent)
        except RuntimeError as error:
            if isinstance(error, ModelError):
                raise
            return _fault(model, args, kwargs, latent)  # a model that differentiates inside itself


def _fault(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    latent: LatentSpace,
) -> StartFault | None:
    values, ladj = latent.constrain(latent.init_loc)
    with poutine.block():
        held = poutine.trace(poutine.condition(model, data=values))
        trace = held.get_trace(*args, **kwargs)
        missing = fillings(trace)
        if missing:  # NaN under a mask
            with Complete(missing):
                trace = held.get_trace(*args, **kwargs)
    try:
        trace.compute_log_prob()
    except (ValueError, RuntimeError, ArithmeticError) as error:
        _refuse_nan_data(trace, latent, model, args, kwargs)
        return StartFault.of(error)
    drawn = {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not is_point_mass(site)
        and not site_is_subsample(site)
        and name not in latent.sites
    }
    scored = [site["log_prob"] for site in trace.nodes.values() if "log_prob" in site]
    if all(bool(torch.isfinite(one).all()) for one in [*scored, ladj]):
        return None
    bad = nonfinite_sites(trace)  # deterministic sites among them, which may tell the cause
    if drawn:
        enumerated = frozenset(
            n for n, site in drawn.items() if site["infer"].get("enumerate") == "parallel"
        )
        bad = _summed(model, args, kwargs, latent, enumerated, trace, missing, bad)
        if not bad:
            return None
    _refuse_nan_data(trace, latent, model, args, kwargs)
    reasons = [f"the log density of {n!r} is {_number(trace.nodes[n])}" for n in bad[:1]]
    reason = reasons[0] if reasons else "the log-determinant of the constraints is not finite"
    return StartFault(bad[0] if bad else "", reason, tuple(bad[1:]))


def _summed(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    latent: LatentSpace,
    enumerated: frozenset[str],
    trace: Any,
    missing: Mapping[str, Tensor],
    bad: list[str],
) -> list[str]:
    """Sites that stay at fault once discrete sites are summed out: a draw of them proves little."""
    nan = [n for n in bad if bool(torch.isnan(trace.nodes[n]["log_prob"]).any())]
    own = [n for n in bad if n in latent.sites]
    if nan or own or not enumerated:
        return [*dict.fromkeys([*nan, *own])]
    run = ModelRun(
        model,
        args,
        kwargs,
        latent,
        max_plate_nesting=LogJoint._nesting(trace),
        enumerated=enumerated,
        missing=missing,
    )
    subsample = {n: s["value"] for n, s in trace.nodes.items() if site_is_subsample(s)}
    try:
        total = run.scalar(latent.init_loc, subsample)[0]
    except (ValueError, RuntimeError, NotImplementedError):  # not a model that can be summed out
        return []
    return [] if bool(torch.isfinite(total)) else bad


def _refuse_nan_data(
    trace: Any,
    latent: LatentSpace,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Data that is NaN, or was forgotten, is no fault of the point."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_data(trace, latent, model, args, kwargs)


def _number(site: Mapping[str, Any]) -> str:
    """A word for a log density that is not finite: the same for all points of one kind."""
    if is_deterministic(site):
        return "0, and its value NaN"
    log_prob = site["log_prob"]
    if bool(torch.isnan(log_prob).any()):
        return "NaN"
    if bool((log_prob == torch.inf).any()):
        return "+inf"
    return "-inf" if bool((log_prob == -torch.inf).any()) else "finite at a value that is not"
