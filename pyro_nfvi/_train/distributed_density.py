"""A log joint of which several processes evaluate a part of the rows each."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor

from pyro_nfvi._chain_rule import score
from pyro_nfvi._processes.row_service import RowFunction, RowService
from pyro_nfvi._pyro_model.log_joint import LogJoint, LogJointBackend
from pyro_nfvi._typing import TensorPair


def own_rows(log_joint: LogJoint, compiled: LogJointBackend | None) -> RowFunction:
    """Return what a process evaluates alone: compiled code where it takes the rows, or the model.

    Args:
        log_joint: The log joint.
        compiled: Its compiled code, or None.
    """
    eager = copy.copy(log_joint)  # which leaves out what stands in for the model

    def evaluate(rows: Tensor, indices: Mapping[str, Tensor]) -> TensorPair:
        if compiled is not None and compiled.takes(rows, indices):
            return compiled.value_and_grad(rows, indices)
        log_p, gradient, _ = score(lambda z: eager(z, indices), rows)
        return log_p, gradient

    return evaluate


class DistributedDensity:
    """Stands in for a model by evaluating its rows over several processes.

    Fewer rows than processes, and a model whose parameters are trained, are left to the first
    process.

    Args:
        log_joint: The log joint.
        compiled: Its compiled code in this process, or None.
        service: Evaluates rows over the processes.
        size: Number of processes.
    """

    def __init__(
        self,
        log_joint: LogJoint,
        compiled: LogJointBackend | None,
        service: RowService,
        size: int,
    ) -> None:
        self._log_joint, self.service, self.size = log_joint, service, size
        self.alone = compiled
        self._names = tuple(log_joint.subsampled)

    def own(self) -> LogJoint:
        """Return the log joint as this process evaluates it alone."""
        found = copy.copy(self._log_joint)
        found.use(self.alone)
        return found

    def takes(self, z: Tensor, subsample: Mapping[str, Tensor]) -> bool:
        """Tell whether the rows are to be split."""
        if self._log_joint.named_parameters() or not set(self._names) <= set(subsample):
            return False
        return z.shape[:-1].numel() >= self.size

    def value_and_grad(self, z: Tensor, subsample: Mapping[str, Tensor]) -> TensorPair:
        """Evaluate rows ``(N, D)``: log density ``(N,)`` and gradient ``(N, D)``."""
        return self.service.evaluate(z, {name: subsample[name] for name in self._names})

    def difference(self) -> str | None:
        """Say how this process's compiled code differs from the model as it is now, or None."""
        return None if self.alone is None else self.alone.difference()
