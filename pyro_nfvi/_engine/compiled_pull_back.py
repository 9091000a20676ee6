"""``CompiledPullBack``: a density pulled back through a flow, with the flow as compiled code."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_nfvi._engine.capture import capture_flow
from pyro_nfvi._engine.compiled_density import BLOCKS
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._engine.rounding import tolerance_of
from pyro_nfvi._gaussian_vi.target import ScoredDensity
from pyro_nfvi._mcmc.neutra import PulledBack
from pyro_nfvi._random import stream
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.flows._base import Flow


class CompiledPullBack:
    r"""A density of z as a density of base noise, as :class:`PulledBack`, without Python inside.

    The code depends on the kind of the flow and on D, and neither on the model nor on the values of
    the flow's parameters: it is found again for other fits.

    Args:
        density: The density of z, with its gradient.
        flow: The flow, without a context, in eval mode.
        timeout: Seconds that a compile may take.

    Raises:
        Unsupported: The flow cannot be captured or compiled, or the compiled code differs from it;
            the message is the reason.

    Cost:
        Making it: two runs of the flow, and a compile of one to ten seconds the first time. A call:
        one evaluation of the density, two forward passes and one backward pass of the flow.

    Example:
        >>> import torch
        >>> from pyro_nfvi._mcmc.autograd_density import AutogradDensity
        >>> from pyro_nfvi.flows import make_flow
        >>> normal = AutogradDensity(lambda z: -0.5 * z.square().sum(-1))
        >>> pulled = CompiledPullBack(normal, make_flow("iaf*2", dim=3))
        >>> pulled.value_and_grad(torch.ones(5, 3))[1][0].tolist()
        [-1.0, -1.0, -1.0]
    """

    def __init__(self, density: ScoredDensity, flow: Flow, *, timeout: float = math.inf) -> None:
        # Here, because a release of PyTorch may lack what it stands on.
        from pyro_nfvi._engine.native.density import build_density

        self._density, self._dim = density, flow.dim
        push, pull = capture_flow(flow, BLOCKS.rows)
        self._push = build_density(push, timeout=timeout)
        self._pull = build_density(pull, timeout=timeout)
        # By name, in the order of the programs; the values are those of each call.
        self._params = dict(flow.named_parameters())
        if problem := self._difference(flow):
            raise Unsupported(problem)

    def value_and_grad(self, eps: Tensor) -> TensorPair:
        """Return log density ``(N,)`` and gradient ``(N, D)`` at noise ``(N, D)``."""
        ladj, z = self._push(eps, {}, self._params)
        log_p, score = self._density.value_and_grad(z)
        both = torch.cat([eps, score.to(eps)], -1)
        _, gradient = self._pull(both, {}, self._params)
        return log_p + ladj, gradient[:, : self._dim]

    def _difference(self, flow: Flow) -> str | None:
        """Compare with the flow itself, on a density that is cheap, at noise of twice the width."""

        class Bowl:
            def value_and_grad(self, z: Tensor) -> TensorPair:
                return -(z.square() + 1).sqrt().sum(-1), -z / (z.square() + 1).sqrt()

        like = next(iter(self._params.values()), torch.empty(()))
        # Code is right or wrong whatever the seed of the fit: this one is a constant.
        noise = torch.randn(
            BLOCKS.rows + 3, self._dim, dtype=like.dtype, generator=stream(0, "pull-back", "check")
        )
        density, self._density = self._density, Bowl()
        try:
            own, theirs = (
                self.value_and_grad(2 * noise),
                PulledBack(Bowl(), flow).value_and_grad(2 * noise),
            )
        finally:
            self._density = density
        tolerance = tolerance_of(own)
        for name, mine, other in zip(("log density", "gradient"), own, theirs):
            off = float((mine - other).abs().max())
            if not off <= tolerance * (1 + float(other.abs().max())):
                return f"its {name} is off by {off:.2g}"
        return None
