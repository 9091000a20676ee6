"""The guide of a fit, made from the option ``guide`` of ``NFVI``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro.poutine.trace_struct import Trace

from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.infer._guide_spec import GAUSSIAN, GuideSpec
from pyro_nfvi.infer._plate_structure import PlateStructure

#: Flow that ``guide="auto"`` begins with.
AUTO = "iaf*2"


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
