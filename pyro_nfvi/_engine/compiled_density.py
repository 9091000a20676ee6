"""``CompiledDensity``: a model's log joint with its gradient, captured once and compiled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_nfvi._chain_rule import score
from pyro_nfvi._engine.capture import capture_density
from pyro_nfvi._engine.program import NoRule, Unsupported
from pyro_nfvi._engine.rounding import rounded_anew, slack_of, tolerance_of
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import stream
from pyro_nfvi._stopwatch import Stopwatch
from pyro_nfvi._typing import TensorPair

if TYPE_CHECKING:
    from pyro_nfvi._engine.native.density import NativeDensity


@dataclass(frozen=True)
class BlockSizes:
    """Rows that compiled code evaluates together.

    Attributes:
        rows: Rows of a block: whole vectors of either precision, and few enough that a call with
            one row costs little. Blocks of 8 and of 64 take longer a row on most models.
        numbers: Numbers of the model, all rows of a block together, that fit the cache beside
            their gradients; blocks of larger models have fewer rows.
        fewest: Rows of the smallest block, one vector.
        compared: Rows at which compiled code is compared with the model.
    """

    rows: int = 16
    numbers: int = 1 << 16
    fewest: int = 8
    compared: int = 5

    def of(self, log_joint: LogJoint) -> int:
        """Return the rows of a block for a model; one where it takes particles one by one."""
        if log_joint.how == "loop":
            return 1
        rows = self.rows
        while rows > self.fewest and rows * log_joint.size > self.numbers:
            rows //= 2
        return rows


BLOCKS = BlockSizes()


class CompiledDensity:
    r"""The log joint of a model with its gradient, as a program that Python has no part in.

    .. math:: z, \text{streams} \mapsto \log p(x, z),\ \nabla_z \log p(x, z)

    Rows are evaluated in blocks of a fixed number, the last one filled up, so that a row has the
    same value whatever stands beside it. The gradient is that of
    :func:`pyro_nfvi._chain_rule.score`, limits included. A row at which the model would raise (a
    matrix without a Cholesky factor) is NaN. Parameters of the model are read at each call.

    Args:
        log_joint: The model's log joint.
        timeout: Seconds that a compile may take; what is compiled already takes none.
        watch: Is credited with the times of capture, compile and comparison.

    Shape:
        ``z (N, D)`` -> ``(N,)``, ``(N, D)``.

    Units:
        Nats.

    Cost:
        Making it: one run of the model, and a compile of about a second the first time. A call:
        some ten microseconds and the arithmetic.

    Raises:
        Unsupported: The model cannot be captured or compiled, or the compiled code differs from
            the model by more than rounding; the message is the reason.

    Attributes:
        backend: ``"native"``, or ``"hybrid"`` where PyTorch computes some operations.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi._pyro_model.latent_space import LatentSpace
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> y = torch.tensor(1.0)
        >>> space = LatentSpace.from_trace(pyro.poutine.trace(model).get_trace(y))
        >>> log_joint = LogJoint(model, (y,), {}, space)
        >>> density = CompiledDensity(log_joint)
        >>> density.value_and_grad(torch.zeros(4, 1), {})[1].squeeze(-1).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self, log_joint: LogJoint, *, timeout: float = math.inf, watch: Stopwatch | None = None
    ) -> None:
        watch = Stopwatch() if watch is None else watch
        loc = log_joint.latent.init_loc
        # Code is of the model and not of a fit: the seed is a constant, and the cache finds it.
        example = log_joint.draw_subsample(stream(0, "density", "subsample", device=loc.device))
        rows = loc.detach().expand(BLOCKS.of(log_joint), -1).clone()
        with watch.part("capture"):
            program = capture_density(log_joint, rows, example)
        # Here, because a release of PyTorch may lack what it stands on.
        from pyro_nfvi._engine.native.density import build_density

        self.backend = "native"
        with watch.part("compile"):
            try:
                self._native = build_density(program, timeout=timeout)
            except NoRule:
                self.backend = "hybrid"
                self._native = build_density(program, eager=True, timeout=timeout)
        self._log_joint, self._dtype = log_joint, rows.dtype
        self._streams = {name: index.shape for name, index in example.items()}
        with watch.part("comparison"):
            self._points = log_joint.points(BLOCKS.compared)
            problem = self.difference()
        if problem is not None:
            raise Unsupported(problem)

    @property
    def native(self) -> NativeDensity:
        """The compiled code, for other compiled code to call."""
        return self._native

    def takes(self, z: Tensor, subsample: Mapping[str, Tensor]) -> bool:
        """Tell whether it was built for such inputs."""
        shapes = {name: index.shape for name, index in subsample.items()}
        return z.dtype == self._dtype and z.device.type == "cpu" and shapes == self._streams

    def value_and_grad(self, z: Tensor, subsample: Mapping[str, Tensor]) -> TensorPair:
        """Evaluate rows ``(N, D)``: log density ``(N,)`` and gradient ``(N, D)``, without a graph.

        Args:
            z: The rows; see :meth:`takes`.
            subsample: Indices of the plates that subsample.
        """
        streams = {name: subsample[name] for name in self._streams}
        return self._native(z, streams, self._log_joint.param_leaves())

    def difference(self) -> str | None:
        """Say how it differs from the model as it is now by more than rounding, or None.

        At points near the start and far from it.

        Cost:
            Two runs of the model, and some more where they differ by more than well-conditioned
            ones would.
        """
        z = self._points
        # Code is right or wrong whatever the seed of the fit: this one is a constant.
        subsample = self._log_joint.draw_subsample(stream(0, "density", "check", device=z.device))

        def eager() -> TensorPair:
            log_p, gradient, _ = score(lambda rows: self._log_joint.eager(rows, subsample), z)
            return log_p, gradient

        own, theirs = self.value_and_grad(z, subsample), eager()
        problem = _difference(own, theirs, ())
        return problem and _difference(own, theirs, list(rounded_anew(eager)))


def _difference(own: TensorPair, eager: TensorPair, rounded: Sequence[TensorPair]) -> str | None:
    """Compare log densities and gradients at the rows where the model has both."""
    tolerance = tolerance_of(own)
    rows = torch.isfinite(eager[0]) & torch.isfinite(eager[1]).all(-1)
    for name, mine, theirs, others in zip(
        ("log density", "gradient"), own, eager, zip(*rounded) if rounded else ((), ())
    ):
        mine, theirs = mine[rows].double(), theirs[rows].double()
        size = float(theirs.abs().max()) if theirs.numel() else 0.0
        spreads = [float((x[rows].double() - theirs).abs().max()) for x in others if len(theirs)]
        slack = slack_of(tolerance * (1 + size), 1 + size, spreads)
        off = (mine - theirs).abs().nan_to_num(nan=math.inf)
        if off.numel() and float(off.max()) > slack:
            place = int(off.argmax())
            found, expected = float(mine.reshape(-1)[place]), float(theirs.reshape(-1)[place])
            return f"its {name} is {found:.8g}, not {expected:.8g}"
    return None
