"""A fit that another process made."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyro_nfvi.errors import FileError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._guide_spec import GuideSpec
from pyro_nfvi.infer._loading import load
from pyro_nfvi.infer._make_guide import made_guide, make_guide
from pyro_nfvi.infer._plate_fit import PlateFit


def received(
    held: bytes,
    model: Callable[..., Any],
    guide: GuideSpec,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Fit | PlateFit:
    """Make a fit of the bytes of its file; a guide of the user's own takes its parameters.

    Args:
        held: The bytes.
        model: The model.
        guide: What the guide was made from.
        args: Positional arguments of the model.
        kwargs: Its keyword arguments.

    Raises:
        FileError: The guide holds parts that no file describes.
    """
    with tempfile.TemporaryDirectory(prefix="nfvi-") as folder:
        path = Path(folder) / "fit.nfvi"
        path.write_bytes(held)
        try:
            fit = load(path, model=model, args=args, kwargs=kwargs)
        except FileError:
            parts = _unnamed_parts(guide, model, args, kwargs)
            fit = load(path, model=model, args=args, kwargs=kwargs, **parts)
    if isinstance(guide, AutoFlow | AutoPlateFlow):
        guide.load_state_dict(fit.guide.state_dict())
    return fit


def _unnamed_parts(
    guide: GuideSpec, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the flow and the base of a guide as this process makes it."""
    if isinstance(guide, Flow):
        return {"flow": copy.deepcopy(guide)}
    whole = made_guide(guide, model, args, kwargs)
    if isinstance(whole, AutoPlateFlow):
        return {"encoder": whole.encoder_nets(), "select": whole._select}
    made = make_guide(whole, model, "whitened")
    if not made.is_set_up:
        made.setup(*args, **kwargs)
    parts: dict[str, Any] = {}
    if isinstance(made._modules.get("flow"), Flow):
        parts["flow"] = copy.deepcopy(made._modules["flow"])
    if made._base is not None:
        parts["base"] = copy.deepcopy(made._base)
    return parts
