"""A captured step, and what runs blocks of it: the value at which capture and back ends meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_nfvi._optim.torch_optimizers import Adam
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import NFVIError

if TYPE_CHECKING:
    from pyro_nfvi.guides._gathered_rows import GatheredRows, GatheredTable


class Unsupported(NFVIError, NotImplementedError):
    """A back end, or the capture itself, cannot do this step; the message is the reason.

    It ends up in ``fit.engine_reason``: a clause in words, without a full stop, that names the
    operation, the site or the option.
    """


class NoRule(Unsupported):
    """One operation cannot be compiled; what is around it perhaps can."""


def fixed_name(place: int) -> str:
    """Name the stream of the rows of a table that stays."""
    return f"fixed rows {place}"


@dataclass(frozen=True)
class Program:
    r"""One evaluation of the gradient as a pure function of tensors.

    Inputs of ``graph``, in this order: every parameter, ``eps``, the streams, the constants.
    Outputs, in this order: the gradient of each parameter (of the parameter's shape), the bound
    (a scalar, in nats) and the number of bad particles (an integer scalar). The graph holds ATen
    operations of static shape, without in-place ones, without random ones, without tensors of
    its own; a constant of one value is ``aten.full`` where it stands. Every node has its shape,
    strides and type in ``node.meta["val"]``, a tensor on the meta device (a list of them for an
    operation with several outputs). Clipping, the test for finite gradients and the optimiser are
    the runner's.

    Attributes:
        graph: The graph.
        params: The leaves that train, live; the model's own come last, but for rows of tables.
        eps: Example noise ``(P, D)``, of one block.
        streams: Inputs of every step beside the noise, examples by name: subsample indices.
        consts: Tensors that stay the same during a fit: data, masks, buffers. Their values are
            never part of generated code, so that two fits of one shape share it.
        tables: Tables of which a step sees some rows. The last parameters are these rows, as
            examples ``(R, k)``: a runner gathers them for each step, and moves them in the tables.
        gathered: Where these rows, and those of tables that stay, come from.
        blocks: Blocks of P particles in a step. The graph is evaluated for each, and gradients and
            bounds are averaged, weighted by the particles that count; so fits with different
            numbers of particles share compiled code. More than one is for compiled code alone.
    """

    graph: GraphModule
    params: tuple[Tensor, ...]
    eps: Tensor
    streams: Mapping[str, Tensor] = field(default_factory=dict)
    consts: tuple[Tensor, ...] = ()
    blocks: int = 1
    tables: tuple[GatheredTable, ...] = ()
    gathered: GatheredRows | None = None

    @property
    def dense(self) -> tuple[Tensor, ...]:
        """The parameters that a step sees whole."""
        return self.params[: len(self.params) - len(self.tables)]

    @property
    def held(self) -> tuple[Tensor, ...]:
        """The live tensors that hold the parameters, in their order."""
        return (*self.dense, *(one.table for one in self.tables))

    def inputs(self, streams: Mapping[str, Tensor]) -> tuple[TensorDict, TensorDict]:
        """Return all streams of some steps, and the numbers of their rows in tables, by block."""
        if self.gathered is None:
            return dict(streams), {}
        numbers = self.gathered.numbers(streams)
        rows = enumerate(one.at(numbers) for one in self.gathered.fixed)
        return {**streams, **{fixed_name(i): found for i, found in rows}}, numbers

    def __call__(
        self, eps: Tensor, streams: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Run the graph once with PyTorch: ``(grads, bound, num_bad)`` at the present parameters.

        Without a graph of autograd's.
        """
        with torch.no_grad():
            streams, numbers = self.inputs(streams)
            *grads, bound, num_bad = self.graph(
                *(param.detach() for param in self.dense),
                *(one.at(numbers) for one in self.tables),
                eps,
                *(streams[name] for name in self.streams),
                *self.consts,
            )
        return grads, bound, num_bad


@dataclass(frozen=True)
class DensityProgram:
    r"""A log joint with its gradient as a pure function of a block of rows.

    Inputs of ``graph``, in this order: ``z (R, D)``, the streams, the model's parameters, the
    constants. Outputs: the log density ``(R,)`` in nats and its gradient in ``z``, ``(R, D)``.
    Otherwise as in :class:`Program`.

    Attributes:
        graph: The graph.
        z: Example rows ``(R, D)``.
        streams: Subsample indices, examples by name.
        params: Examples of the model's parameters by name. They are inputs, since training moves
            them; a name leads to the present tensor.
        consts: Tensors that stay the same: data, masks, buffers.
    """

    graph: GraphModule
    z: Tensor
    streams: Mapping[str, Tensor] = field(default_factory=dict)
    params: Mapping[str, Tensor] = field(default_factory=dict)
    consts: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class OptimizerSpec:
    """Settings of the optimiser that a runner needs.

    Attributes:
        optimizer: The live torch optimiser, whose state ``pull`` and ``push`` read and write.
        kind: Its class: ``"Adam"``, ``"AdamW"``, ``"RMSprop"`` ...; empty for a class that is not
            torch's own.
        groups: For each parameter of the program, the number of its group.
        options: For each group torch's options by their names (``betas``, ``eps``,
            ``weight_decay`` ...), without ``params`` and ``lr``, which comes with each step.
        clip: Largest norm of the whole gradient, all parameters together.
    """

    optimizer: torch.optim.Optimizer
    kind: str
    groups: tuple[int, ...]
    options: tuple[Mapping[str, Any], ...]
    clip: float

    @classmethod
    def of(
        cls, optimizer: torch.optim.Optimizer, params: Sequence[Tensor], clip: float
    ) -> OptimizerSpec:
        """Describe an optimiser that holds ``params``.

        Raises:
            Unsupported: It does not hold all of them.
        """
        where = {
            id(param): index
            for index, group in enumerate(optimizer.param_groups)
            for param in group["params"]
        }
        if any(id(param) not in where for param in params):
            raise Unsupported("the optimiser does not hold every parameter")
        options = tuple(
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in optimizer.param_groups
        )
        own = type(optimizer).__module__.split(".")[:2] == ["torch", "optim"]
        kind = type(optimizer).__name__ if own else ""
        if isinstance(optimizer, Adam):  # for what a step sees whole its form by rows is the same
            kind = "Adam"
        return cls(optimizer, kind, tuple(where[id(param)] for param in params), options, clip)


@dataclass(frozen=True)
class BlockResult:
    """Result of a block of steps, one entry for each step that was tried.

    Attributes:
        bounds: The bound before each update, float64, in nats.
        num_bad: Particles left out because their density or its gradient was not finite.
        ok: Whether the parameters were updated. Only the last entry can be False: a block ends
            with the first step that was skipped.
        interrupted: Whether Ctrl-C ended the block.
    """

    bounds: Tensor
    num_bad: Tensor
    ok: Tensor
    interrupted: bool = False


class Runner(Protocol):
    """Runs blocks of steps with its own copy of the parameters and of the optimiser's state."""

    def run(self, eps: Tensor, streams: Mapping[str, Tensor], rates: Tensor) -> BlockResult:
        """Take up to n steps.

        A step is skipped, leaving parameters and optimiser as they were, if the norm of its
        gradient is not finite or if more than half of its particles are bad; the block ends there.

        Args:
            eps: Noise of each step, ``(n, P, D)``.
            streams: The other inputs of each step, ``(n, ...)``.
            rates: Learning rate of each step and group of the optimiser, ``(n, groups)``, float64.
        """

    def push(self) -> None:
        """Take parameters and optimiser state from the live tensors and the torch optimiser."""

    def pull(self) -> None:
        """Write parameters and optimiser state to the live tensors and the torch optimiser."""


@runtime_checkable
class SnapshotRunner(Runner, Protocol):
    """A runner that copies its state by itself, in less time than through the live tensors."""

    def snapshot(self) -> Any:
        """Copy everything that steps change, for :meth:`restore`."""

    def restore(self, saved: Any) -> None:
        """Go back to a snapshot, leaving the live tensors alone."""
