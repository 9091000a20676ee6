"""Summing out discrete sites, one particle at a time or under ``torch.vmap``."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from torch import Tensor

__all__ = ["VmapEnum", "ring_for", "sum_out", "unmarked"]


class _ShapeOnly:
    """Stands in for a value of which only the shape is asked, by way of ``.data``."""

    def __init__(self, value: Tensor) -> None:
        self.shape = value.shape
        self.data = self

    def dim(self) -> int:
        return len(self.shape)


class VmapEnum(EnumMessenger):
    """Pyro's enumeration for use under ``torch.vmap``, where ``value.data`` is not allowed."""

    def _pyro_post_sample(self, msg: Message) -> None:
        value = msg["value"]
        if not isinstance(value, Tensor):
            return super()._pyro_post_sample(msg)
        msg["value"] = _ShapeOnly(value)  # type: ignore[assignment, typeddict-item]
        try:
            return super()._pyro_post_sample(msg)
        finally:
            msg["value"] = value


class _VmapRing(LogRing):
    _backend = "pyro_nfvi.logjoint.log_sum_exp"


def unmarked(trace: Trace) -> bool:
    """Whether a latent site of a trace can be enumerated and is not marked for it."""
    return any(
        site["type"] == "sample"
        and not site["is_observed"]
        and getattr(site["fn"], "has_enumerate_support", False)
        and "enumerate" not in site["infer"]
        for site in trace.nodes.values()
    )


def ring_for(
    cache: dict[Any, Any], factors: Iterable[Tensor], *, under_vmap: bool = False
) -> LogRing:
    """Return the operations of log-sum-exp contractions, with the sizes of all dimensions.

    Pyro's default knows no sizes and fails where a result has to be expanded along a plate.
    """
    sizes: dict[str, int] = defaultdict(lambda: 1)  # packing drops axes of length 1
    for factor in factors:
        sizes.update(zip(factor._pyro_dims, factor.shape))
    return (_VmapRing if under_vmap else LogRing)(cache, dim_to_size=sizes)


def sum_out(
    trace: Trace,
    sites: Iterable[dict[str, Any]],
    keep: Iterable[str] = (),
    *,
    which: str = "log_prob",
    under_vmap: bool = False,
) -> Tensor:
    """Sum discrete sites out of the joint of some sites, and multiply plates up.

    Args:
        trace: An enumerated trace whose log probabilities are computed.
        sites: The sites that count.
        keep: Names of plates that stay, as axes in the order of their dimensions.
        which: ``"log_prob"`` (scaled) or ``"unscaled_log_prob"``.
        under_vmap: Use operations that ``torch.vmap`` knows.
    """
    trace.pack_tensors()
    symbols = trace.plate_to_symbol
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for site in sites:
        ordinal = frozenset(
            symbols[frame.name] for frame in site["cond_indep_stack"] if frame.vectorized
        )
        factors.setdefault(ordinal, []).append(site["packed"][which])
    kept = sorted((symbols[name] for name in keep), key=lambda s: trace.symbol_to_dim[s])
    sum_dims = set(trace.symbol_to_dim) - set(symbols.values())
    with shared_intermediates() as cache:
        terms = [term for group in factors.values() for term in group]
        ring = ring_for(cache, terms, under_vmap=under_vmap)
        found = contract_to_tensor(
            factors, sum_dims, target_ordinal=frozenset(kept), cache=cache, ring=ring
        )
    # Packed dimensions come in an order of their own; put them back as the plates stand.
    order = [found._pyro_dims.index(symbol) for symbol in kept]
    return found.permute(order) if order else torch.as_tensor(found)
