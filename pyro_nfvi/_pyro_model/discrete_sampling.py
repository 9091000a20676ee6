"""Draws of the discrete sites that were summed out, given the continuous latents and the data."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_nfvi._pyro_model.enumeration import factorise, ring_for
from pyro_nfvi._typing import TensorDict


def draw_discrete(
    trace: Trace, names: Sequence[str], noise: Mapping[str, Tensor], *, under_vmap: bool = False
) -> TensorDict:
    r"""Draw the enumerated sites of a trace from their joint posterior, by inversion.

    One site after the other: :math:`p(d_1 \mid x), p(d_2 \mid d_1, x), \dots`, the rest summed
    out each time; sites in fewer plates first, since those in more are independent only given
    them. The noise is an input, so that the whole is a function that ``torch.vmap`` takes.

    Args:
        trace: An enumerated trace whose log probabilities are computed.
        names: The enumerated sites.
        noise: A uniform number for each value to be drawn, in the shape of one run's values with
            plates (the particles' among them) on the left.
        under_vmap: Use operations that ``torch.vmap`` knows.

    Returns:
        Values by name, in the shapes of the noise.

    Cost:
        One contraction of the enumerated factors per site.
    """
    # The same factors as in the log joint, whose scale changes how much they count, but not what
    # they say of a draw.
    _, terms = factorise(trace, [s for s in trace.nodes.values() if s["type"] == "sample"])
    symbols, places = trace.plate_to_symbol, trace.symbol_to_dim
    enumerated = set(places) - set(symbols.values())
    factors: list[tuple[frozenset[str], Tensor]] = []
    for site, packed in terms:
        if enumerated & set(packed._pyro_dims):
            plates = {symbols[f.name] for f in site["cond_indep_stack"] if f.vectorized}
            factors.append((frozenset(plates), packed))
    # Packing drops axes of length 1, those of plates too.
    present = set().union(*(factor._pyro_dims for _, factor in factors))
    factors = [(key & present, factor) for key, factor in factors]
    found: TensorDict = {}
    for name in sorted(names, key=lambda one: _num_plates(trace.nodes[one])):
        node = trace.nodes[name]
        symbol = node["infer"]["_dim_to_symbol"].get(node["infer"]["_enumerate_dim"])
        support = node["fn"].enumerate_support(expand=False).reshape(-1, *node["fn"].event_shape)
        plates = {symbols[f.name] for f in node["cond_indep_stack"] if f.vectorized} & present
        if symbol is None or len(support) == 1:
            found[name] = support[0].expand(noise[name].shape + support.shape[1:])
            continue
        logits = _marginal(factors, symbol, plates, enumerated, under_vmap=under_vmap)
        order = sorted((s for s in logits._pyro_dims if s != symbol), key=lambda s: places[s])
        dims = logits._pyro_dims
        logits = logits.permute([dims.index(s) for s in (*order, symbol)])
        index = _invert(logits, _squeezed(noise[name], order, places))
        index._pyro_dims = "".join(order)
        factors = [(key, _fixed(factor, symbol, index)) for key, factor in factors]
        found[name] = support[_unpacked(index, places, noise[name].shape)]
    return found


def _num_plates(node: Mapping[str, Any]) -> int:
    return sum(bool(frame.vectorized) for frame in node["cond_indep_stack"])


def _marginal(
    factors: Sequence[tuple[frozenset[str], Tensor]],
    symbol: str,
    plates: set[str],
    enumerated: set[str],
    *,
    under_vmap: bool,
) -> Tensor:
    """Sum all other discrete sites out: log probabilities over the plates and one symbol."""
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    sums: set[str] = set()
    for key, factor in factors:
        here = enumerated & set(factor._pyro_dims)
        if here:
            # A fresh view: the contraction tells terms apart by identity.
            view = factor[...]
            view._pyro_dims = factor._pyro_dims
            tree.setdefault(key, []).append(view)
            sums |= here
    with shared_intermediates() as cache:
        return contract_to_tensor(
            tree,
            sums,
            target_ordinal=frozenset(plates),
            target_dims={symbol},
            cache=cache,
            ring=ring_for(cache, [one for _, one in factors], under_vmap=under_vmap),
        )


def _squeezed(noise: Tensor, order: Sequence[str], places: Mapping[str, int]) -> Tensor:
    """Keep the axes of the noise that the plates named have; the others have length 1."""
    keep = [places[symbol] + noise.dim() for symbol in order]
    shape = [noise.shape[axis] for axis in keep]
    return noise.reshape(shape)


def _invert(logits: Tensor, noise: Tensor) -> Tensor:
    """Index of the category in whose step of the distribution function the noise falls."""
    steps = torch.softmax(logits, -1).cumsum(-1)
    level = (noise * steps[..., -1].detach()).unsqueeze(-1)
    # Strictly below, and noise above 0: a category of probability 0 is never met.
    return (steps < level).sum(-1).clamp(max=logits.shape[-1] - 1)


def _fixed(factor: Tensor, symbol: str, index: Tensor) -> Tensor:
    """The factor at the drawn value of one site."""
    dims = factor._pyro_dims
    if symbol not in dims:
        return factor
    axis = dims.index(symbol)
    aligned = index.permute([index._pyro_dims.index(s) for s in dims if s in index._pyro_dims])
    for place, one in enumerate(dims):
        if one not in index._pyro_dims:
            aligned = aligned.unsqueeze(place)
    shape = list(factor.shape)
    shape[axis] = 1
    found = factor.gather(axis, aligned.expand(shape)).squeeze(axis)
    found._pyro_dims = dims.replace(symbol, "")
    return found


def _unpacked(index: Tensor, places: Mapping[str, int], shape: torch.Size) -> Tensor:
    """Put a packed tensor's axes where the plates stand."""
    full = [1] * len(shape)
    for symbol, size in zip(index._pyro_dims, index.shape):
        full[places[symbol]] = size
    return index.reshape(full).expand(shape)
