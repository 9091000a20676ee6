"""The option ``guide`` of ``NFVI``: its kinds, its check, and the guide that is made of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from pyro.infer.autoguide import AutoGuide
from pyro.poutine.trace_struct import Trace

from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._registry import check_formula
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.infer._plate_structure import PlateStructure

#: What ``guide="auto"`` means.
AUTO = "iaf*2"
#: The name of a Gaussian without a flow.
GAUSSIAN = "gaussian"
#: A name or formula, a guide, a flow, or what makes a guide for a model.
GuideSpec: TypeAlias = (
    "str | AutoFlow | AutoPlateFlow | Flow"
    " | Callable[[Callable[..., Any]], AutoFlow | AutoPlateFlow]"
)


def check_guide(guide: Any) -> None:
    """Refuse a guide that cannot work, before any work is done.

    Raises:
        OptionError: Tells what can.
    """
    if isinstance(guide, str):
        if guide not in ("auto", GAUSSIAN):
            check_formula(guide, {})
    elif not callable(guide):  # AutoFlow and Flow are callable too
        raise OptionError(
            "guide is a flow's name or formula such as 'iaf*2', 'auto', 'gaussian', a Flow, a "
            f"callable of the model, or an AutoFlow; got {type(guide).__name__}."
        )
    elif isinstance(guide, AutoMixture):
        raise OptionError(
            "NFVI makes an AutoMixture by itself where it finds several modes (guide='auto'); one "
            "of your own trains with pyro.infer.SVI."
        )
    elif isinstance(guide, AutoGuide) and not isinstance(guide, (AutoFlow, AutoPlateFlow)):
        raise OptionError(
            f"NFVI trains flow guides; {type(guide).__name__} trains with pyro.infer.SVI."
        )


def make_guide(guide: GuideSpec | None, model: Callable[..., Any], outer: str) -> AutoFlow:
    """Make the guide for a model, a Gaussian for None; ``outer`` is for those that bring none.

    Raises:
        OptionError: A callable returned something else.
    """
    if guide is None or guide == GAUSSIAN:
        return AutoFlow(model, None, outer=outer)
    if isinstance(guide, AutoFlow):
        return guide
    if isinstance(guide, str):
        return AutoFlow(model, AUTO if guide == "auto" else guide, outer=outer)
    if isinstance(guide, Flow):
        # A copy, so that each run starts from the flow that was passed.
        return AutoFlow(model, copy.deepcopy(guide), outer=outer)
    made = guide(model)
    if not isinstance(made, AutoFlow):
        raise OptionError(
            f"guide returned {type(made).__name__}; a callable guide takes the model and "
            "returns an AutoFlow, such as lambda model: AutoPlanar(model, num_flows=16). "
            "Other guides of Pyro train with pyro.infer.SVI."
        )
    return made


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
        reason = PlateStructure.of(trace).reason if guide == "auto" else ""
        return PlateGuide(AutoPlateFlow(model), reason) if reason else None
    return PlateGuide(guide) if isinstance(guide, AutoPlateFlow) else None


def made_guide(guide: GuideSpec, model: Callable[..., Any]) -> GuideSpec:
    """Call what makes a guide of a model; all else stays as it is."""
    if isinstance(guide, (str, AutoFlow, AutoPlateFlow, Flow)):
        return guide
    made = guide(model)
    return made if isinstance(made, AutoPlateFlow) else lambda _: made


def flow_name(guide: AutoFlow | AutoMixture) -> str:
    """Return the name of the guide's flow, for reports."""
    if isinstance(guide, AutoMixture):
        return " + ".join(str(recipe.flow or "Gaussian") for recipe in guide._recipes)
    flow = None if guide._recipe is None else guide._recipe.flow
    return flow if isinstance(flow, str) else "" if flow is None else type(flow).__name__
