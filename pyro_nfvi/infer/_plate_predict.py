"""Predictions of a fit of rows: the model run forward, a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._pyro_model.forward_model import ForwardModel
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import ModelError, OptionError
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.guides._model_plates import model_plates
from pyro_nfvi.infer._predict import _axis as plate_axis
from pyro_nfvi.infer._recipe import WORDS

#: Rows of each plate, and draws of all sites at these.
_Part = tuple[TensorDict, TensorDict]


def check_sizes(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    sizes: Mapping[str, int],
    guide: AutoPlateFlow,
) -> None:
    """Refuse arguments at which a plate has other rows than those of the fit.

    Raises:
        ModelError: A plate has another number of rows.
    """
    for plate, (_, full) in model_plates(model, args, kwargs).sizes.items():
        if full == sizes.get(plate, full):
            continue
        cure = (
            "draw fit.guide.sample_posterior(num, *args), which knows new rows by their data, and "
            "run the model at these"
            if plate in guide.amortised_plates
            else f"fit the model to these data; or give the plate an encoder (encoder={{{plate!r}: "
            "net}), which knows new rows by their data"
        )
        raise ModelError(
            f"The plate {plate!r} has {full} rows with these arguments, and the fit has "
            f"{sizes[plate]}: predict is at its rows. For other rows {cure}."
        )


def predict_rows(
    log_joint: LogJoint,
    parts: Iterator[_Part],
    cut: str,
    count: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    sites: Sequence[str] | None,
    keep: TensorDict,
    sizes: Mapping[str, int],
) -> TensorDict:
    """Run the model forward at draws of globals and rows; see :meth:`PlateFit.predict`.

    Args:
        log_joint: The model.
        parts: Rows, at most as many as a mini-batch has, with draws of all sites there.
        cut: The plate along which the parts are cut.
        count: Number of draws.
        args: Positional arguments of the model.
        kwargs: Its keyword arguments.
        sites: Sites to return.
        keep: Rows to return of plates that do not subsample.
        sizes: Number of rows of each plate.

    Raises:
        ModelError: A latent has another shape at these arguments, or a site cannot be drawn.
        OptionError: A name that the model does not have.
    """
    if log_joint.enumerated:
        names = ", ".join(sorted(log_joint.enumerated))
        raise ModelError(
            f"predict of rows cannot draw discrete sites that were summed out ({names}). Compute "
            "predictions from fit.sample(rows=...)."
        )
    found: dict[str, list[Tensor]] = {}
    shared: TensorDict = {}
    axes: dict[str, int | None] = {}
    for rows, draws in parts:
        subsample, asked = _filled(log_joint, rows)
        # Rows that only fill a batch up have the latents of the first.
        values = {
            name: _widened(value, axis, subsample[cut], asked[cut])
            if cut in asked and (axis := _axis(log_joint, name, cut)) is not None
            else value
            for name, value in draws.items()
        }
        forward = ForwardModel(log_joint.model, args, kwargs, subsample)
        trace = forward.start({name: value[0] for name, value in (values | shared).items()})
        made = [name for name in forward.shapes if name not in values]
        unknown = sorted(set(sites or ()) - {*made, *values, *shared})
        if unknown:
            raise OptionError(
                f"There is no site {unknown[0]!r} to predict; there are {', '.join(made)}."
            )
        wanted = [n for n in made if n not in shared and (sites is None or n in sites)]
        size = max(1, WORDS.prediction_numbers // max(1, forward.size))
        runs = list(forward.run(count, values | shared, wanted, size))
        for name in wanted:
            value = torch.cat([run[name] for run in runs])
            for plate, index in keep.items():  # plates that do not subsample have all rows
                place = plate_axis(trace, name, {plate: torch.arange(sizes[plate])})
                value = value if place is None else value.index_select(place + 1, index)
            inner = plate_axis(trace, name, subsample) if cut in subsample else None
            axes[name] = None if inner is None else inner + 1
            if inner is None:
                shared[name] = value
                continue
            found.setdefault(name, []).append(value.narrow(inner + 1, 0, len(asked[cut])))
    return shared | {name: torch.cat(own, axes[name] or 0) for name, own in found.items()}


def _filled(log_joint: LogJoint, rows: TensorDict) -> tuple[TensorDict, TensorDict]:
    """Return rows of the plates that subsample, as many as the model draws, and those asked for."""
    subsample, asked = {}, {}
    for name, (size, count) in log_joint.subsampled.items():
        index = rows.get(name)
        index = torch.arange(size)[:count] if index is None else index
        asked[name] = index
        fill = index[:1].expand(count - len(index))
        subsample[name] = torch.cat([index, fill])
    return subsample, asked


def _axis(log_joint: LogJoint, name: str, plate: str) -> int | None:
    """Return the axis of a plate in draws of a latent, from the right; None outside of it."""
    site = log_joint.latent.sites[name]
    frame = next((f for f in site.cond_indep_stack if f.name == plate and f.vectorized), None)
    return None if frame is None else frame.dim - site.event_dim


def _widened(value: Tensor, axis: int, rows: Tensor, asked: Tensor) -> Tensor:
    """Repeat the first row of draws until they are as many as a batch has."""
    missing = len(rows) - len(asked)
    if not missing:
        return value
    first = value.narrow(axis, 0, 1)
    return torch.cat([value, first.expand(*_sizes(value, axis, missing))], axis)


def _sizes(value: Tensor, axis: int, size: int) -> list[int]:
    sizes = list(value.shape)
    sizes[axis] = size
    return sizes
