"""Missing observations: NaN under a mask, and the latents that stand in for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_nfvi._pyro_model.constraints import bijection, frozen
from pyro_nfvi.errors import NFVIError

#: What ``pyro.sample("y", ..., obs=..., obs_mask=...)`` makes of ``y``.
_SEEN, _UNSEEN = "_observed", "_unobserved"


def mask_of(site: Mapping[str, Any]) -> Tensor | None:
    """The mask of a site: its mask handlers and masked distributions, aligned to its value."""
    found: Tensor | None = None
    fn, parts = site["fn"], [site["mask"]]
    while isinstance(fn, MaskedDistribution):
        parts.append(fn._mask)
        fn = fn.base_dist
    for part in parts:
        if part is not None:
            mask = torch.as_tensor(part)
            found = mask if found is None else found & mask
    if found is None:
        return None
    return found.reshape(found.shape + (1,) * site["fn"].event_dim)


def fillings(trace: Trace) -> dict[str, Tensor]:
    """Values to put where an observation is NaN under a mask, one event for each such site.

    NaN would be an error where Pyro validates, and makes gradients NaN where it does not.
    """
    found = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or not site["is_observed"]:
            continue
        value = site["value"]
        if not (torch.is_tensor(value) and value.is_floating_point()):
            continue
        bad = torch.isnan(value)
        mask = mask_of(site)
        if mask is not None and bool(bad.any()) and not bool((bad & mask).any()):
            found[name] = _filling(site, bad)
    return found


def _filling(site: Mapping[str, Any], bad: Tensor) -> Tensor:
    """An event without NaN: one that was observed, or any feasible one."""
    value, event_dim = site["value"], site["fn"].event_dim
    shape = value.shape[value.dim() - event_dim :]
    rows = value.reshape(-1, *shape)
    whole = ~bad.reshape(len(rows), -1).any(1)
    if bool(whole.any()):
        return rows[whole][0].clone()
    try:
        transform = bijection(frozen(site["fn"].support))
        return transform(value.new_zeros(transform.inverse_shape(value.shape))).reshape(rows.shape)[
            0
        ]
    except (NFVIError, NotImplementedError):  # a discrete support, say
        return torch.zeros_like(rows[0])


class Complete(Messenger):
    """Lets a model score data of which some is missing.

    An observation that is NaN under a mask gets a value, which then does not count. The stand-ins
    ``y_unobserved`` that ``obs_mask`` makes for *all* of ``y`` keep their density where ``y`` was
    observed: Pyro masks it there, which leaves a flat direction for each, an improper posterior
    and a wrong evidence. Given all else it integrates to one, so nothing else changes; a scale,
    under which it would not, is left out there.

    Args:
        values: What to put for NaN, by site; see :func:`fillings`.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self._seen: set[str] = set()

    def __enter__(self) -> Any:
        self._seen = set()
        return super().__enter__()

    def _pyro_sample(self, msg: Message) -> None:
        name = str(msg["name"])
        if name in self.values and msg["is_observed"]:
            mask, value = mask_of(msg), msg["value"]
            if mask is not None:
                missing = torch.isnan(value) & ~mask
                msg["value"] = torch.where(missing, self.values[name].to(value), value)
        if name.endswith(_SEEN) and msg["is_observed"]:
            self._seen.add(name.removesuffix(_SEEN))
        if name.endswith(_UNSEEN) and name.removesuffix(_UNSEEN) in self._seen:
            mask, msg["mask"] = msg["mask"], None
            if mask is not None and not _is_one(msg["scale"]):
                scale = torch.as_tensor(msg["scale"])
                msg["scale"] = torch.where(torch.as_tensor(mask), scale, scale.new_ones(()))


def _is_one(scale: float | Tensor) -> bool:
    return not torch.is_tensor(scale) and scale == 1
