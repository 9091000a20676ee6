"""A log density that a captured step calls, and knows nothing else of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_nfvi._typing import TensorPair

if TYPE_CHECKING:
    from pyro_nfvi._engine.recorder import Recorder
    from pyro_nfvi._pyro_model.log_joint import LogJoint


class TargetCall:
    """The operation ``(z, *streams) -> (log_p, score)`` of a graph.

    Run by Python it evaluates the model; compiled code calls the function at ``address`` instead,
    so that neither the graph nor the code that is made of it depends on the model.

    Args:
        evaluate: Rows ``(N, D)`` and streams by name to log density ``(N,)`` and gradient
            ``(N, D)``, without a graph.
        names: Names of the streams, in order.
        address: Address of the compiled density's ``struct NfviTarget``; 0 where there is none.
        keeps: What has to live as long as the address is used.
    """

    __name__ = "target"

    def __init__(
        self,
        evaluate: Callable[[Tensor, Mapping[str, Tensor]], TensorPair],
        names: Sequence[str],
        address: int = 0,
        keeps: Any = None,
    ) -> None:
        self.names, self.address = tuple(names), address
        self._evaluate, self._keeps = evaluate, keeps

    def __call__(self, z: Tensor, *streams: Tensor) -> TensorPair:
        return self._evaluate(z, dict(zip(self.names, streams)))

    def __str__(self) -> str:
        return "the model"

    def density(
        self, recorder: Recorder, streams: Mapping[str, Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """Return the log density of rows, recorded as one operation and differentiable once."""

        def log_density(z: Tensor) -> Tensor:
            rows = tuple(streams[name] for name in self.names)
            found: Tensor = _Recorded.apply(z, lambda z: recorder.call(self, (z, *rows)))
            return found

        return log_density


def target_of(
    density: Any, log_joint: LogJoint, z: Tensor, streams: Mapping[str, Tensor]
) -> TargetCall | None:
    """Make the call of a compiled density; None where it is no native code or takes no such rows.

    A density evaluates blocks of rows: not full ones would be computed for nothing.

    Args:
        density: A :class:`~pyro_nfvi._engine.compiled_density.CompiledDensity`, or anything else.
        log_joint: The log joint by the model itself.
        z: Rows ``(N, D)``.
        streams: Inputs of the step; those that the density takes are among them.
    """
    native = getattr(density, "native", None)
    names = tuple(log_joint.subsampled)
    if native is None or not native.address or len(z) % native.rows:
        return None
    if not density.takes(z, {name: streams[name] for name in names}):
        return None
    native.put(log_joint.param_leaves())
    return TargetCall(log_joint.value_and_grad, names, native.address, density)


class _Recorded(torch.autograd.Function):
    """A log density whose gradient comes with it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, call: Callable[[Tensor], Sequence[Tensor]]) -> Tensor:
        log_p, gradient = call(z)
        ctx.save_for_backward(gradient)
        return log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0].unsqueeze(-1) * gradient, None
