"""Predictions: the model run forward at draws of its latents, with data of any size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_nfvi._pyro_model.batch_model import BatchModel, drawn_plates
from pyro_nfvi._pyro_model.forward_model import ForwardModel
from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.model_run import is_deterministic, is_observed
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import DataWarning, ModelError, OptionError
from pyro_nfvi.infer._recipe import WORDS


class Predictions(dict[str, Tensor]):
    """Predictions by site, ``(draws, *shape)``, and what they were made from.

    Attributes:
        args: Positional arguments that the model got.
        kwargs: Its keyword arguments.
        model: The model.
        trace: One run of it with these arguments, for names of dimensions.
        how: How draws were run: ``"plate"`` or ``"vmap"`` (together) or ``"loop"`` (one by one).

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import NFVI
        >>> def model(x, y=None):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> x = torch.ones(4)
        >>> fit = NFVI(model, "affine", max_steps=50, seed=0, progress=False).run(x, x)
        >>> new = fit.predict(torch.ones(2), num_samples=10)
        >>> new["y"].shape, new.how
        (torch.Size([10, 2]), 'plate')
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        *,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        trace: Trace,
        how: str,
    ) -> None:
        super().__init__(values)
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        self.trace, self.how = trace, how


def predict_from(
    log_joint: LogJoint,
    draws: Mapping[str, Tensor],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    sites: Sequence[str] | None = None,
    from_prior: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> Predictions:
    """Run the model forward at draws of its latents; see :meth:`Fit.predict`.

    Args:
        log_joint: The model with the data that it was fitted to.
        draws: Latents ``(S, *shape)`` by name; other names are ignored.
        args: New positional arguments; with no new ones at all, those of the fit.
        kwargs: New keyword arguments.
        sites: Sites to return; all that were not held by default.
        from_prior: Latent sites to draw anew, from their prior given the other latents. None is
            none of them, with a warning where entries of rows are held at other data.
        generator: Source of the discrete sites' draws. All else comes from torch's own state.

    Raises:
        ModelError: As :meth:`Fit.predict`.
        OptionError: A name that the model does not have.
    """
    same = not args and not kwargs
    if same:
        args, kwargs = log_joint.args, log_joint.kwargs
    call = (tuple(args), dict(kwargs or {}))
    latents = set(log_joint.latent.sites)
    stated, from_prior = from_prior is not None, from_prior or ()
    _check_names(from_prior, latents | log_joint.enumerated)
    drawn = {*from_prior, *(() if same else _imputed(log_joint))}
    values = {n: v for n, v in draws.items() if n in latents and n not in drawn}
    values |= _held_discrete(log_joint, draws, from_prior, same=same, generator=generator)
    count = len(next(iter(draws.values())))
    first = {name: value[0] for name, value in values.items()}
    # Data given to a model of batches are one batch, and predicted as that.
    one = not same and isinstance(log_joint.model, BatchModel)
    covering = [{}] if one else _batches(log_joint.model, call, first)
    outcome: TensorDict = {}
    for place, subsample in enumerate(covering):
        forward = ForwardModel(log_joint.model, *call, subsample)
        trace = _started(forward, first)
        made = [name for name in forward.shapes if name not in values]
        if sites is not None:
            _check_names(sites, {*draws, *values, *made})
        # All sites of a batch, since the next one holds what they share.
        asked = made if sites is None or subsample else sites
        wanted = [name for name in made if name in asked]
        found = _gathered(forward, count, values, wanted) if wanted else {}
        if not (same or stated) and place == 0:
            _tell_rows(log_joint, trace, latents & values.keys(), set(made) - latents)
        if not subsample:
            outcome = found
            break
        _scatter(outcome, found, trace, subsample)
        # What no plate of the batch holds is one value for all batches.
        shared = {n: outcome[n] for n in found if _axis(trace, n, subsample) is None}
        values |= {n: v for n, v in shared.items() if not is_deterministic(trace.nodes[n])}
        first = {name: value[0] for name, value in values.items()}
    known = {**{name: draws[name] for name in values if name in draws}, **values, **outcome}
    if sites is not None:
        _check_names(sites, known)
    elif not outcome:
        raise ModelError(
            "The model has no site to predict: its data come in by pyro.factor alone, which cannot "
            "be drawn. Write the data as pyro.sample(..., obs=...), or add deterministic sites."
        )
    chosen = {name: known[name] for name in (outcome if sites is None else sites)}
    _tell_nan(chosen)
    return Predictions(
        chosen, model=log_joint.model, args=call[0], kwargs=call[1], trace=trace, how=forward.how
    )


def _gathered(
    forward: ForwardModel, count: int, values: TensorDict, wanted: Sequence[str]
) -> TensorDict:
    """Make the wanted sites' values ``(count, *shape)``, chunk by chunk, each number once."""
    whole: TensorDict = {}
    begin = 0
    for part in forward.run(
        count, values, wanted, max(1, WORDS.prediction_numbers // max(1, forward.size))
    ):
        length = len(next(iter(part.values())))
        for name, value in part.items():
            if name not in whole:
                whole[name] = value.new_empty((count, *value.shape[1:]))
            whole[name][begin : begin + length] = value
        begin += length
    return whole


def _tell_rows(
    log_joint: LogJoint, trace: Trace, held: Collection[str], drawn: Collection[str]
) -> None:
    """Warn of latents that belong to the fitted rows, entry by entry, and are held at others.

    They lie in the plates of a drawn site, or outside of all plates with as many entries as there
    were rows, such as a Gaussian process at the fitted covariates.
    """
    nodes = trace.nodes
    sites = [n for n in drawn if n in nodes and not is_deterministic(nodes[n])]
    rows = {_plates(nodes[n]) for n in sites}
    own = {n for n in held if n in nodes and _plates(nodes[n]) in rows - {frozenset()}}
    vectors = [n for n in set(held) - own if n in nodes and not _plates(nodes[n])]
    lengths = {n: _row_lengths(nodes[n]) for n in sites}
    # As many entries as rows by chance (coefficients, say) is one more question, no wrong number.
    if any(set(nodes[n]["value"].shape) & length for n in vectors for length in lengths.values()):
        fitted = prior_trace(log_joint.model, log_joint.args, log_joint.kwargs).nodes
        same = [lengths[n] & _row_lengths(fitted[n]) for n in sites if n in fitted]
        own |= {n for n in vectors if any(set(nodes[n]["value"].shape) & one for one in same)}
    if own:
        warn(
            f"The latents {', '.join(map(repr, sorted(own)))} have an entry for each row of the "
            "data, and were held at those of the fitted rows. For new rows draw them from their "
            f"prior: predict(..., from_prior={sorted(own)}). If the rows are the same ones, say so "
            "with from_prior=[].",
            DataWarning,
        )


def _row_lengths(site: Mapping[str, Any]) -> set[int]:
    """Lengths of the plates of a site; outside of all plates, of the first axis of its value."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    if frames:
        return {int(frame.size) for frame in frames} - {1}
    return set(site["value"].shape[:1]) - {1}


def _check_names(asked: Collection[str], known: Collection[str]) -> None:
    if isinstance(asked, str):
        raise OptionError(f"Names of sites come as a list: [{asked!r}].")
    for name in asked:
        if name not in known:
            raise OptionError(f"There is no site {name!r} to choose; there are {sorted(known)}.")


def _started(forward: ForwardModel, first: Mapping[str, Tensor]) -> Trace:
    """The first run, whose errors say that it is the new arguments that do not fit."""
    try:
        return forward.start(first)
    except Exception as error:
        words = str(error).partition("\nTrace Shapes:")[0]  # which Pyro appends
        if isinstance(error, ModelError):
            raise ModelError(words) from error
        raise ModelError(
            f"The model could not be run with the arguments of predict(): {type(error).__name__}: "
            f"{words}. Pass what model(*args, **kwargs) takes. Observed sites are drawn anew: give "
            "None for their data where the model allows it, else any tensor of the new size."
        ) from error


def _imputed(log_joint: LogJoint) -> set[str]:
    """Latents that stand for missing observations of the fitted rows (``obs_mask=`` of Pyro)."""
    ending = "_unobserved"
    names = {name for name in log_joint.latent.sites if name.endswith(ending)}
    if not names:
        return names
    nodes = prior_trace(log_joint.model, log_joint.args, log_joint.kwargs).nodes
    return {name for name in names if f"{name.removesuffix(ending)}_observed" in nodes}


def _held_discrete(
    log_joint: LogJoint,
    draws: Mapping[str, Tensor],
    from_prior: Collection[str],
    *,
    same: bool,
    generator: torch.Generator | None,
) -> TensorDict:
    """Draw the discrete sites that are summed out, where the fitted data speak of them.

    A site that stands in the plates of an observed one belongs to the rows of the data (the
    component of each row in a mixture): for other data it is drawn from its prior given the
    latents. One outside of all plates, or in a plate of groups that rows refer to, is shared, and
    comes from its posterior.
    """
    names = set(log_joint.enumerated) - set(from_prior)
    if not names:
        return {}
    if not same:
        nodes = prior_trace(log_joint.model, log_joint.args, log_joint.kwargs).nodes
        rows = {
            _plates(site)
            for site in nodes.values()
            if is_observed(site, log_joint.latent.sites) and _plates(site)
        }
        names = {name for name in names if _plates(nodes[name]) not in rows}
    given = {name: draws[name] for name in names if name in draws}
    if len(given) == len(names):
        return given
    z = log_joint.latent.pack({name: draws[name] for name in log_joint.latent.sites})
    found = log_joint.evaluate(z, discrete=True, generator=generator).discrete
    return {name: found[name] for name in names} | given


def _plates(site: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(frame.name for frame in site["cond_indep_stack"])


def _batches(
    model: Callable[..., Any],
    call: tuple[tuple[Any, ...], dict[str, Any]],
    first: Mapping[str, Tensor],
) -> list[dict[str, Tensor]]:
    """Indices of the plate that subsamples, batch after batch, until each row had its turn."""
    trace = _started(ForwardModel(model, *call, {}), first)
    plates = drawn_plates(trace)
    if not plates:
        return [{}]
    if len(plates) > 1:
        raise ModelError(
            f"The plates {', '.join(map(repr, sorted(plates)))} all subsample, so that no batch "
            "holds every pair of their rows: predict with subsample_size=None."
        )
    ((name, (size, length)),) = plates.items()
    starts = [*range(0, size - length, length), size - length]
    return [{name: torch.arange(begin, begin + length)} for begin in starts]


def _axis(trace: Trace, name: str, subsample: Mapping[str, Tensor]) -> int | None:
    """Axis of a site's value that the plate of the batch owns; None where there is none."""
    site = trace.nodes[name]
    value = site["value"]
    for frame in site["cond_indep_stack"]:
        if frame.name in subsample and frame.vectorized:
            length = len(subsample[frame.name])
            # pyro.deterministic counts every dimension as event by default.
            events = [site["fn"].event_dim, *([0] if is_deterministic(site) else [])]
            for event_dim in events:
                axis = value.dim() + frame.dim - event_dim
                if 0 <= axis < value.dim() and value.shape[axis] == length:
                    return axis
    return None


def _scatter(
    whole: TensorDict,
    found: TensorDict,
    trace: Trace,
    subsample: Mapping[str, Tensor],
) -> None:
    """Put the rows of one batch where they belong among all rows.

    Sites of a sequential plate are of one row each, and come in the batch that holds it.
    """
    ((plate, index),) = subsample.items()
    for name, value in found.items():
        axis = _axis(trace, name, subsample)
        if axis is None:
            whole.setdefault(name, value)
            continue
        if name not in whole:
            shape = list(value.shape)
            shape[axis + 1] = int(trace.nodes[plate]["fn"].size)
            whole[name] = value.new_empty(shape)
        whole[name].index_copy_(axis + 1, index.to(value.device), value)


def _tell_nan(values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        bad = torch.isnan(value) if value.is_floating_point() else torch.zeros(())
        if bool(bad.any()):
            share = 100 * float(bad.reshape(len(value), -1).any(1).double().mean())
            warn(
                f"{share:.3g} % of the predictions of {name!r} hold NaN: look for NaN in the new "
                "data, and for what the model computes there.",
                DataWarning,
            )
