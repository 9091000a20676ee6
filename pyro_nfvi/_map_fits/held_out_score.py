"""Log predictive density of rows that a fit did not see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_nfvi._map_fits.row_splits import HeldOut
from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._random import seeded
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.arviz._model_view import ModelView
from pyro_nfvi.errors import ModelError, OptionError
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._predict import predict_from


def score_held_out(fit: Fit, held: HeldOut, seed: int) -> TensorDict:
    r"""Score the rows that were held out, at the fit's draws.

    .. math:: \mathrm{lpd}_i = \log \frac1S \sum_s p(y_i \mid \theta_s), \qquad
        \mathrm{joint} = \log \frac1S \sum_s \prod_i p(y_i \mid \theta_s)

    Latents of the rows themselves are drawn from their prior given the others, once for each draw.
    All observed sites of a row count together. Discrete sites are summed out.

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
    log_joint = fit.require_model()
    draws = fit._sites(fit.draws.z, {})
    args, kwargs = held.rows.args, held.rows.kwargs
    with fit.model_scope(), seeded(seed, "held out"):
        here, more = _traces(log_joint.model, held)
        drawn = _row_latents(here, more, set(log_joint.latent.sites), held.from_prior)
        if drawn:
            draws |= predict_from(
                log_joint, draws, args, kwargs, sites=sorted(drawn), from_prior=sorted(drawn)
            )
        first = {name: value[0] for name, value in draws.items()}
        view = ModelView(log_joint.model, args, kwargs, first)
        if view.mini_batch:
            raise ModelError(
                f"The held-out rows would be scored on a part of them, {view.mini_batch}. Let the "
                "plate take all rows where there are fewer than its subsample_size."
            )
        names = [*view.observed(), *(name for name, inside in view.factors().items() if inside)]
        if not names:
            raise ModelError("The model observes nothing at the held-out rows.")
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        for found in view.evaluate(draws, deterministic=False, log_likelihood=names):
            for name in names:
                parts[name].append(found.log_likelihood[name].detach().cpu().double())
    terms = {name: torch.cat(part) for name, part in parts.items()}
    whole = torch.stack([term.flatten(1).sum(1) for term in terms.values()]).sum(0)
    joint = _log_mean(whole[:, None])[0][0]
    each = [_by_row(name, term, here, more, held.rows.count) for name, term in terms.items()]
    found_rows = [one for one in each if one is not None]
    if len(found_rows) < len(each):
        lpd = error = torch.full((held.rows.count,), math.nan, dtype=torch.float64)
    else:
        lpd, error = _log_mean(torch.stack(found_rows).sum(0))
    return {"lpd": lpd, "error": error, "joint": joint}


def _traces(model: Any, held: HeldOut) -> tuple[Trace, Trace]:
    """Run the model at the rows, and at one more, to see what belongs to rows."""
    count = held.rows.count
    more = held.rows.take(torch.cat([torch.arange(count), torch.zeros(1, dtype=torch.long)]))
    try:
        here = prior_trace(model, held.rows.args, held.rows.kwargs)
        return here, prior_trace(model, *more)
    except Exception as error:
        raise ModelError(
            f"The model could not be run at the held-out rows: {type(error).__name__}: {error}"
        ) from error


def _row_latents(
    here: Trace, more: Trace, latents: set[str], asked: tuple[str, ...] | None
) -> set[str]:
    """Return the latents of the rows themselves: those that are others with one row more."""
    plates: set[str] = set()  # sequential ones, which name a site for each row
    outside = []
    found = set()
    for name, site in more.nodes.items():
        if site["type"] != "sample" or (name in here.nodes and name not in latents):
            continue
        frames = [frame for frame in site["cond_indep_stack"] if not frame.vectorized]
        if name not in here.nodes:
            if not site["is_observed"]:
                plates |= {frame.name for frame in frames}
                outside += [] if frames else [name]
        elif here.nodes[name]["value"].shape != site["value"].shape:
            found.add(name)
            if not any(frame.vectorized for frame in site["cond_indep_stack"]):
                outside.append(name)
    for name in latents & here.nodes.keys():
        stack = here.nodes[name]["cond_indep_stack"]
        if plates & {frame.name for frame in stack if not frame.vectorized}:
            found.add(name)
    if asked is not None:
        unknown = sorted(set(asked) - latents)
        if unknown:
            raise OptionError(
                f"from_prior names {unknown[0]!r}, which is no latent; there are {sorted(latents)}."
            )
        return set(asked)
    if outside:
        raise ModelError(
            f"The latent {outside[0]!r} depends on the number of rows and lies in no plate, so "
            "that rows tell of each other beyond the other latents. If its prior given the others "
            f"is right for new rows, say so: from_prior=[{outside[0]!r}]."
        )
    return found


def _by_row(name: str, term: Tensor, here: Trace, more: Trace, count: int) -> Tensor | None:
    """Sum a site's log densities ``(S, *batch)`` over all but the rows; None without such an axis.

    A site that does not depend on the rows, which is nothing held out, has no term of a row.
    """
    if name not in more.nodes or name not in here.nodes:
        return None
    shapes = [tuple(_batch(trace.nodes[name])) for trace in (here, more)]
    lengths = [axis for axis, (one, two) in enumerate(zip(*shapes)) if two == one + 1 == count + 1]
    if len(shapes[0]) != len(shapes[1]) or len(lengths) != 1 or term.dim() - 1 != len(shapes[0]):
        return None
    return term.movedim(lengths[0] + 1, 1).flatten(2).sum(2) if term.dim() > 2 else term


def _batch(site: Mapping[str, Any]) -> torch.Size:
    shape: torch.Size = site["fn"].batch_shape
    return shape


def _log_mean(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the mean of ``exp(terms)`` over the draws ``(S, n)``, and its standard error."""
    count = len(terms)
    mean = torch.logsumexp(terms, 0) - math.log(count)
    ratios = (terms - mean).exp()
    error = ratios.std(0) / math.sqrt(count) if count > 1 else torch.full_like(mean, math.nan)
    return mean, error
