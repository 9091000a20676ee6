r"""Gradients of a log density in which an exact zero of the chain rule wins over an infinity.

``(x / c) ** h`` at ``x = 0`` is 0 for every ``c``, so that its derivative in ``c`` is 0. The chain
rule multiplies the derivative of the power, which is infinite for ``h < 1``, by that of the
quotient, which is exactly 0, and floating point makes NaN of the product.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

__all__ = ["Singularity", "find_singularity", "score"]

aten = torch.ops.aten

#: Nodes of autograd's graph whose value may be finite where their derivative is not.
_SINGULAR = (
    "Acos", "Acosh", "Asin", "Atan2", "Cdist", "Hypot", "LinalgEigh", "LinalgVectorNorm", "Norm",
    "Polar", "Pow", "Prod", "SpecialEntr", "SpecialXlog1Py", "Sqrt", "Std", "Xlogy",
)  # fmt: skip
#: Nodes whose derivative is infinite, or no number, where their value is.
_INFINITE = (
    "Acosh", "Atanh", "Digamma", "Div", "Erfinv", "Exp", "Expm1", "Lgamma", "LinalgInv", "Log",
    "Logit", "Polygamma", "Pow", "Reciprocal", "Rsqrt", "Sinh", "SpecialNdtri", "Tan",
)  # fmt: skip
#: Nodes that make a finite value of an infinite one, or leave it out.
_ABSORBING = (
    "Amax", "Amin", "Atan", "Clamp", "Div", "Elu", "Erf", "Exp", "Gather", "Index", "Logaddexp",
    "Logcumsumexp", "LogSigmoid", "LogSoftmax", "Logsumexp", "Masked", "Max", "Min", "Reciprocal",
    "Relu", "Rsqrt", "Scatter", "Sigmoid", "Softmax", "Softplus", "SWhere", "Tanh", "Threshold",
    "Where",
)  # fmt: skip


@dataclass(frozen=True)
class Singularity:
    """The operation at which a gradient stops being finite.

    Attributes:
        operation: Its name in torch, such as ``"pow"``.
        at: Its first argument there, where that can be told.
    """

    operation: str
    at: float | None = None

    def __str__(self) -> str:
        return self.operation if self.at is None else f"{self.operation} at {self.at:g}"


def score(
    log_density: Callable[[Tensor], Tensor],
    z: Tensor,
    params: Sequence[Tensor] = (),
    weigh: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    r"""Return ``log p(z)``, :math:`\nabla_z \log p(z)`, and its sum's gradient in ``params``.

    All three without a graph. Where the log density is finite and autograd's gradient is not, the
    gradient is taken again with :math:`0 \cdot \infty = 0` in every product of the chain rule.
    That is the limit wherever the zero is one of the data, or of a branch that is not taken: the
    density then does not depend on what stands behind it. A gradient that is infinite, or has two
    infinite terms, stays as it is. Within a mode that records operations the rule is recorded, for
    the nodes of the graph that can need it.

    Args:
        log_density: ``(S, D) -> (S,)``, in nats, differentiable, rows independent.
        z: Points ``(S, D)``.
        params: Leaves inside the density whose gradient is wanted too.
        weigh: A function from the log densities to weights ``(S,)``; both gradients are then
            those of the weighted sum.

    Cost:
        One forward and one backward pass; twice that, and a few microseconds for each operation of
        the backward pass, where a gradient is not finite.

    Example:
        >>> import torch
        >>> dose, z = torch.tensor([0.0, 1.0]), torch.tensor([[2.0, 0.5]])
        >>> def log_density(z):
        ...     return ((dose / z[:, :1]) ** z[:, 1:]).sum(-1)
        >>> log_p, gradient, _ = score(log_density, z)
        >>> gradient.isfinite().all().item()
        True
    """
    recording = _get_current_dispatch_mode() is not None
    inputs, log_p, total = _evaluated(log_density, z, params, weigh)
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if total is not None and recording:
        found = _gradient(total, inputs, _nodes_at_risk(total))
    elif total is not None:
        found = torch.autograd.grad(total, inputs, allow_unused=True)
        if _is_missing(log_p, found):
            # The graph is gone, so the density is evaluated again.
            inputs, log_p, total = _evaluated(log_density, z, params, weigh)
            assert total is not None
            found = _gradient(total, inputs, _nodes_at_risk(total))
    grads = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(inputs, found)]
    return log_p.detach(), grads[0].detach(), [grad.detach() for grad in grads[1:]]


def find_singularity(value: Tensor, inputs: Sequence[Tensor]) -> Singularity | None:
    """Find the operation that makes the gradient of a scalar infinite or NaN.

    Args:
        value: A scalar with a graph, which stays.
        inputs: The leaves.

    Returns:
        The first operation of the backward pass that makes a number that is not finite of finite
        ones, under :math:`0 \\cdot \\infty = 0` where that leaves such a number in the gradient;
        None where the gradient of autograd is finite.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, requires_grad=True)
        >>> str(find_singularity(x.sqrt().sum(), [x]))
        'sqrt at 0'
    """
    nodes = _nodes_at_risk(value)
    for guarded in (nodes, frozenset[Any]()):
        watch = _ChainRule(guarded, watch=True)
        with watch:
            found = torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=True)
        if any(g is not None and not bool(torch.isfinite(g).all()) for g in found):
            return watch.found or Singularity("a product")
    return None


def _evaluated(
    log_density: Callable[[Tensor], Tensor],
    z: Tensor,
    params: Sequence[Tensor],
    weigh: Callable[[Tensor], Tensor] | None,
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """The leaves, the log density, and the scalar to differentiate, if it depends on a leaf."""
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        log_p = log_density(point)
        inputs = [point, *params]
        if not log_p.requires_grad:
            return inputs, log_p, None
        total = log_p.sum() if weigh is None else (weigh(log_p.detach()) * log_p).sum()
        return inputs, log_p, total


def _is_missing(log_p: Tensor, found: Sequence[Tensor | None]) -> bool:
    """Tell whether a gradient is not finite where the log density is."""
    point, *others = found
    finite = torch.isfinite(log_p.detach())
    if point is not None:
        rows = torch.isfinite(point).reshape(len(point), -1).all(-1)
        if bool((finite.reshape(rows.shape) & ~rows).any()):
            return True
    given = [grad for grad in others if grad is not None]
    return bool(finite.all()) and not all(bool(torch.isfinite(grad).all()) for grad in given)


def _gradient(
    total: Tensor, inputs: Sequence[Tensor], nodes: Collection[Any]
) -> Sequence[Tensor | None]:
    if not nodes:
        return torch.autograd.grad(total, inputs, allow_unused=True)
    with _ChainRule(nodes):
        return torch.autograd.grad(total, inputs, allow_unused=True)


# ------------------------------------------------------------------------ autograd's graph


def _next(node: Any) -> Iterator[Any]:
    return (after for after, _ in node.next_functions if after is not None)


def _below(starts: Collection[Any]) -> set[Any]:
    """Nodes that autograd reaches from these, these included."""
    seen, stack = set(starts), list(starts)
    while stack:
        for node in _next(stack.pop()):
            if node not in seen:
                seen.add(node)
                stack.append(node)
    return seen


def _operation(node: Any) -> str:
    """Name of a node's operation: ``PowBackward0`` is ``Pow``."""
    return str(node.name()).partition("Backward")[0]


