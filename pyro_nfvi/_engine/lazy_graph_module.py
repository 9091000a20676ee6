"""A graph whose Python code is written when it is first run; what is compiled never needs it."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule


class LazyGraphModule(GraphModule):
    """A ``GraphModule`` that writes and compiles its Python code at its first call.

    A fit makes several graphs of thousands of nodes, and native code is generated from their
    nodes: writing Python for them would be a tenth of a short fit.

    Example:
        >>> import torch
        >>> graph = torch.fx.symbolic_trace(lambda x: x + 1).graph
        >>> int(LazyGraphModule(torch.nn.Module(), graph)(torch.tensor(1)))
        2
    """

    def recompile(self) -> Any:
        """Leave the code to the first call."""

    def forward(self, *args: Any) -> Any:
        """Write the code, which takes the place of this method in the instance's own class."""
        if "forward" not in vars(type(self)):
            super().recompile()
        return type(self).forward(self, *args)

    @property
    def code(self) -> str:
        """The Python code of the graph."""
        super().recompile()
        return super().code
