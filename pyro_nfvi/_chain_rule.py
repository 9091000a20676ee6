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

from pyro_nfvi._compat import DispatchMode, autograd_node, is_watched, lacking, without_modes
from pyro_nfvi._operators import aten
from pyro_nfvi._user_warning import warn

#: Operations, by the names of autograd's nodes in small letters, whose value may be finite where
#: their derivative is not.
_SINGULAR = frozenset(
    "acos acosh asin atan2 cdist hypot linalgeigh linalgvectornorm norm pow prod specialentr "
    "specialxlog1py sqrt std xlogy".split()
)
#: Those whose derivative is infinite, or no number, where their value is.
_INFINITE = frozenset(
    "acosh atanh cosh digamma div erfinv exp expm1 lgamma linalginv log log10 log1p log2 logit "
    "mvlgamma polygamma pow reciprocal rsqrt sinh specialndtri tan".split()
)
#: Those that make a finite value of an infinite one, or leave it out.
_ABSORBING = frozenset(
    "amax amin asstrided atan clamp clampmax clampmin diagonal div elu erf exp gather index "
    "indexput indexselect logaddexp logaddexp2 logcumsumexp logsigmoid logsoftmax logsumexp "
    "maskedfill maskedscatter maskedselect max maximum min minimum reciprocal relu rsqrt scatter "
    "select sigmoid slice softmax softplus split splitwithsizes take tanh threshold tril triu "
    "unbind where swhere".split()
)
#: Those whose value is positive, and those that give the values of their first input.
_POSITIVE = frozenset(("exp", "sigmoid", "softplus"))
_VIEWS = frozenset(
    "alias asstrided clone diagonal expand permute reshape reshapealias select slice split squeeze "
    "t tocopy transpose unbind unsafesplit unsafeview unsqueeze view".split()
)
#: Operations whose argument stands in their derivative, and which factor of it that is.
_ARGUMENT = {"div": -1, "log": -1, "pow": 0, "reciprocal": -1, "sqrt": -1, "xlogy": -1}


#: Private parts of PyTorch that the rule stands on.
_NEEDED = ("TorchDispatchMode", "_disable_current_modes", "_current_autograd_node")


@dataclass(frozen=True)
class Singularity:
    """The operation at which a gradient stops being finite.

    Attributes:
        operation: Its name in torch, such as ``"pow"``.
        at: Its first argument there, where that is known.
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
    the nodes of the graph that can need it. A PyTorch that lacks what the rule stands on gives the
    gradient of autograd, with a RuntimeWarning where that is not finite.

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
    without = lacking(*_NEEDED)
    recording = is_watched() and without is None
    inputs, log_p, total = _evaluated(log_density, z, params, weigh)
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if total is not None and recording:
        found = _gradient(total, inputs, _nodes_at_risk(total))
    elif total is not None:
        found = torch.autograd.grad(total, inputs, allow_unused=True)
        if without is not None and not is_watched() and _is_missing(log_p, found):
            warn(
                "A gradient is not finite where the log density is, and its limit cannot be taken: "
                f"{without}. Particles there are left out; take another release of PyTorch.",
                RuntimeWarning,
            )
        elif without is None and _is_missing(log_p, found):
            # The graph is gone, so the density is evaluated again.
            inputs, log_p, total = _evaluated(log_density, z, params, weigh)
            assert total is not None
            found = _gradient(total, inputs, _nodes_at_risk(total))
    grads = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(inputs, found)]
    return log_p.detach(), grads[0].detach(), [grad.detach() for grad in grads[1:]]


def scored(log_density: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Evaluate a log density whose gradient in ``z`` will be that of :func:`score`.

    For code that differentiates by itself, once.

    Args:
        log_density: ``(S, D) -> (S,)``, in nats, differentiable, rows independent.
        z: Points ``(S, D)``.

    Example:
        >>> import torch
        >>> z = torch.tensor([[4.0]], requires_grad=True)
        >>> scored(lambda z: (0 * z).sqrt().sum(-1) + z.sum(-1), z).sum().backward()
        >>> z.grad
        tensor([[1.]])
    """
    if not (torch.is_grad_enabled() and z.requires_grad):
        return log_density(z)
    found: Tensor = _Scored.apply(z, log_density)
    return found


