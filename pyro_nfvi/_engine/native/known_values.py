"""Constant folding: values that depend on constants alone are computed before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

_RANDOM = ("rand", "normal", "bernoulli", "uniform", "exponential", "multinomial", "dropout")
#: Numbers that a folded constant may hold (32 MB of doubles), unless the tensors that it is made of
#: hold more.
_MAX_FOLDED_SIZE = 4_000_000


def known_values(graph: GraphModule, given: Mapping[Node, Tensor]) -> dict[Node, Tensor]:
    """Compute the nodes that depend on constants alone.

    Views of data stay views. What depends on no tensor at all (a filled one) is left to the rules,
    which know it as a formula.
    """
    values: dict[Node, Tensor] = dict(given)
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            values[node] = getattr(graph, str(node.target)).detach()
        elif node.op == "call_function":
            _compute(node, values)
    return values


def _compute(node: Node, values: dict[Node, Any]) -> None:
    name = str(node.target)
    inputs = node.all_input_nodes
    if any(word in name for word in _RANDOM):
        return
    if not inputs or any(one not in values for one in inputs):
        return

    def value(one: Node) -> Any:
        return values[one]

    try:
        with torch.no_grad():
            args = torch.fx.node.map_arg(node.args, value)
            kwargs = torch.fx.node.map_arg(dict(node.kwargs), value)
            made = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, ValueError, IndexError):
        return
    own = sum(v.numel() for v in [made] if isinstance(v, Tensor))
    most = max(
        (values[one].numel() for one in inputs if isinstance(values[one], Tensor)), default=0
    )
    if own > max(_MAX_FOLDED_SIZE, most):
        return
    values[node] = made
