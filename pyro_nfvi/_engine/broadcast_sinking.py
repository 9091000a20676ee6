"""Broadcast sinking: nothing of a graph is computed wider than it is.

``torch.distributions`` expands parameters before it computes. Here every value is known by what it
repeats: operations on repeated values are computed once for each distinct number, the expansion is
moved below them, and a sum of repeated numbers becomes a product by their count. An element-wise
special function of gathered values (``x[group]``) is computed before the gather.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.fx import GraphModule

from pyro_nfvi._engine.broadcast_rules import rule_of
from pyro_nfvi._engine.lazy_graph_module import LazyGraphModule
from pyro_nfvi._engine.repeated_values import Sinking


def sink_broadcasts(graph: GraphModule, consts: Sequence[Tensor] = ()) -> GraphModule:
    r"""Rewrite a graph so that it computes each distinct number once.

    Inputs and outputs keep their order, shapes and types. Results are the same up to rounding, NaN
    and infinite ones included: a sum of n equal numbers is n times the number, which holds for
    these as well, and no zero is multiplied by what was not multiplied by it before.

    Args:
        graph: A functional graph of ATen operations with a meta tensor in every
            ``node.meta["val"]``, as of a :class:`~pyro_nfvi._engine.program.Program`.
        consts: Values of its last inputs. Of one that is the same along its first axis, as data are
            that were expanded to the particles, one part is read.

    Returns:
        A new graph of the same kind, of which the old one is no part.

    Cost:
        Some ten microseconds for each operation that is moved.

    Example:
        >>> import torch
        >>> from torch.fx import symbolic_trace
        >>> from pyro_nfvi._engine.recorder import Recorder
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> recorder = Recorder({"x": x})
        >>> with recorder:
        ...     out = x.expand(2, 100).lgamma().sum(1)
        >>> recorder.output([out])
        >>> narrow = sink_broadcasts(torch.fx.GraphModule(torch.nn.Module(), recorder.graph))
        >>> [tuple(n.meta["val"].shape) for n in narrow.graph.nodes if "lgamma" in n.name]
        [(2, 1)]
    """
    return LazyGraphModule(graph, Sinking(graph, rule_of, consts).graph)