class _Scored(torch.autograd.Function):
    """A log density that is differentiated where it is evaluated."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, log_density: Callable[[Tensor], Tensor]) -> Tensor:
        log_p, gradient, _ = score(log_density, z)
        ctx.save_for_backward(gradient)
        return log_p

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0].unsqueeze(-1) * gradient, None


def find_singularity(value: Tensor, inputs: Sequence[Tensor]) -> Singularity | None:
    r"""Find the operation that makes the gradient of a scalar infinite or NaN.

    Args:
        value: A scalar with a graph, which stays.
        inputs: The leaves.

    Returns:
        The first operation of the backward pass that makes a number that is not finite of finite
        ones, under :math:`0 \cdot \infty = 0` where that leaves such a number in the gradient;
        None where the gradient of autograd is finite.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, requires_grad=True)
        >>> str(find_singularity(x.sqrt().sum(), [x]))
        'sqrt at 0'
    """
    if lacking(*_NEEDED) is not None:
        found = torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=True)
        finite = all(g is None or bool(torch.isfinite(g).all()) for g in found)
        return None if finite else Singularity("an operation that this PyTorch does not name")
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
    """Name of a node's operation: ``PowBackward0`` is ``pow``."""
    return str(node.name()).rpartition("::")[2].partition("Backward")[0].lstrip("_").lower()


def _is_singular(node: Any) -> bool:
    name = _operation(node)
    if name == "pow" and not torch.is_tensor(exponent := getattr(node, "_saved_exponent", None)):
        return exponent is None or isinstance(exponent, complex) or 0 < exponent < 1
    return name in _SINGULAR


def _is_infinite(node: Any) -> bool:
    name = _operation(node)
    if name in ("div", "log", "reciprocal", "rsqrt") and _is_positive(node, -1):
        return False
    if name == "log1p" and _is_positive(node, 0, or_zero=True):
        return False
    if name == "exp" and _is_leaf(node.next_functions[0][0]):
        return False  # a positive latent: where it is infinite, so is its own density
    if name == "pow" and not torch.is_tensor(exponent := getattr(node, "_saved_exponent", None)):
        return exponent is None or isinstance(exponent, complex) or exponent < 0
    return name in _INFINITE


def _is_leaf(node: Any) -> bool:
    """Tell whether a node only looks at a leaf."""
    while node is not None and _operation(node) in _VIEWS:
        node = node.next_functions[0][0]
    return node is None or not node.next_functions


def _is_positive(node: Any, place: int, *, or_zero: bool = False) -> bool:
    """Tell whether an input of a node is positive for all that rounding leaves of it."""
    before = node.next_functions[place][0]
    if before is None:  # no function of a leaf: data, which a mini-batch may change, or a number
        return _is_positive_number(getattr(node, "_saved_other" if place else "_saved_self", None))
    name = _operation(before)
    if name in _POSITIVE or _is_positive_number(getattr(before, "_saved_min", None)):
        return True
    if name == "pow" and or_zero and getattr(before, "_saved_exponent", None) in (2, 4):
        return True
    if name in _VIEWS or name in ("clamp", "pow", "sqrt", "rsqrt", "reciprocal"):
        return _is_positive(before, 0, or_zero=or_zero)
    if name in ("mul", "div"):
        return _is_positive(before, 0, or_zero=or_zero) and _is_positive(before, 1)
    return False


