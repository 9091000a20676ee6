"""Saving a fit, without its data and without its model."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from torch import Tensor

from pyro_nfvi._files.fingerprint import fingerprint
from pyro_nfvi._files.fit_files import write_file
from pyro_nfvi._processes.process_group import writes_files
from pyro_nfvi._processes.tasks import inside_task
from pyro_nfvi._pyro_model.pyro_state import takes_turn
from pyro_nfvi.distributions import _bases as bases
from pyro_nfvi.errors import OptionError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.guides._pyro_guide import PyroGuide
from pyro_nfvi.infer._file_checks import (
    tie,
)
from pyro_nfvi.infer._findings import to_json
from pyro_nfvi.infer._fitted import FittedPosterior

#: Kind of the file, in its header.
KIND = "fit"


@takes_turn
def save(fit: FittedPosterior, path: str | os.PathLike[str]) -> None:
    """Write a fit, in the first of several processes; see :meth:`Fit.save`."""
    if inside_task() or writes_files():
        write(fit, path)


def write(fit: FittedPosterior, path: str | os.PathLike[str]) -> None:
    """Write a fit."""
    training = dataclasses.asdict(fit.training)
    losses = training.pop("losses")
    why = fit.why_stopped
    training |= {
        "why_stopped": [str(why), why.detail, why.unfinished],
        "notes": list(fit.training.notes),
        "findings": to_json(fit.training.findings),
        "timing": fit.timing.to_json(),
        "settings": fit.training.settings.to_json(),
    }
    spec = {
        "latent": fit.latent.spec(),
        "guide": _guide_spec(fit.guide),
        "training": training,
        "exact": fit.draws.exact,
        "replaced": list(fit.replaced),
        "tie": tie(fit.guide.density(), fit.draws),
    }
    if fit.log_joint is not None:
        spec |= fingerprint(fit.args, fit.kwargs)
    draws = fit.draws
    tensors = {
        "init_loc": fit.latent.init_loc,
        "guide": {name: value.detach() for name, value in fit.guide.state_dict().items()},
        "losses": losses,
        "draws": {"z": draws.z, "log_p": draws.log_p, "log_q": draws.log_q},
        "deterministic": dict(draws.deterministic),
        "params": dict(fit.params),
    }
    write_file(path, KIND, spec, _plain(tensors))


def _guide_spec(guide: AutoFlow | AutoMixture | PyroGuide) -> dict[str, Any]:
    """Describe how the guide was built, as far as JSON can."""
    if isinstance(guide, PyroGuide):
        raise OptionError(
            f"No file describes a guide of another library or of your own ({guide.name}). Keep "
            "the fit's draws, fit.to_arviz().to_netcdf(path), or the guide's numbers, "
            "torch.save(fit.guide.state_dict(), path)."
        )
    if isinstance(guide, AutoMixture):
        flows = [recipe.flow for recipe in guide._recipes]  # names: NFVI makes no others
        return {"class": type(guide).__name__, "flows": flows}
    recipe = guide._recipe
    flow = None if recipe is None else recipe.flow
    named = isinstance(flow, str) and _is_json(dict(recipe.options) if recipe else {})
    no_flow = "flow" not in guide._modules or guide._modules["flow"] is None
    return {
        "class": type(guide).__name__,
        "flow": flow if named else None,
        "options": dict(recipe.options) if named and recipe is not None else {},
        "layers": not no_flow,
        "outer": guide._outer_kind,
        "standard_base": guide._base is None,
        "base": _base_spec(guide),
    }


def _base_spec(guide: AutoFlow) -> dict[str, Any] | None:
    """Describe a base of the package's: its class and sizes; its numbers are in the state."""
    base = guide._base
    if not isinstance(base, bases.Base) or type(base).__name__ not in bases.BASES:
        return None
    options = {}
    if isinstance(base, bases.GaussianMixture):
        options["num_components"] = base.num_components
    return {"class": type(base).__name__, "dim": base.dim, "options": options}


def _plain(value: Any) -> Any:
    """Detached copies on the CPU, so that the file loads anywhere."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    return {key: _plain(item) for key, item in value.items()}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
