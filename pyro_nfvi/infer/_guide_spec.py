"""The option ``guide`` of ``NFVI``: its kinds and its check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from pyro.infer.autoguide import AutoGuide

from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._registry import check_formula

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyro_nfvi.flows._base import Flow
    from pyro_nfvi.guides._auto_flow import AutoFlow
    from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow

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
    elif isinstance(guide, AutoGuide):
        _check_autoguide(guide)


def _check_autoguide(guide: AutoGuide) -> None:
    from pyro_nfvi.guides._auto_flow import AutoFlow
    from pyro_nfvi.guides._auto_mixture import AutoMixture
    from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow

    if isinstance(guide, AutoMixture):
        raise OptionError(
            "NFVI makes an AutoMixture by itself where it finds several modes (guide='auto'); one "
            "of your own trains with pyro.infer.SVI."
        )
    if not isinstance(guide, AutoFlow | AutoPlateFlow):
        raise OptionError(
            f"NFVI trains flow guides; {type(guide).__name__} trains with pyro.infer.SVI."
        )
