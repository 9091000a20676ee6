"""Predictions of a fit of rows: the model run forward, a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._pyro_model.batch_model import BatchModel
from pyro_nfvi._pyro_model.forward_model import ForwardModel
from pyro_nfvi._pyro_model.latent_space import LatentSite
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.plate_layout import PlateLayout
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import ModelError, OptionError
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.guides._bound_rows import BoundRows
from pyro_nfvi.guides._model_plates import model_plates
from pyro_nfvi.infer._predict import _axis as plate_axis
from pyro_nfvi.infer._recipe import WORDS

#: Rows of each plate, and draws of all sites at these.
_Part = tuple[TensorDict, TensorDict]


@dataclass(frozen=True)
class RowPlan:
    """Rows at which a fit predicts, and where their latents come from.

    Attributes:
        args: Positional arguments of the model.
        kwargs: Its keyword arguments.
        sizes: Number of rows of each plate at these arguments.
        counts: Rows of one run, of plates that subsample.
        anew: Plates whose rows are other ones than those of the fit.
        coded: Those of them whose rows are known by their data, through an encoder.
        drawn: Latent sites that are drawn from their prior given the others.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    sizes: Mapping[str, int]
    counts: Mapping[str, int]
    anew: frozenset[str] = frozenset()
    coded: frozenset[str] = frozenset()
    drawn: frozenset[str] = frozenset()

    def layout(self, guide: AutoPlateFlow, rows: TensorDict) -> PlateLayout:
        """Return the layout of what the guide draws: one row of a plate that it knows no row of."""
        blind = self.anew - self.coded
        known = {p: torch.tensor([0]) if p in blind else index for p, index in rows.items()}
        return guide.layout.at(known, weighted=False, anew=self.coded, indexed=self.coded)

    def bound(self, guide: AutoPlateFlow, layout: PlateLayout) -> BoundRows:
        """Return the guide's map at these rows: by the data that are given where rows are new."""
        return guide._bind(layout, *((self.args, self.kwargs) if self.coded else ()))

    def held(self, guide: AutoPlateFlow, draws: TensorDict) -> TensorDict:
        """Return the draws of sites at which the model is held."""
        blind = self.anew - self.coded
        sites = guide.latent.sites
        return {
            name: value
            for name, value in draws.items()
            if name not in self.drawn and not blind & plates_of(sites[name])
        }


def plates_of(site: LatentSite) -> set[str]:
    """Return the vectorised plates of a site."""
    return {frame.name for frame in site.cond_indep_stack if frame.vectorized}


def plan_rows(
    log_joint: LogJoint,
    guide: AutoPlateFlow,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    new_rows: Sequence[str] | None,
    from_prior: Sequence[str] | None,
) -> RowPlan:
    """Find out of which rows the arguments are.

    Raises:
        ModelError: The model cannot be run with the arguments; or rows are new, and of a plate
            with a table.
        OptionError: A name that the model does not have.
    """
    plates, latents = dict(guide.layout.sizes), guide.latent.sites
    for option, asked, known in (
        ("new_rows", new_rows, plates),
        ("from_prior", from_prior, latents),
    ):
        if isinstance(asked, str):
            raise OptionError(f"{option} is a list of names: {option}=[{asked!r}].")
        for name in asked or ():
            if name not in known:
                raise OptionError(f"{option} names {name!r}; there are {', '.join(known)}.")
    drawn = frozenset(from_prior or ())
    if not (args or kwargs):
        if new_rows:
            raise OptionError(
                "new_rows needs the data of these rows: pass the arguments of the model."
            )
        sizes = {plate: size for plate, (size, _) in log_joint.subsampled.items()}
        counts = {plate: count for plate, (_, count) in log_joint.subsampled.items()}
        return RowPlan(log_joint.args, log_joint.kwargs, sizes | plates, counts, drawn=drawn)
    model = log_joint.model
    try:
        found = model_plates(model, args, kwargs).sizes
    except Exception as error:
        words = str(error).partition("\nTrace Shapes:")[0]  # which Pyro appends
        raise ModelError(
            f"The model could not be run with these arguments: {type(error).__name__}: {words}. "
            "Pass what model(*args, **kwargs) takes, any tensor of the new size for data that are "
            "to be drawn."
        ) from error
    sizes = {plate: full for plate, (_, full) in found.items()}
    counts = {plate: count for plate, (count, full) in found.items() if count != full}
    anew = {plate for plate in plates if sizes.get(plate, plates[plate]) != plates[plate]}
    anew |= set(new_rows or ())
    if isinstance(model, BatchModel) and model.plate in found:
        # What a model of batches is given are the rows of one, whatever their numbers.
        sizes[model.plate] = found[model.plate][0]
        counts.pop(model.plate, None)
        anew |= {model.plate} & set(plates)
    for plate in sorted(anew - guide.amortised_plates):
        left = [n for n, site in latents.items() if plate in plates_of(site) and n not in drawn]
        if left:
            raise ModelError(_no_such_rows(plate, sizes[plate], plates[plate], left, model))
    return RowPlan(
        args,
        kwargs,
        plates | sizes,
        counts,
        frozenset(anew),
        frozenset(anew & guide.amortised_plates),
        drawn,
    )


