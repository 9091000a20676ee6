"""Summing out discrete sites, one particle at a time or under ``torch.vmap``."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from opt_einsum import shared_intermediates
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_nfvi.errors import ModelError


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
        msg["value"] = _ShapeOnly(value)
        try:
            return super()._pyro_post_sample(msg)
        finally:
            msg["value"] = value


class _VmapRing(LogRing):
    _backend = "pyro_nfvi._pyro_model.log_sum_exp"


class Factor(NamedTuple):
    """A site that depends on a discrete site, with its packed log density.

    The density is masked but not scaled: ``poutine.scale`` and the scale of a subsample multiply
    the log of the sum over the discrete sites, not its terms.
    """

    site: dict[str, Any]
    log_prob: Tensor

    @property
    def discrete(self) -> bool:
        """Tell whether the site is itself one of those that are summed out."""
        return self.site["infer"].get("_enumerate_dim") is not None


def unmarked(trace: Trace) -> bool:
    """Tell whether a latent site of a trace can be enumerated and is not marked for it."""
    return any(
        site["type"] == "sample"
        and not site["is_observed"]
        and getattr(site["fn"], "has_enumerate_support", False)
        and "enumerate" not in site["infer"]
        for site in trace.nodes.values()
    )


def factorise(
    trace: Trace, sites: Iterable[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[Factor]]:
    """Divide sites into those without discrete dimensions and the factors to be summed.

    As in :class:`pyro.infer.TraceEnum_ELBO`, a mask applies to what depends on a discrete site,
    and not to the discrete site's own probabilities.

    Args:
        trace: An enumerated trace whose log probabilities are computed; it is packed here.
        sites: The sites that count.

    Raises:
        ModelError: A site has a batch dimension that is no plate.
    """
    _pack(trace)
    summed = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
    plain, factors = [], []
    for site in sites:
        tensors = site["packed"]
        if site["infer"].get("_enumerate_dim") is not None:
            factors.append(Factor(site, tensors["unscaled_log_prob"]))
        elif summed.isdisjoint(tensors["log_prob"]._pyro_dims):
            plain.append(site)
        else:
            masked = packed.scale_and_mask(tensors["unscaled_log_prob"], mask=tensors["mask"])
            factors.append(Factor(site, masked))
    return plain, factors


def _pack(trace: Trace) -> None:
    try:
        trace.pack_tensors()
    except ValueError as error:
        # The site at which packing stopped has no packed density.
        site = next(
            name
            for name, node in trace.nodes.items()
            if node["type"] == "sample" and "unscaled_log_prob" not in node.get("packed", {})
        )
        shape = tuple(trace.nodes[site]["log_prob"].shape)
        raise ModelError(
            f"The site {site!r} has log densities of shape {shape}, with a dimension that "
            "belongs to no pyro.plate. Where discrete sites are summed out, each batch dimension "
            "must be in a plate or made part of the event by .to_event(n)."
        ) from error


def common_scale(factors: Sequence[Factor]) -> float | Tensor:
    """Return the scale that the factors share; :func:`check_scales` has seen that they do."""
    scale = factors[0].site["scale"]
    if isinstance(scale, Tensor) and scale.dim():
        raise ModelError(_no_scalar(factors[0].site))
    return scale


def check_scales(factors: Sequence[Factor]) -> None:
    """Refuse scales that differ among a discrete site and what depends on it, as Pyro does.

    Raises:
        ModelError: Names two sites of different scales, or one whose scale is no scalar.
    """
    for factor in factors:
        scale = factor.site["scale"]
        if isinstance(scale, Tensor) and scale.dim():
            raise ModelError(_no_scalar(factor.site))
    found = {f.site["name"]: float(f.site["scale"]) for f in factors}
    if len(set(found.values())) <= 1:
        return
    (first, one), *rest = found.items()
    second, other = next((name, scale) for name, scale in rest if scale != one)
    raise ModelError(
        f"Discrete sites are summed out, and the sites {first!r} and {second!r}, which take part, "
        f"have different scales, {one:g} and {other:g} (by poutine.scale or a plate that "
        "subsamples). A sum over discrete values has no meaning then, and Pyro's TraceEnum_ELBO "
        "refuses it too. Put the discrete sites and all that depends on them under one scale and "
        "into the same subsampling plates."
    )


def _no_scalar(site: dict[str, Any]) -> str:
    return (
        f"The site {site['name']!r} depends on a discrete site that is summed out, and its "
        f"poutine.scale is a tensor of shape {tuple(site['scale'].shape)}. The scale has to be one "
        "number there; pass a scalar, or give each row a plate of its own scale."
    )


def connected(factors: Sequence[Factor], summed: set[str], start: Factor) -> list[Factor]:
    """Return the factors that share discrete dimensions with one of them, directly or not."""
    reached, symbols = [start], set(start.log_prob._pyro_dims) & summed
    pending = [factor for factor in factors if factor.site is not start.site]
    while True:
        more = [f for f in pending if symbols & set(f.log_prob._pyro_dims)]
        if not more:
            return reached
        reached += more
        symbols |= {s for f in more for s in f.log_prob._pyro_dims if s in summed}
        pending = [f for f in pending if all(f.site is not one.site for one in more)]


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
    factors: Sequence[Factor],
    keep: Iterable[str] = (),
    *,
    under_vmap: bool = False,
) -> Tensor:
    """Sum discrete sites out of the joint of some factors, and multiply plates up.

    Args:
        trace: The packed trace that the factors are of.
        factors: The factors that count, unscaled.
        keep: Names of plates that stay, as axes in the order of their dimensions.
        under_vmap: Use operations that ``torch.vmap`` knows.

    Raises:
        ModelError: Two discrete sites in plates of which none holds the other depend on each
            other, so that the sum does not divide.
    """
    symbols = trace.plate_to_symbol
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for factor in factors:
        stack = factor.site["cond_indep_stack"]
        ordinal = frozenset(symbols[frame.name] for frame in stack if frame.vectorized)
        # A fresh view: the contraction tells terms apart by identity.
        view = factor.log_prob[...]
        view._pyro_dims = factor.log_prob._pyro_dims
        tree.setdefault(ordinal, []).append(view)
    kept = sorted((symbols[name] for name in keep), key=lambda s: trace.symbol_to_dim[s])
    sum_dims = set(trace.symbol_to_dim) - set(symbols.values())
    with shared_intermediates() as cache:
        terms = [term for group in tree.values() for term in group]
        ring = ring_for(cache, terms, under_vmap=under_vmap)
        try:
            found = contract_to_tensor(
                tree, sum_dims, target_ordinal=frozenset(kept), cache=cache, ring=ring
            )
        except NotImplementedError as error:
            names = ", ".join(repr(f.site["name"]) for f in factors if f.discrete)
            raise ModelError(
                f"The discrete sites {names} depend on each other across plates of which none "
                "holds the other, so that their sum does not divide. Turn one of the plates into a "
                "sequential one: for i in pyro.plate(...). Its cost is exponential in the size of "
                "that plate."
            ) from error
    # Packed dimensions come in an order of their own; put them back as the plates stand.
    order = [found._pyro_dims.index(symbol) for symbol in kept]
    return found.permute(order) if order else torch.as_tensor(found)