def _is_singular(node: Any) -> bool:
    name = _operation(node)
    if name == "Pow" and not torch.is_tensor(exponent := getattr(node, "_saved_exponent", None)):
        return exponent is None or isinstance(exponent, complex) or 0 < exponent < 1
    return name.startswith(_SINGULAR)


def _is_infinite(node: Any) -> bool:
    name = _operation(node)
    if name == "Pow" and not torch.is_tensor(exponent := getattr(node, "_saved_exponent", None)):
        return exponent is None or isinstance(exponent, complex) or exponent < 0
    return name.startswith(_INFINITE)


def _nodes_at_risk(total: Tensor) -> frozenset[Any]:
    """Nodes in which a zero may meet an infinity while the density is finite.

    Those behind an operation with a singular derivative at a finite value, and those behind one
    that leaves an infinite value out, if there is an operation that makes such a value.
    """
    everything = _below([total.grad_fn])
    starts = {node for node in everything if _is_singular(node)}
    infinite = {node for node in everything if _is_infinite(node)}
    if infinite:
        above: dict[Any, list[Any]] = {}
        for node in everything:
            for after in _next(node):
                above.setdefault(after, []).append(node)
        reaches, stack = set[Any](), list(infinite)
        while stack:
            for node in above.get(stack.pop(), ()):
                if node not in reaches:
                    reaches.add(node)
                    stack.append(node)
        starts |= {node for node in reaches if _operation(node).startswith(_ABSORBING)}
    return frozenset(_below(starts))


