"""The plates that a model has for given arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample

from pyro_nfvi._pyro_model.batch_model import DRAWN
from pyro_nfvi._pyro_model.initial_values import prior_trace


@dataclass(frozen=True)
class ModelPlates:
    """The plates of one run of a model.

    Attributes:
        sizes: For each vectorised plate the rows of the run, and of how many they are.
        given: Plates of which the model is given the rows, rather than to draw them.
        nesting: Dimensions that batches take, from the right.
    """

    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    nesting: int = 0

    @property
    def subsampled(self) -> frozenset[str]:
        """Plates of which the run has not all rows."""
        return frozenset(plate for plate, (size, full) in self.sizes.items() if size != full)


class _GivenRows(Messenger):
    """Notes the plates whose rows are given when they are entered."""

    def __init__(self) -> None:
        super().__init__()
        self.plates = set[str]()

    def _pyro_sample(self, msg: Message) -> None:
        drawn = (msg["infer"] or {}).get(DRAWN)
        if site_is_subsample(msg) and msg["value"] is not None and not drawn:
            self.plates.add(str(msg["name"]))


def model_plates(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ModelPlates:
    """Run a model once, and read its plates; the random state stays as it is.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> def model():
        ...     with pyro.plate("rows", 10, subsample_size=3):
        ...         pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        >>> model_plates(model, (), {}).sizes
        {'rows': (3, 10)}
    """
    given, sizes, nesting = _GivenRows(), dict[str, tuple[int, int]](), 0
    with torch.random.fork_rng(devices=[]):
        trace = prior_trace(given(model), args, kwargs)
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site):
            nesting = max(nesting, len(getattr(site["fn"], "batch_shape", ())))
            for frame in site["cond_indep_stack"]:
                if frame.dim is not None:
                    sizes[frame.name] = (int(frame.size), int(frame.full_size or frame.size))
    return ModelPlates(sizes, frozenset(given.plates), nesting)
