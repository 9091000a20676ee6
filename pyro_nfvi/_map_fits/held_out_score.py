"""Log predictive density of rows that a fit did not see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_nfvi._map_fits.posterior_draws import posterior_draws
from pyro_nfvi._map_fits.row_splits import HeldOut, RowSplit
from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._random import seeded
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.arviz._model_view import ModelView
from pyro_nfvi.errors import ModelError, OptionError
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._plate_fit import PlateFit
from pyro_nfvi.infer._predict import predict_from


def score_held_out(fit: Fit | PlateFit, held: HeldOut, seed: int) -> TensorDict:
    r"""Score the rows that were held out, at draws of the fit.

    .. math:: \mathrm{lpd}_i = \log \frac1S \sum_s p(y_i \mid \theta_s), \qquad
        \mathrm{joint} = \log \frac1S \sum_s \prod_i p(y_i \mid \theta_s)

    Latents of the rows themselves are drawn from their prior given the others, once for each draw.
    All observed sites of a row count together. Discrete sites are summed out. Where a plate
    subsamples, so many rows are scored at a time that it takes them all.

    Args:
        fit: The fit, with its model.
        held: The rows.
        seed: Seed of latents that are drawn.

    Returns:
        ``lpd (n,)`` and ``error (n,)``, its standard error over the draws, both NaN where the model
        does not split into rows; ``joint``, a number; in nats.

    Raises:
        ModelError: The model cannot be run with these rows, its latents depend on the rows outside
            of plates, or it observes nothing.
    """
    log_joint, rows = fit.require_model(), held.rows
    with fit.model_scope(), seeded(seed, "held out"):
        here, more = _traces(log_joint.model, rows)
        plates = _row_plates(here, more)
        latents = set(log_joint.latent.sites)
        drawn = _row_latents(here, more, plates, latents, held.from_prior)
        draws = posterior_draws(fit, latents - drawn)
        each: list[Tensor | None] = []
        whole: list[Tensor] = []
        length = _rows_at_once(here, rows.count)
        for start in range(0, rows.count, length):
            begin = min(start, rows.count - length)  # the last ones come with some before them
            index = torch.arange(begin, begin + length)
            piece = RowSplit(*rows.take(index), rows.places, length)
            trace, terms = _score_rows(fit, piece, draws, drawn)
            found = [_by_row(trace.nodes[n], term, plates, length) for n, term in terms.items()]
            split = [one for one in found if one is not None]
            if len(split) == len(found):
                lines = torch.stack(split).sum(0)[:, start - begin :]
                each.append(lines)
                whole.append(lines.sum(1))
            elif length == rows.count:
                each.append(None)
                sums = [term.flatten(1).sum(1) for term in terms.values()]
                whole.append(torch.stack(sums).sum(0))
            else:
                raise ModelError(
                    "The log density of the data does not split into rows, and the model takes "
                    f"{length} of the {rows.count} held-out rows at a time."
                )
    joint, _ = _log_mean(torch.stack(whole).sum(0)[:, None])
    parts = [one for one in each if one is not None]
    if not parts:
        lpd = error = torch.full((rows.count,), math.nan, dtype=torch.float64)
    else:
        lpd, error = _log_mean(torch.cat(parts, 1))
    return {"lpd": lpd, "error": error, "joint": joint[0]}


def _score_rows(
    fit: Fit | PlateFit, rows: RowSplit, draws: TensorDict, drawn: set[str]
) -> tuple[Trace, TensorDict]:
    """Score rows at each draw: a run of the model, and terms ``(S, *batch)`` of observed sites."""
    log_joint, args, kwargs = fit.require_model(), rows.args, rows.kwargs
    if drawn:
        draws = draws | predict_from(
            log_joint, draws, args, kwargs, sites=sorted(drawn), from_prior=sorted(drawn)
        )
    first = {name: value[0] for name, value in draws.items()}
    view = ModelView(log_joint.model, args, kwargs, first)
    if view.mini_batch:
        raise ModelError(
            f"The held-out rows would be scored on a part of them, {view.mini_batch}. Let the "
            "plate's size be the number of rows that the model is given."
        )
    names = [*view.observed(), *(name for name, inside in view.factors().items() if inside)]
    if not names:
        raise ModelError("The model observes nothing at the held-out rows.")
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for found in view.evaluate(draws, deterministic=False, log_likelihood=names):
        for name in names:
            parts[name].append(found.log_likelihood[name].detach().cpu().double())
    return view.trace, {name: torch.cat(part) for name, part in parts.items()}


def _row_plates(here: Trace, more: Trace) -> set[str]:
    """Return the plates whose size is another one with one row more."""
    sizes = [
        {n: int(s["fn"].size) for n, s in trace.nodes.items() if _is_plate(s)}
        for trace in (here, more)
    ]
    return {name for name, size in sizes[0].items() if sizes[1].get(name) == size + 1}


def _is_plate(site: Mapping[str, Any]) -> bool:
    return bool(site["type"] == "sample" and site_is_subsample(site))


def _rows_at_once(trace: Trace, count: int) -> int:
    """Return how many rows are scored together: as many as a plate draws, or all."""
    sizes = [site["fn"].subsample_size for site in trace.nodes.values() if _is_plate(site)]
    return min([count, *(int(size) for size in sizes if size is not None)])


def _traces(model: Any, rows: RowSplit) -> tuple[Trace, Trace]:
    """Run the model at the rows, and at one more, to see what belongs to rows."""
    more = torch.cat([torch.arange(rows.count), torch.zeros(1, dtype=torch.long)])
    return _run(model, rows), _run(model, RowSplit(*rows.take(more), rows.places, len(more)))


def _run(model: Any, rows: RowSplit) -> Trace:
    try:
        return prior_trace(model, rows.args, rows.kwargs)
    except Exception as error:
        words = str(error).partition("\nTrace Shapes:")[0]  # which Pyro appends
        cure = " Write subsample_size=min(size, len(data))." if "subsample_size" in words else ""
        raise ModelError(
            f"The model could not be run at the held-out rows: {type(error).__name__}: "
            f"{words}{cure}"
        ) from error


def _row_latents(
    here: Trace, more: Trace, plates: set[str], latents: set[str], asked: tuple[str, ...] | None
) -> set[str]:
    """Return the latents of the rows themselves: in their plates, or others with one row more."""
    if asked is not None:
        unknown = sorted(set(asked) - latents)
        if unknown:
            raise OptionError(
                f"from_prior names {unknown[0]!r}, which is no latent; there are {sorted(latents)}."
            )
        return set(asked)
    named: set[str] = set()  # sequential plates, which name a site for each row
    outside = []
    found = set()
    for name, site in more.nodes.items():
        if site["type"] != "sample" or _is_plate(site):
            continue
        if name not in here.nodes and not site["is_observed"]:
            frames = {f.name for f in site["cond_indep_stack"] if not f.vectorized}
            named |= frames
            outside += [] if frames else [name]
        elif name in latents and here.nodes[name]["value"].shape != site["value"].shape:
            found.add(name)
            if not any(frame.vectorized for frame in site["cond_indep_stack"]):
                outside.append(name)
    if outside:
        raise ModelError(
            f"The latent {outside[0]!r} depends on the number of rows and lies in no plate, so "
            "that rows tell of each other beyond the other latents. If its prior given the others "
            f"is right for new rows, say so: from_prior=[{outside[0]!r}]."
        )
    for name in latents & here.nodes.keys():
        frames = {frame.name for frame in here.nodes[name]["cond_indep_stack"]}
        if frames & (plates | named):
            found.add(name)
    return found


def _by_row(site: Mapping[str, Any], term: Tensor, plates: set[str], count: int) -> Tensor | None:
    """Sum log densities ``(S, *batch)`` over all but the rows; None where no plate holds the rows.

    A site that does not depend on the rows, which is nothing held out, has no term of a row.
    """
    axes = [
        frame.dim + term.dim()
        for frame in site["cond_indep_stack"]
        if frame.vectorized and frame.name in plates
    ]
    if len(axes) != 1 or axes[0] < 1 or term.shape[axes[0]] != count:
        return None
    return term.movedim(axes[0], 1).flatten(2).sum(2) if term.dim() > 2 else term


def _log_mean(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the mean of ``exp(terms)`` over the draws ``(S, n)``, and its standard error."""
    count = len(terms)
    mean = torch.logsumexp(terms, 0) - math.log(count)
    ratios = (terms - mean).exp()
    error = ratios.std(0) / math.sqrt(count) if count > 1 else torch.full_like(mean, math.nan)
    return mean, error
