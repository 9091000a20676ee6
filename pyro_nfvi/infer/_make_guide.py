"""The guide of a fit, made from the option ``guide`` of ``NFVI``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoLaplaceApproximation
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import nn

from pyro_nfvi._error_text import describe_error
from pyro_nfvi._pyro_model.latent_space import is_discrete, is_point_mass
from pyro_nfvi.errors import ModelError, OptionError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.guides._pyro_guide import PyroGuide
from pyro_nfvi.guides._vector_guide import VectorGuide
from pyro_nfvi.infer._guide_spec import GAUSSIAN, GuideSpec, baseline
from pyro_nfvi.infer._plate_structure import PlateStructure

#: Flow that ``guide="auto"`` begins with.
AUTO = "iaf*2"


def make_guide(
    guide: GuideSpec | None, model: Callable[..., Any], outer: str
) -> AutoFlow | PyroGuide:
    """Make the guide for a model, a Gaussian for None; ``outer`` is for those that bring none.

    Args:
        guide: Name or formula, flow or guide: what :func:`made_guide` returns.
        model: The model, with discrete sites marked.
        outer: Kind of the affine map outside of a flow.
    """
    if guide is None or guide == GAUSSIAN:
        return AutoFlow(model, None, outer=outer)
    if baseline(guide) is not None:
        return AutoFlow(model, None, outer="full")  # of any number of latents
    if isinstance(guide, AutoFlow | PyroGuide):
        return guide
    if isinstance(guide, str):
        return AutoFlow(model, AUTO if guide == "auto" else guide, outer=outer)
    assert isinstance(guide, Flow)
    # A copy, so that each run starts from the flow that was passed.
    return AutoFlow(model, copy.deepcopy(guide), outer=outer)


@dataclass(frozen=True)
class PlateGuide:
    """A guide of globals and rows, and the reason for it."""

    guide: AutoPlateFlow
    reason: str = "asked for"


def make_plate_guide(
    guide: GuideSpec, model: Callable[..., Any], trace: Trace
) -> PlateGuide | None:
    """Make the guide of globals and rows, where one is asked for or the model asks for it.

    Args:
        guide: What the user passed.
        model: The model, with discrete sites marked.
        trace: One run of it.

    Returns:
        None where the guide is another one.
    """
    if isinstance(guide, str):
        found = PlateStructure.of(trace) if guide == "auto" else None
        if found is None or not found.reason:
            return None
        joint, reason = found.joint, found.reason
        if joint:
            names = ", ".join(map(repr, joint))
            reason = f"{reason}; rows of {names}, which others cross, are with the globals"
        return PlateGuide(AutoPlateFlow(model, joint=joint), reason)
    return PlateGuide(guide) if isinstance(guide, AutoPlateFlow) else None


def made_guide(
    guide: GuideSpec,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> str | AutoFlow | AutoPlateFlow | PyroGuide | Flow:
    """Call what makes a guide of a model, and take guides of Pyro's in; all else stays as it is.

    Args:
        guide: What the user passed.
        model: The model, with discrete sites marked.
        args: Its positional arguments, which a guide written by hand is called with.
        kwargs: Its keyword arguments.

        ModelError: A callable fails both as a guide and as what makes one.
        OptionError: A callable is no guide and makes none.
        OptionError: A callable is no guide and makes none.
    """
    if isinstance(guide, (str, AutoFlow, AutoPlateFlow, Flow)):
        return guide
    made = guide if isinstance(guide, nn.Module) else _called(guide, model, args, kwargs)
    if isinstance(made, (AutoFlow, AutoPlateFlow, Flow)):
        return made
    if isinstance(made, AutoLaplaceApproximation):
        return "laplace"
    return PyroGuide(model, made)


def _called(
    guide: Callable[..., Any],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Return a guide written by hand as it is, and what another callable makes of the model."""
    if isinstance(guide, type):
        return guide(model if issubclass(guide, VectorGuide) else _continuous(model, args, kwargs))
    fault: Exception | None = None
    if _takes(guide, args, kwargs):
        if not _takes(guide, (model,), {}):
            return guide
        try:
            if _draws(guide, args, kwargs):
                return guide
        except Exception as error:  # it takes the model, and got data; or a guide has a fault
            fault = error
    try:
        made = guide(model)
    except Exception as error:
        if fault is None:
            raise
        raise ModelError(
            f"The guide fails with the model's arguments ({describe_error(fault)}), and with the "
            f"model itself ({describe_error(error)}). Mend it: a guide is called as the model is; "
            "what makes a guide takes the model."
        ) from fault
    if not isinstance(made, (AutoGuide, Flow)):
        raise OptionError(
            f"guide returned {type(made).__name__}; a callable guide draws the model's latent "
            "sites by name, with the model's arguments, or takes the model and returns a guide, "
            "such as lambda model: AutoPlanar(model, num_flows=16)."
        )
    return made


def _takes(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


def _draws(guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a callable draws sites when it is called as the model is."""
    with pyro.get_param_store().scope({"params": {}, "constraints": {}}):
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
    return any(site["type"] == "sample" for site in trace.nodes.values())


def _continuous(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[..., Any]:
    """Hide discrete sites, which are summed out, from a guide that would draw them."""
    sites = poutine.trace(model).get_trace(*args, **kwargs).nodes
    hidden = [
        name for name, site in sites.items()
        if site["type"] == "sample" and not site["is_observed"]
        and (is_point_mass(site) or (is_discrete(site["fn"]) and not site_is_subsample(site)))
    ]  # fmt: skip
    return poutine.block(model, hide=hidden) if hidden else model


def flow_name(guide: AutoFlow | AutoMixture | PyroGuide) -> str:
    """Return the name of the guide's flow, or of the guide that was taken in, for reports."""
    if isinstance(guide, PyroGuide):
        return guide.name
    if isinstance(guide, AutoMixture):
        return " + ".join(str(recipe.flow or "Gaussian") for recipe in guide._recipes)
    flow = None if guide._recipe is None else guide._recipe.flow
    return flow if isinstance(flow, str) else "" if flow is None else type(flow).__name__