# --------------------------------------------------------------------- the rule for products


class _ChainRule(TorchDispatchMode):
    """Within it, products of the backward pass are 0 where one factor is exactly 0.

    Args:
        nodes: Nodes of autograd's graph to which that applies.
        watch: Look for the first operation that makes an infinity or NaN of finite numbers.
    """

    def __init__(self, nodes: Collection[Any], *, watch: bool = False) -> None:
        super().__init__()
        self._nodes, self._watch = nodes, watch
        self.found: Singularity | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else the first operation imports the whole compiler of torch, which takes a second.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        node = torch._C._current_autograd_node()  # type: ignore[attr-defined]
        rule = _RULES.get(func) if node in self._nodes else None
        out = func(*args, **kwargs) if rule is None else rule(func, *args, **kwargs)
        if self._watch and self.found is None and node is not None and torch.is_tensor(out):
            self.found = _new_singularity(node, args, out)
        return out


def _new_singularity(node: Any, args: tuple[Any, ...], out: Tensor) -> Singularity | None:
    """Describe an operation that made a number that is not finite of finite ones, if it did."""
    given = [x for x in args if torch.is_tensor(x) and x.is_floating_point()]
    if not given or not out.is_floating_point() or bool(torch.isfinite(out).all()):
        return None
    if not all(bool(torch.isfinite(x).all()) for x in given):
        return None
    name = _operation(node).rpartition("::")[2].lower()
    at = given[-1] if name in ("div", "sqrt") else given[0]
    if at.shape != out.shape and at.dim():
        return Singularity(name)
    return Singularity(name, float(at.expand(out.shape)[~torch.isfinite(out)][0]))


def _is_plain(x: Any) -> bool:
    return torch.is_tensor(x) and x.is_floating_point()


def _mul(func: Any, a: Any, b: Any) -> Any:
    out = func(a, b)
    if not _is_plain(out):
        return out
    zero = (a == 0) | (b == 0) if torch.is_tensor(b) else a == 0
    return out.masked_fill(zero, 0.0)


def _div(func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    out = func(a, b, **kwargs)
    if not _is_plain(out):
        return out
    zero = a == 0
    return out.masked_fill(zero if zero.shape == out.shape else zero.expand(out.shape), 0.0)


def _product(func: Any, a: Tensor, b: Tensor) -> Any:
    """A matrix product: what is not finite counts only where it meets a number other than 0."""
    if not (_is_plain(a) and _is_plain(b)):
        return func(a, b)
    bad_a, bad_b = ~torch.isfinite(a), ~torch.isfinite(b)
    out = func(a.masked_fill(bad_a, 0.0), b.masked_fill(bad_b, 0.0))
    met = func(bad_a.to(a.dtype), (b != 0).to(b.dtype))
    met = met + func((a != 0).to(a.dtype), bad_b.to(b.dtype))
    return out.masked_fill(met > 0, torch.nan)


def _backward(func: Any, grad: Tensor, *rest: Any, **kwargs: Any) -> Any:
    """A formula ``grad * slope(rest)`` in one operation: 0 where either is."""
    slope = func(torch.ones_like(grad), *rest, **kwargs)
    out = func(grad, *rest, **kwargs)
    return out.masked_fill((grad == 0) | (slope == 0), 0.0)


def _softmax(func: Any, grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Any:
    if grad.dtype != dtype:
        return func(grad, output, dim, dtype)
    inner = _mul(aten.mul.Tensor, grad, output).sum(dim, keepdim=True)
    return _mul(aten.mul.Tensor, output, grad - inner)


def _log_softmax(func: Any, grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Any:
    if grad.dtype != dtype:
        return func(grad, output, dim, dtype)
    return grad - _mul(aten.mul.Tensor, output.exp(), grad.sum(dim, keepdim=True))


_RULES: dict[Any, Callable[..., Any]] = {
    aten.mul.Tensor: _mul,
    aten.div.Tensor: _div,
    **dict.fromkeys((aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default,
                     aten.ger.default, aten.outer.default), _product),
    **dict.fromkeys((aten.sigmoid_backward.default, aten.tanh_backward.default,
                     aten.softplus_backward.default, aten.log_sigmoid_backward.default,
                     aten.logit_backward.default, aten.silu_backward.default,
                     aten.gelu_backward.default), _backward),
    aten._softmax_backward_data.default: _softmax,
    aten._log_softmax_backward_data.default: _log_softmax,
}  # fmt: skip
