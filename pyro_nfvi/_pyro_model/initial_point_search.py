"""The search for a first point: the user's, the origin, uniform draws, draws from the prior."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_nfvi._error_text import MISTAKES, place_of, repeated_name
from pyro_nfvi._pyro_model.initial_values import around_origin, feasible, start_trace, value_of
from pyro_nfvi._pyro_model.recipe import MODELS
from pyro_nfvi._pyro_model.start_fault import StartFault
from pyro_nfvi.errors import ModelError

Init: TypeAlias = Callable[[Mapping[str, Any]], Tensor]


def start_kinds(init_loc_fn: Init) -> Iterator[tuple[str, Init]]:
    """Yield a hundred ways to start, each with the name of its kind, in the order of trying.

    The user's own function once, the unconstrained origin, then draws uniform in (-2, 2) and draws
    from the prior in turn.
    """
    yield "init_loc_fn", init_loc_fn
    yield "the unconstrained origin", feasible
    for turn in range(MODELS.most_starts - 2):
        yield ("the prior", value_of) if turn % 2 else ("uniform(-2, 2)", around_origin)


def find_start(
    attempt: Callable[[Init], StartFault | None], init_loc_fn: Init
) -> tuple[str, StartFault | None]:
    """Try points until one works.

    Args:
        attempt: Sets up at a point; returns its fault, or None where the point works. Exceptions
            count as faults of the point, except mistakes of the model's own code (TypeError,
            NameError and their like) and what is raised before any latent site is asked for a
            value: these are raised at once.
        init_loc_fn: The user's own function of a site.

    Returns:
        The kind of the point that works, and the fault of the first point; None where that works.

    Raises:
        ModelError: None of a hundred points works; names the sites at fault, how many points of
            each kind were tried, and the commonest reason.

    Example:
        >>> outcomes = iter([StartFault("x", "-inf"), None])
        >>> find_start(lambda init: next(outcomes), value_of)
        ('the unconstrained origin', StartFault(site='x', reason='-inf', others=()))
    """
    faults: list[StartFault] = []
    kinds: Counter[str] = Counter()
    cause: Exception | None = None
    for kind, init in start_kinds(init_loc_fn):
        asked: list[str] = []

        def start(site: Mapping[str, Any], init: Init = init, asked: list[str] = asked) -> Tensor:
            asked.append(site["name"])
            return init(site)

        try:
            fault = attempt(start)
        except ModelError as error:
            words, shapes, _ = str(error).partition("\nTrace Shapes:")  # which Pyro appends
            if shapes:
                raise ModelError(words) from None
            raise
        except MISTAKES:
            raise
        except Exception as error:  # a point at which the model fails, in any way it likes
            if (name := repeated_name(error)) is not None:
                raise ModelError(_twice(name, place_of(error))) from None
            if not asked:
                raise
            fault, cause = StartFault.of(error), cause or error
        if fault is None:
            return kind, faults[0] if faults else None
        faults.append(fault)
        kinds[kind] += 1
    raise ModelError(_refusal(faults, kinds)) from cause


def any_trace(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
    """Run the model at a draw from its prior, or at any other point at which it runs.

    For a look at its structure: the log joint there need not be finite.

    Raises:
        ModelError: The model fails at a hundred points.
    """
    found: list[Trace] = []

    def attempt(init: Init) -> None:
        found.append(start_trace(init, model, args, kwargs))

    find_start(attempt, value_of)
    return found[0]


def _twice(name: str, place: str) -> str:
    return (
        f"The model has two sites named {name!r}{place}. Every site needs a name of its own: "
        f"f'{name}_{{i}}' in a loop; a plate that is entered twice is made once, before: "
        f"rows = pyro.plate('{name}', ...), then twice: with rows."
    )


def _refusal(faults: list[StartFault], kinds: Counter[str]) -> str:
    most = len(faults)
    sites = Counter(site for fault in faults for site in fault.sites)
    places = ", ".join(f"{site!r} ({count} of {most})" for site, count in sites.most_common())
    reason, count = Counter(fault.reason for fault in faults).most_common(1)[0]
    tried = ", ".join(f"{number} by {kind}" for kind, number in kinds.items())
    if count == most and not sites:
        return (
            f"The model raised the same error at each of {most} initial points ({tried}): "
            f"{reason}. Mend what it says. If it comes of the values of latents, give a point that "
            "works: AutoFlow(model, init_loc_fn=init_to_value(values=...))."
        )
    return (
        f"The model has no finite log joint at any of {most} initial points ({tried}). "
        f"Points failed at the sites {places or '(none that could be named)'}; the commonest "
        f"reason, {count} times: {reason}. Check the data against the likelihood, or give a point "
        "that works: AutoFlow(model, init_loc_fn=init_to_value(values=...))."
    )
