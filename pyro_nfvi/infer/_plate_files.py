"""Files of fits of globals and rows."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_nfvi._files.archives import Malformed
from pyro_nfvi._files.fingerprint import fingerprint
from pyro_nfvi._files.fit_files import write_file
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.pyro_state import takes_turn
from pyro_nfvi._timing import Timing
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import FileError
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.infer._checks.row_weights import RowGaps
from pyro_nfvi.infer._findings import to_json
from pyro_nfvi.infer._plate_verdict import FittedRows
from pyro_nfvi.infer._saving import KIND

#: Class of the guide, by which a file of rows is known.
CLASS = AutoPlateFlow.__name__


class SavedRows(FittedRows, Protocol):
    """The parts of a fit of rows that its file holds."""

    @property
    def params(self) -> TensorDict:
        """Values of the model's own parameters."""

    @property
    def log_joint(self) -> LogJoint | None:
        """The model's log joint."""

    @property
    def seed(self) -> int:
        """Seed of the fit."""

    @property
    def rows_se(self) -> float:
        """Standard error of the integrals over rows."""

    @property
    def timing(self) -> Timing:
        """Seconds of the call that made the fit."""


@takes_turn
def save_rows(fit: SavedRows, path: str | os.PathLike[str]) -> None:
    """Write a fit; see :meth:`PlateFit.save`."""
    guide, why = fit.guide, fit.training.why_stopped
    if not (isinstance(guide._recipe.flow, str | None) and isinstance(guide._local, str | None)):
        raise FileError(
            "A fit whose flows have no names cannot be written with what built them. Save the "
            "guide's numbers, torch.save(fit.guide.state_dict(), path), and build it anew."
        )
    training = {
        one.name: getattr(fit.training, one.name)
        for one in dataclasses.fields(fit.training)
        if one.name not in ("losses", "settings", "timing")
    }
    training |= {
        "why_stopped": [str(why), why.detail, why.unfinished],
        "notes": list(fit.training.notes),
        "findings": to_json(fit.training.findings),
        "timing": fit.timing.to_json(),
        "settings": fit.training.settings.to_json(),
    }
    spec: dict[str, Any] = {
        "latent": guide.latent.spec(),
        "guide": {
            "class": CLASS,
            "flow": guide._recipe.flow,
            "options": dict(guide._recipe.options),
            "local": guide._local,
            "local_options": guide._local_options,
            "code_dim": guide._code_dim,
            "model_informed": guide._model_informed,
            "joint": list(guide.joint),
            "encoders": sorted(guide._encoders().widths),
            "selects": sorted(guide._select),
            "semi_amortised": guide._semi_amortised,
        },
        "training": training,
        "exact": fit.draws.exact,
        "bound": [fit.elbo, fit.elbo_se, fit.rows_se],
        "seed": fit.seed,
        "plates": [[one.plate, one.total] for one in fit.rows],
    }
    if fit.log_joint is not None:
        spec |= fingerprint(fit.log_joint.args, fit.log_joint.kwargs)
    draws = fit.draws
    tensors: dict[str, Any] = {
        "guide": _held(guide.state_dict()),
        "losses": fit.training.losses,
        "draws": _held({"z": draws.z, "log_p": draws.log_p, "log_q": draws.log_q}),
        "rows": {
            one.plate: _held({"rows": one.rows, "gap": one.gap, "khat": one.khat})
            for one in fit.rows
        },
        "params": _held(fit.params),
    }
    write_file(path, KIND, spec, tensors)


def _held(tensors: Mapping[str, Tensor]) -> TensorDict:
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}


def gaps_of(spec: Mapping[str, Any], tensors: Mapping[str, Any]) -> tuple[RowGaps, ...]:
    """Read the examined rows of a file.

    Raises:
        Malformed: They are not of one length, or of rows that the plate has not.
    """
    found = []
    for plate, total in spec["plates"]:
        held = tensors["rows"][plate]
        if not len(held["rows"]) == len(held["gap"]) == len(held["khat"]):
            raise Malformed(f"the rows of the plate {plate!r} have no gap each")
        if len(held["rows"]) and int(held["rows"].max()) >= total:
            raise Malformed(f"it names a row that the plate {plate!r} has not")
        found.append(RowGaps(plate, held["rows"], held["gap"], held["khat"], int(total)))
    return tuple(found)


def fill(path: str | os.PathLike[str], guide: AutoPlateFlow, state: Mapping[str, Tensor]) -> None:
    """Put the numbers of a file into a guide.

    Raises:
        FileError: They are of another guide.
    """
    # How rows are coupled to those that enclose them is part of some fits, and of no new guide.
    shapes = {n: tuple(value.shape) for n, value in guide.state_dict().items()}
    coupling = guide.tables.coupling_shapes(guide.layout.blocks)
    if any(f"tables.{n}" in state for n in coupling):
        shapes |= {f"tables.{n}": shape for n, shape in coupling.items()}
    wrong = [n for n in {*shapes, *state} if n not in shapes or n not in state]
    wrong += [n for n in shapes if n in state and shapes[n] != tuple(state[n].shape)]
    if wrong:
        raise FileError(
            f"{path} does not fit the model and its data: {sorted(wrong)[0]!r} of the guide is "
            "missing or of another shape. Load it with the model, the data and the encoders of the "
            "fit."
        )
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise FileError(f"{path} is damaged: a number of the guide is not finite. Save it again.")
    guide.load_state_dict(state)