def _no_such_rows(
    plate: str, size: int, fitted: int, sites: Sequence[str], model: Callable[..., Any]
) -> str:
    if isinstance(model, BatchModel):
        head = (
            f"This fit has its data from a loader, and a table with a row for each row of the "
            f"plate {plate!r}: arguments do not say of which rows they are. Predict without them, "
            "predict(rows=...)"
        )
    elif size != fitted:
        head = (
            f"The plate {plate!r} has {size} rows with these arguments, and the fit has {fitted}, "
            "in a table with a row for each. Pass data of its rows"
        )
    else:
        head = (
            f"The rows of the plate {plate!r} stand in a table of the fit, which knows no others. "
            "Leave new_rows out"
        )
    return (
        f"{head}; draw new rows from their prior given the other latents, "
        f"from_prior={list(sites)}; or fit with an encoder (encoder={{{plate!r}: net}}), which "
        "knows new rows by their data."
    )


def predict_rows(
    log_joint: LogJoint,
    parts: Iterator[_Part],
    cut: str,
    count: int,
    plan: RowPlan,
    sites: Sequence[str] | None,
    keep: TensorDict,
) -> TensorDict:
    """Run the model forward at draws of globals and rows; see :meth:`PlateFit.predict`.

    Args:
        log_joint: The model.
        parts: Rows, at most as many as a mini-batch has, with draws of the sites to hold.
        cut: The plate along which the parts are cut.
        count: Number of draws.
        plan: The rows.
        sites: Sites to return.
        keep: Rows to return of plates that do not subsample.

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
        subsample, asked = _filled(plan, rows)
        # Rows that only fill a batch up have the latents of the first.
        values = {
            name: _widened(value, axis, subsample[cut], asked[cut])
            if cut in asked and (axis := _axis(log_joint, name, cut)) is not None
            else value
            for name, value in draws.items()
        }
        forward = ForwardModel(log_joint.model, plan.args, plan.kwargs, subsample)
        trace = forward.start({name: value[0] for name, value in (values | shared).items()})
        made = [name for name in forward.shapes if name not in values]
        unknown = sorted(set(sites or ()) - {*made, *values, *shared})
        if unknown:
            raise OptionError(
                f"There is no site {unknown[0]!r} to predict; there are {', '.join(made)}."
            )
        inner = {
            name: plate_axis(trace, name, subsample) if cut in subsample else None for name in made
        }
        # What all rows share is held in the batches that follow, whoever asks for it.
        wanted = [
            name
            for name in made
            if name not in shared and (sites is None or name in sites or inner[name] is None)
        ]
        size = max(1, WORDS.prediction_numbers // max(1, forward.size))
        runs = list(forward.run(count, values | shared, wanted, size)) if wanted else []
        for name in wanted:
            value = torch.cat([run[name] for run in runs])
            for plate, index in keep.items():  # plates that do not subsample have all rows
                place = plate_axis(trace, name, {plate: torch.arange(plan.sizes[plate])})
                value = value if place is None else value.index_select(place + 1, index)
            axis = inner[name]
            axes[name] = None if axis is None else axis + 1
            if axis is None:
                shared[name] = value
                continue
            found.setdefault(name, []).append(value.narrow(axis + 1, 0, len(asked[cut])))
    whole = shared | {name: torch.cat(own, axes[name] or 0) for name, own in found.items()}
    return {name: value for name, value in whole.items() if sites is None or name in sites}


def _filled(plan: RowPlan, rows: TensorDict) -> tuple[TensorDict, TensorDict]:
    """Return rows of the plates that subsample, as many as the model draws, and those asked for."""
    subsample, asked = {}, {}
    for name, count in plan.counts.items():
        index = rows.get(name)
        index = torch.arange(count) if index is None else index
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
