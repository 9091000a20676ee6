"""The option ``guide`` of ``NFVI``: its kinds and its check."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeAlias

from pyro.infer.autoguide import AutoDelta, AutoGuide

from pyro_nfvi._option_names import meant
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._registry import check_formula

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyro_nfvi.flows._base import Flow
    from pyro_nfvi.guides._auto_flow import AutoFlow
    from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
    from pyro_nfvi.guides._pyro_guide import PyroGuide

#: The name of a Gaussian without a flow.
GAUSSIAN = "gaussian"
#: Names of approximations that are computed, and not trained by steps.
BASELINES = ("laplace", "pathfinder", "dadvi")
#: A name or formula, a guide, a flow, or what makes a guide for a model.
GuideSpec: TypeAlias = (
    "str | AutoFlow | AutoPlateFlow | PyroGuide | Flow | AutoGuide | Callable[..., Any]"
)


def baseline(guide: Any) -> tuple[str, int | None] | None:
    """Read the name of a baseline, and its number of paths where one is given.

    Example:
        >>> baseline("pathfinder*1"), baseline("laplace"), baseline("iaf*2")
        (('pathfinder', 1), ('laplace', None), None)
    """
    found = re.fullmatch(r"(\w+)(?:\*(\d+))?", guide) if isinstance(guide, str) else None
    if found is None or found[1] not in BASELINES:
        return None
    return found[1], None if found[2] is None else int(found[2])


def check_guide(guide: Any) -> None:
    """Refuse a guide that cannot work, before any work is done.

    Raises:
        OptionError: Tells what can.
    """
    if isinstance(guide, str):
        _check_name(guide)
    elif not callable(guide):  # AutoFlow and Flow are callable too
        raise OptionError(
            "guide is a flow's name or formula such as 'iaf*2', 'auto', 'gaussian', 'laplace', "
            "'pathfinder', 'dadvi', a Flow, a guide of Pyro's or its class, or a callable that "
            f"is or makes one; got {type(guide).__name__}."
        )
    elif isinstance(guide, AutoGuide) or (isinstance(guide, type) and issubclass(guide, AutoGuide)):
        _check_autoguide(guide if isinstance(guide, type) else type(guide))


def _check_name(guide: str) -> None:
    if guide in ("auto", GAUSSIAN):
        return
    named = baseline(guide)
    if named is None:
        try:
            check_formula(guide, {})
        except OptionError as error:
            hint = meant(guide, BASELINES)
            if not hint or "Did you mean" in str(error):
                raise
            raise OptionError(f"There is no guide {guide!r}.{hint}") from error
    elif named[1] is not None and (named[0] != "pathfinder" or named[1] < 1):
        raise OptionError(
            f"guide={guide!r}: 'pathfinder*4' takes a number of paths, 1 or more; the others "
            "take none."
        )


def _check_autoguide(kind: type[AutoGuide]) -> None:
    from pyro_nfvi.guides._auto_mixture import AutoMixture

    if issubclass(kind, AutoMixture):
        raise OptionError(
            "NFVI makes an AutoMixture by itself where it finds several modes (guide='auto'); one "
            "of your own trains with pyro.infer.SVI."
        )
    if issubclass(kind, AutoDelta):
        raise OptionError(
            "AutoDelta is a point, which has no density: there is no bound, and nothing to judge. "
            "Take guide='laplace', a Gaussian at the highest point; or fit the point with "
            "pyro.infer.SVI."
        )