def _is_positive_number(value: Any) -> bool:
    """Tell whether a value is one positive number, as it is or expanded."""
    if not torch.is_tensor(value):
        return isinstance(value, (int, float)) and value > 0
    with without_modes():
        if any(value.stride()) or not value.numel():
            return False
        return bool(value[(0,) * value.dim()].item() > 0)


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
        starts |= {node for node in reaches if _operation(node) in _ABSORBING}
    return frozenset(_below(starts))


# --------------------------------------------------------------------- the rule for products


class _ChainRule(DispatchMode):
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
        node = autograd_node()
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
    name = _operation(node)
    if name not in _ARGUMENT:
        return Singularity(name)
    at = given[_ARGUMENT[name]]
    if at.dim() and at.shape != out.shape:
        return Singularity(name)
    return Singularity(name, float(at.expand(out.shape)[~torch.isfinite(out)][0]))


#: The rule as operations of its own, so that a recorded graph has one node for each product, which
#: native code computes in one place.
_LIBRARY = torch.library.Library("pyro_nfvi", "FRAGMENT")


def _take_product(a: Tensor, b: Tensor) -> Tensor:
    out = a * b
    return torch.where((a == 0) | (b == 0), torch.zeros_like(out), out)


def _take_quotient(a: Tensor, b: Tensor) -> Tensor:
    out = a / b
    return torch.where(a == 0, torch.zeros_like(out), out)


try:
    for _name, _rule in (("product", _take_product), ("quotient", _take_quotient)):
        _LIBRARY.define(f"{_name}(Tensor a, Tensor b) -> Tensor")
        _LIBRARY.impl(_name, _rule, "CompositeImplicitAutograd")
except RuntimeError:  # this module is imported a second time; the first one's are the same
    if not hasattr(torch.ops.pyro_nfvi, "product"):
        raise


def _is_plain(x: Any) -> bool:
    return torch.is_tensor(x) and x.is_floating_point()


def _mul(func: Any, a: Any, b: Any) -> Any:
    if not torch.is_tensor(b):
        out = func(a, b)
        return out if b else torch.zeros_like(out)
    if not (_is_plain(a) or _is_plain(b)):  # integers alone, or complex numbers
        return func(a, b)
    return torch.ops.pyro_nfvi.product.default(a, b)


def _div(func: Any, a: Any, b: Any) -> Any:
    if not (torch.is_tensor(b) and (_is_plain(a) or _is_plain(b))):
        return func(a, b)
    return torch.ops.pyro_nfvi.quotient.default(a, b)


def _product(func: Any, a: Tensor, b: Tensor) -> Any:
    """A matrix product: what is not finite counts only where it meets a number other than 0."""
    if not (_is_plain(a) and _is_plain(b)):
        return func(a, b)
    bad_a, bad_b = ~torch.isfinite(a), ~torch.isfinite(b)
    out = func(a.masked_fill(bad_a, 0.0), b.masked_fill(bad_b, 0.0))
    met = func(_number(bad_a, a), _number(b != 0, b)) + func(_number(a != 0, a), _number(bad_b, b))
    return out.masked_fill(met > 0, torch.nan)


def _number(mask: Tensor, like: Tensor) -> Tensor:
    found: Tensor = aten._to_copy.default(mask, dtype=like.dtype)
    return found


def _backward(func: Any, grad: Tensor, *rest: Any, **kwargs: Any) -> Any:
    """A formula ``grad * slope(rest)`` in one operation, in two."""
    return _mul(None, grad, func(torch.ones_like(grad), *rest, **kwargs))


def _softmax(func: Any, grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Any:
    if grad.dtype != dtype:
        return func(grad, output, dim, dtype)
    inner = _mul(None, grad, output).sum(dim, keepdim=True)
    return _mul(None, output, grad - inner)


def _log_softmax(func: Any, grad: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Any:
    if grad.dtype != dtype:
        return func(grad, output, dim, dtype)
    return grad - _mul(None, output.exp(), grad.sum(dim, keepdim=True))


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
