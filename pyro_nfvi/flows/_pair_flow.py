"""Modules that return point and log-determinant together, as flows: nflows and normflows."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from pyro_nfvi._typing import Contexts, Image, Points
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Chain, Flow

#: Of both libraries: what is no map of single rows and all reals, or has no exact log-determinant.
REFUSED = {
    "ActNorm": "its first call changes it; use flows.ActNorm",
    "BatchNorm": "a call changes its statistics; use flows.BatchNorm",
    "HamiltonianMonteCarlo": "it draws at random; use distributions.PathSampler",
    "MetropolisHastings": "it draws at random; use distributions.PathSampler",
    "Residual": "its log-determinant is estimated at random",
    "Planar": "it has no inverse for tanh; use 'planar'",
    "Radial": "it has no inverse; use 'radial'",
    "Sigmoid": "its codomain is (0, 1), not all reals",
    "Logit": "its domain is (0, 1), not all reals",
    "Tanh": "its codomain is (-1, 1), not all reals",
}


@final
class PairFlow(Flow):
    """A module with ``forward`` and ``inverse`` that return ``(point, log-determinant)``.

    Made by :func:`pyro_nfvi.flows.adapt`, of transforms of nflows and layers of normflows.

    Args:
        source: The module.
        dim: Event size D.
        context_dim: Size of the context.
    """

    def __init__(self, source: nn.Module, dim: int, context_dim: int) -> None:
        super().__init__(dim, context_dim)
        self.source = source
        self.inverse_kind = "sequential"

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        return self._through(self.source, x, context)

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        source: Any = self.source
        return self._through(source.inverse, y, context)

    def _through(self, function: Any, x: Tensor, context: Tensor | None) -> Image:
        x, context = self.enter(x, context)
        # Both libraries take rows alone.
        rows = x.reshape(-1, self.dim)
        more = () if context is None else (context.reshape(len(rows), -1),)
        y, ladj = function(rows, *more)
        if not isinstance(ladj, Tensor):  # the number 0
            ladj = rows.new_full((len(rows),), float(ladj))
        # Linear layers give one number for all rows.
        ladj = ladj.to(rows).reshape(-1).expand(len(rows))
        return y.reshape(x.shape), ladj.reshape(x.shape[:-1])


def is_pair(source: object) -> bool:
    """Tell whether a module is one of nflows or normflows."""
    return isinstance(source, nn.Module) and any(
        kind.__module__.split(".")[0] in ("nflows", "normflows") for kind in type(source).__mro__
    )


def pair_flow(source: Any, dim: int, context_dim: int) -> Flow:
    """Take a transform of nflows, a layer of normflows, or a whole flow of either, as a flow.

    A whole flow of nflows runs from data to base and is turned round; bases are left out.

    Raises:
        OptionError: One that is no map of single rows, or known to be wrong.
    """
    for part in source.modules():
        reason = REFUSED.get(type(part).__name__)
        if reason and is_pair(part):
            raise OptionError(
                f"adapt refuses {type(part).__module__}.{type(part).__name__}: {reason}."
            )
    layers = getattr(source, "flows", None) if hasattr(source, "q0") else None
    if isinstance(layers, nn.ModuleList):  # of normflows: from base to data, as ours
        return Chain(*(PairFlow(layer, dim, context_dim) for layer in layers))
    inner = getattr(source, "_transform", None)
    if hasattr(source, "_distribution") and isinstance(inner, nn.Module):
        return PairFlow(inner, dim, context_dim).inv
    return PairFlow(source, dim, context_dim)


@torch.no_grad()
def check_pair(flow: Flow) -> None:
    """Refuse what is no flow of all reals at some points near 0 and far out.

    Raises:
        OptionError: It fails there, or does not come back.
    """
    like = next((p for p in flow.parameters() if p.is_floating_point()), torch.empty(()))
    x = torch.linspace(-0.5, 0.5, flow.dim).to(like) * like.new_tensor([[1.0], [20.0]]) + 0.1
    context = like.new_zeros(2, flow.context_dim) if flow.context_dim else None
    try:
        y, ladj = flow(x, context)
        back, other = flow.inverse(y, context)
    except Exception as error:
        raise OptionError(
            f"adapt tried {_name(flow)} at points {tuple(x.shape)}, and it failed. Is it built for "
            f"dim={flow.dim}, context_dim={flow.context_dim}? It says: {type(error).__name__}: "
            f"{error}"
        ) from error
    if not torch.allclose(back, x, rtol=1e-2, atol=1e-2):
        raise OptionError(f"adapt refuses {_name(flow)}: its inverse does not come back.")
    if not torch.allclose(ladj, -other, rtol=1e-2, atol=1e-2):
        raise OptionError(
            f"adapt refuses {_name(flow)}: the log-determinants of its two directions disagree."
        )


def _name(flow: Flow) -> str:
    parts = [part for part in flow.modules() if isinstance(part, PairFlow)]
    return type(parts[0].source).__name__ if parts else type(flow).__name__
