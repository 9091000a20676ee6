"""Capture: one step of a fit as a :class:`Program`, a log joint as a :class:`DensityProgram`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor

from pyro_nfvi._chain_rule import score
from pyro_nfvi._engine.lazy_graph_module import LazyGraphModule
from pyro_nfvi._engine.program import DensityProgram, Program, Unsupported, fixed_name
from pyro_nfvi._eval_mode import fit_pass
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.objectives._objective import Objective

if TYPE_CHECKING:
    from pyro_nfvi._engine.recorder import Recorder
    from pyro_nfvi._engine.target_call import TargetCall


def capture(
    guide: AutoFlow,
    log_joint: LogJoint,
    objective: Objective,
    params: Sequence[Tensor],
    num_model_params: int,
    eps: Tensor,
    subsample: Mapping[str, Tensor],
    target: TargetCall | None = None,
) -> Program:
    """Record one evaluation of the gradient.

    The step runs once, without validation; nothing of it is kept but the graph. What Python
    decides on the way (which sites there are, their shapes, branches on data) is decided for the
    whole fit.

    Args:
        guide: The guide, set up.
        log_joint: The model's log joint.
        objective: What is estimated.
        params: All leaves that are trained; those of the model come last.
        num_model_params: How many of them are the model's own.
        eps: Noise of one step, ``(P, D)``.
        subsample: Indices of the plates that subsample, and the objective's own numbers.
        target: Takes the place of the model, as one operation; ``model_params`` are none then.

    Returns:
        The program. Its parameters are those that the gradient reaches; of tables of which the
        step sees some rows, these rows.

    Raises:
        Unsupported: The step cannot be captured; the message is the reason.
    """
    # Here, because it stands on private parts of PyTorch: should a release lack one, the capture
    # is lost and not the package.
    from pyro_nfvi._engine.recorder import Recorder

    model_params = list(params[len(params) - num_model_params :])
    gathered = guide.gathered(subsample)
    tables = () if gathered is None else gathered.trained
    held = {id(one.table) for one in tables}
    # Of tables the rows that the step sees stand among the parameters, as the last ones.
    leaves = [param for param in params if id(param) not in held]
    streams = {name: subsample[name] for name in subsample}
    fixed: list[Tensor] = []
    if gathered is not None:
        numbers = gathered.numbers(subsample)
        leaves += [one.at(numbers).requires_grad_() for one in tables]
        fixed = [one.at(numbers) for one in gathered.fixed]
        streams |= {fixed_name(i): rows for i, rows in enumerate(fixed)}
    inputs = {f"param_{i}": param for i, param in enumerate(leaves)}
    inputs["eps"] = eps
    inputs |= {f"stream_{i}": index for i, index in enumerate(streams.values())}
    recorder = Recorder(inputs)

    def log_density(z: Tensor) -> Tensor:
        return log_joint(z, subsample)

    def density() -> FlowDensity:
        if gathered is None:
            return guide.density_at(subsample)
        return gathered.density(subsample, [*leaves[len(leaves) - len(tables) :], *fixed])

    with _reasons("the step"), fit_pass(guide), recorder:
        estimate = objective.at(subsample)(
            density(),
            log_density if target is None else target.density(recorder, subsample),
            eps,
            model_params,
        )
        grads = torch.autograd.grad(estimate.surrogate, leaves, allow_unused=True)
        bound, num_bad = estimate.bound, estimate.num_bad
    reached = [i for i, grad in enumerate(grads) if grad is not None]
    recorder.output([*(grads[i] for i in reached), bound, num_bad])
    _refuse_views(recorder, params)
    _drop_inputs(recorder, {f"param_{i}" for i in range(len(leaves)) if i not in reached})
    graph = LazyGraphModule(torch.nn.Module(), recorder.graph)
    dense = len(leaves) - len(tables)
    return Program(
        graph,
        tuple(leaves[i].detach() if i >= dense else leaves[i] for i in reached),
        eps,
        streams,
        tuple(recorder.consts),
        tables=tuple(tables[i - dense] for i in reached if i >= dense),
        gathered=gathered,
    )


def capture_density(
    log_joint: LogJoint, z: Tensor, subsample: Mapping[str, Tensor]
) -> DensityProgram:
    """Record the log density of a block of rows with its gradient.

    The gradient is that of :func:`pyro_nfvi._chain_rule.score`, whose limits become part of the
    graph. The model runs once, without validation, in the store scope of the caller.

    Args:
        log_joint: The model's log joint.
        z: A block of rows ``(R, D)``.
        subsample: Indices of the plates that subsample.

    Raises:
        Unsupported: The model cannot be captured; the message is the reason.
    """
    from pyro_nfvi._engine.recorder import Recorder  # as above

    params = log_joint.param_leaves()
    inputs = {"z": z}
    inputs |= {f"stream_{i}": index for i, index in enumerate(subsample.values())}
    inputs |= {f"param_{i}": leaf for i, leaf in enumerate(params.values())}
    recorder = Recorder(inputs)
    with _reasons("the log joint"), recorder:
        log_p, gradient, _ = score(lambda rows: log_joint.eager(rows, subsample), z)
    recorder.output([log_p, gradient])
    _refuse_views(recorder, list(params.values()))
    graph = LazyGraphModule(torch.nn.Module(), recorder.graph)
    return DensityProgram(graph, z, dict(subsample), params, tuple(recorder.consts))


def capture_flow(flow: Flow, rows: int) -> tuple[DensityProgram, DensityProgram]:
    r"""Record the forward pass of a flow, and its vector-Jacobian product.

    Both in the form of a log density with its gradient, so that the same code runs them.
    The first takes noise ``(R, D)`` to the log-determinant and the point. The second takes
    noise and a vector side by side, ``(R, 2 D)``, and differentiates

    .. math:: h(\varepsilon, s) = s^\top f(\varepsilon) + \log|\det J_f(\varepsilon)|

    whose gradient in the noise is :math:`J^\top s + \nabla\log|\det J|`.

    Args:
        flow: The flow, without a context.
        rows: Rows of a block.

    Raises:
        Unsupported: The flow cannot be captured; the message is the reason.
    """
    params = dict(flow.named_parameters())
    like = next(iter(params.values()), torch.empty(()))
    noise = torch.zeros(rows, flow.dim, dtype=like.dtype, device=like.device)

    def push(eps: Tensor) -> TensorPair:
        z, ladj = flow(eps)
        return ladj.detach(), z.detach()

    def pull(both: Tensor) -> TensorPair:
        def product(both: Tensor) -> Tensor:
            z, ladj = flow(both[:, : flow.dim])
            return (z * both[:, flow.dim :]).sum(-1) + ladj

        total, gradient, _ = score(product, both)
        return total, gradient

    return (
        _row_program("the flow", push, noise, params),
        _row_program("the flow's derivative", pull, torch.cat([noise, noise], -1), params),
    )


def _row_program(
    what: str, function: Callable[[Tensor], TensorPair], z: Tensor, params: Mapping[str, Tensor]
) -> DensityProgram:
    """Record a function of rows ``(R, D)`` that returns ``(R,)`` and ``(R, E)``."""
    from pyro_nfvi._engine.recorder import Recorder  # as above

    inputs = {"z": z} | {f"param_{i}": leaf for i, leaf in enumerate(params.values())}
    recorder = Recorder(inputs)
    with _reasons(what), recorder:
        found = function(z)
    recorder.output(list(found))
    _refuse_views(recorder, list(params.values()))
    graph = LazyGraphModule(torch.nn.Module(), recorder.graph)
    return DensityProgram(graph, z, {}, dict(params), tuple(recorder.consts))


@contextmanager
def _reasons(what: str) -> Iterator[None]:
    """Run a model without validation, with gradients, and make a reason of any exception."""
    try:
        with pyro.validation_enabled(False), torch.enable_grad():
            yield
    except Unsupported:
        raise
    except Exception as error:  # a user's model may fail in any way
        lines = str(error).strip().splitlines() or [""]
        raise Unsupported(
            f"{what} failed while it was captured: {type(error).__name__}: {lines[0][:200]}"
        ) from error


def _refuse_views(recorder: Recorder, params: Sequence[Tensor]) -> None:
    """Refuse constants that look into a parameter, and so would change with it."""
    storages = {param.untyped_storage().data_ptr() for param in params}
    for const in recorder.consts:
        if const.untyped_storage().data_ptr() in storages:
            raise Unsupported("a view of a parameter was taken before the model ran")


def _drop_inputs(recorder: Recorder, names: set[str]) -> None:
    """Take inputs that no gradient reaches out of the graph."""
    for node in list(recorder.graph.nodes):
        if node.op == "placeholder" and node.target in names:
            if node.users:
                # It has a value but no gradient, and so it never changes.
                raise Unsupported("a parameter that trains has no gradient")
            recorder.graph.erase_node(node)
