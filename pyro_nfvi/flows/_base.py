"""The contract of all flows, and the two ways to combine them: ``Inverse`` and ``Chain``."""

from __future__ import annotations

from abc import abstractmethod
from itertools import groupby
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from pyro_nfvi._autocast import full_precision, in_full_precision
from pyro_nfvi._compat import is_transformed, is_watched
from pyro_nfvi._eval_mode import mode_free
from pyro_nfvi._math import broadcast_shape
from pyro_nfvi._typing import Contexts, Image, ImageAndScore, Points, TensorPair
from pyro_nfvi._validation import whole
from pyro_nfvi._vjp import vjp
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows._torch_transform import Bijection, FlowTransform

InverseKind = Literal["exact", "sequential", "numeric"]


def check_dim(name: str, dim: int) -> None:
    """Raise unless ``dim`` is an event size."""
    whole(f"{name}: dim", dim)


def _joined(name: str, path: str) -> str:
    """Join two parts of a module's name."""
    return f"{name}.{path}" if path else name


def _first_parameter(module: nn.Module) -> Tensor | None:
    """Return a module's first parameter; ``parameters()`` takes ten times as long."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for part in module._modules.values():
        found = None if part is None else _first_parameter(part)
        if found is not None:
            return found
    return None


def _records() -> bool:
    """Tell whether autograd records, and neither a transform, a compiler nor a mode looks on."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return not (is_transformed(unknown=True) or is_watched(unknown=True))


class Layer(NamedTuple):
    """A member of a flow that is no combination of others, and the direction it runs in.

    Attributes:
        flow: The member.
        inverted: True if sampling runs its ``inverse``.
        path: Its name among the modules of the whole, ``"flows.0"``; empty for the whole itself.
    """

    flow: Flow
    inverted: bool
    path: str

    @property
    def map(self) -> Flow:
        """The layer as a flow in the sampling direction."""
        return self.flow.inv if self.inverted else self.flow


class Flow(Bijection):
    r"""A bijection of :math:`\mathbb{R}^D`, with its log-determinant.

    ``forward`` is the sampling direction, from the base to the posterior. A call is pure: it
    changes no state, treats rows independently, takes any leading batch shape, and keeps the
    dtype and device of its input. Every flow starts as the identity (permutations aside). Under
    autocast it computes in full precision, points and contexts of half precision lifted.

    A flow of your own defines ``__init__(dim, context_dim)``, ``forward`` and ``inverse``;
    :func:`pyro_nfvi.testing.check_flow` then examines whether it keeps the promises.

    Args:
        dim: Event size D, at least 1.
        context_dim: Size C of the context on which the parameters depend; 0 for none.

    Shape:
        ``x (*b, D)``, ``context (*b, C)`` or broadcastable -> ``y (*b, D)``, ``ladj (*b,)``.

    Units:
        ``ladj`` is in nats.

    Raises:
        ShapeError: The last axis is not D, or the point is not floating.
        ShapeError: A context is missing, superfluous or of another size.
    """

    dim: int
    context_dim: int
    #: How ``inverse`` works: a closed form, D passes, or root finding with a tolerance.
    inverse_kind: InverseKind = "exact"
    #: Whether it computes something else in train mode than in eval mode.
    mode_dependent = False
    #: Whether it maps angles: a whole turn of a coordinate turns the image by a whole turn.
    periodic = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        in_full_precision(cls, ("forward", "inverse", "forward_with_score"))

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        name = type(self).__name__
        self.dim = whole(f"{name}: dim", dim)
        self.context_dim = whole(f"{name}: context_dim", context_dim, 0)

    @abstractmethod
    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        """Map ``x`` to ``(y, ladj)``, with ``ladj = log|det dy/dx|`` in nats."""

    @abstractmethod
    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        """Map ``y`` to ``(x, ladj)``, with ``ladj = log|det dx/dy|`` in nats.

        Differentiable in ``y``, in the context and in the parameters.
        """

    @full_precision
    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        r"""Push a point and the score :math:`\nabla_x \log q(x)` forward together.

        .. math:: g_y = J^{-\top} (g_x - \nabla_x \log|\det J|)

        This is what path gradients need, without an inversion. The returned score carries no
        gradient. The general form costs one inverse and one vector-Jacobian product; flows
        with a closed form do better.

        Source: Vaitl et al. 2024, arXiv:2403.15881, algorithm 1.
        """
        y, ladj = self(x, context)
        held = None if context is None else context.detach()

        with torch.no_grad():
            (pushed,) = vjp(lambda point: self.inverse(point, held), y.detach())(
                (score.detach().expand_as(y), torch.ones_like(ladj))
            )
        return y, ladj, pushed.detach()

    def layers(self) -> list[Layer]:
        """Return the layers in sampling order, of which a chain or an inverse is made.

        Example:
            >>> from pyro_nfvi.flows import Chain, Planar, Radial
            >>> whole = Chain(Planar(2), Chain(Radial(2), Planar(2)).inv)
            >>> [(type(layer.flow).__name__, layer.inverted) for layer in whole.layers()]
            [('Planar', False), ('Planar', True), ('Radial', True)]
        """
        return [Layer(self, False, "")]

    @property
    def inv(self) -> Flow:
        """The same map the other way round; shares the parameters."""
        return Inverse(self)

    def as_transform(self, context: Tensor | None = None) -> FlowTransform:
        """Return a ``torch.distributions`` transform that lives for one call."""
        return FlowTransform(self, context)

    #: Pyro's name for the same thing (``ConditionalTransform.condition``).
    condition = as_transform

    def enter(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Check a point and a context on entry and broadcast the point to the context."""
        name = f"{type(self).__name__}(dim={self.dim}, context_dim={self.context_dim})"
        if not isinstance(x, Tensor):
            raise ShapeError(
                f"{name} needs a tensor; got {type(x).__name__}. Convert it with torch.as_tensor."
            )
        if not x.is_floating_point():
            raise ShapeError(
                f"{name} needs a floating-point tensor; got {x.dtype}. Convert it with .to(dtype)."
            )
        if x.dtype in (torch.float16, torch.bfloat16):
            raise ShapeError(
                f"{name} needs float32 or float64; got {x.dtype}, whose digits do not suffice for "
                "inverses and log-determinants. Convert with .float()."
            )
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ShapeError(
                f"{name} needs a point of shape (*b, {self.dim}); got {tuple(x.shape)}."
            )
        own = _first_parameter(self)
        if own is not None and x.dtype != own.dtype:
            raise ShapeError(
                f"{name} has parameters of {own.dtype}; got a point of {x.dtype}. Convert the "
                "point with .to(dtype), or the flow with .double() or .float()."
            )
        if not (context is None or isinstance(context, Tensor)):
            raise ShapeError(
                f"{name} needs a tensor as context; got {type(context).__name__}. Convert it with "
                "torch.as_tensor."
            )
        if self.context_dim == 0:
            if context is not None:
                raise ShapeError(
                    f"{name} takes no context; got one of shape {tuple(context.shape)}. "
                    f"Build it with context_dim={context.shape[-1] if context.dim() else 1}."
                )
            return x, None
        if context is None:
            raise ShapeError(
                f"{name} needs a context of shape (*b, {self.context_dim}); got None. "
                "Pass context=..., or build it with context_dim=0."
            )
        if context.dim() == 0 or context.shape[-1] != self.context_dim:
            raise ShapeError(
                f"{name} needs a context of shape (*b, {self.context_dim}); "
                f"got {tuple(context.shape)}."
            )
        if context.dtype != x.dtype:
            raise ShapeError(
                f"{name} needs a context of {x.dtype}, as the point; got {context.dtype}. Convert "
                "it with .to(dtype)."
            )
        try:
            batch = broadcast_shape(x.shape[:-1], context.shape[:-1])
        except RuntimeError as error:
            raise ShapeError(
                f"{name}: the batch shapes of the point {tuple(x.shape)} and of the context "
                f"{tuple(context.shape)} do not broadcast."
            ) from error
        return x.expand(*batch, self.dim), context

    def __repr__(self) -> str:
        inner: list[str] = []
        for name, same in groupby(type(part).__name__ for part in _members(self)):
            count = len(list(same))
            inner.append(name if count == 1 else f"{count} x {name}")
        return f"{type(self).__name__}({', '.join([self.extra_repr(), *inner])})"

    def _repr_html_(self) -> str:
        from pyro_nfvi import _html

        layers = [layer.flow for layer in self.layers()]
        rows = [(type(one).__name__, one.extra_repr(), _count(one)) for one in layers]
        head = ("layer", "options", "parameters")
        return _html.card(repr(self), _html.table(head, _html.shortened(rows)))

    def extra_repr(self) -> str:
        return f"dim={self.dim}" + (f", context_dim={self.context_dim}" * (self.context_dim > 0))


def _members(flow: Flow) -> list[Flow]:
    """The flows that a flow consists of, one level down."""
    held = [part for child in flow.children() for part in _flows_in(child)]
    return [part for part in held if part is not flow]


def _flows_in(child: nn.Module) -> list[Flow]:
    if isinstance(child, Flow):
        return [child]
    if isinstance(child, nn.ModuleList):
        return [part for part in child if isinstance(part, Flow)]
    return []


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@final
class Inverse(Flow):
    """The inverse of a flow, as a flow: ``MAF`` is the inverse of ``IAF``.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import DiagonalAffine
        >>> flow = DiagonalAffine(2)
        >>> x = torch.randn(5, 2)
        >>> torch.equal(flow.inv(flow(x)[0])[0], x)
        True
    """

    def __init__(self, flow: Flow) -> None:
        if not isinstance(flow, Flow):
            raise OptionError(
                f"Inverse takes a Flow; got {type(flow).__name__}. Wrap transforms of Pyro or Zuko "
                "with flows.adapt."
            )
        super().__init__(flow.dim, flow.context_dim)
        self.flow = flow
        self.inverse_kind = "exact"
        self.periodic = flow.periodic

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        return self.flow.inverse(x, context)

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        return self.flow(y, context)

    def layers(self) -> list[Layer]:
        return [
            Layer(flow, not inverted, _joined("flow", path))
            for flow, inverted, path in reversed(self.flow.layers())
        ]

    @property
    def inv(self) -> Flow:
        return self.flow


@final
class Chain(Flow):
    r"""Flows one after the other: :math:`y = f_n(\cdots f_1(x))`, log-determinants summed.

    A member without context ignores the context that the others share.

    Args:
        *flows: At least one flow; all of one ``dim``, and of one ``context_dim`` or of 0.
        reversible: Keep no activations for the backward pass: it rebuilds each layer's input from
            its output by the exact inverse, so that memory does not grow with the depth. Gradients
            are those of autograd but for rounding.

    Cost:
        That of the layers. Reversible: in a backward pass, one inverse and one forward pass of
        each layer more. Second derivatives, and points that rounding keeps from coming back (a
        warning says so), take the memory of an ordinary chain.

    Raises:
        OptionError: No flow, or sizes that do not agree.
        OptionError: ``reversible`` with layers whose inverse is numeric, or that compute something
            else in train mode.

    Source: Gomez et al. 2017, arXiv:1707.04585, algorithm 1 (reversible).

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Chain, Planar, Radial
        >>> flow = Chain(Planar(3), Radial(3))
        >>> y, ladj = flow(torch.zeros(7, 3))
        >>> y.shape, ladj.shape
        (torch.Size([7, 3]), torch.Size([7]))
    """

    def __init__(self, *flows: Flow, reversible: bool = False) -> None:
        if not flows:
            raise OptionError("Chain needs at least one flow; use DiagonalAffine for an identity.")
        wrong = [type(flow).__name__ for flow in flows if not isinstance(flow, Flow)]
        if wrong:
            raise OptionError(
                f"Chain takes Flow objects; got {', '.join(wrong)}. "
                "Wrap transforms of Pyro or Zuko with flows.adapt."
            )
        dims = [flow.dim for flow in flows]
        contexts = {flow.context_dim for flow in flows} - {0}
        if len(set(dims)) > 1 or len(contexts) > 1:
            raise OptionError(
                f"Chain needs flows of one dim and one context_dim; got dims {dims} and "
                f"context_dims {[flow.context_dim for flow in flows]}."
            )
        super().__init__(dims[0], max(contexts, default=0))
        kinds = {flow.inverse_kind for flow in flows}
        self.inverse_kind = next(
            (kind for kind in ("numeric", "sequential") if kind in kinds), "exact"
        )
        self.periodic = all(flow.periodic for flow in flows)
        self.flows = nn.ModuleList(flows)
        if reversible:
            self._check_reversible()
        self.reversible = bool(reversible)

    #: Of chains that were pickled without it.
    reversible = False

    def _check_reversible(self) -> None:
        """Raise unless each input can be rebuilt from the output."""
        layers = [layer.flow for layer in self.layers()]
        numeric = sorted({type(flow).__name__ for flow in layers if flow.inverse_kind == "numeric"})
        if numeric:
            raise OptionError(
                f"A reversible chain needs exact inverses; that of {', '.join(numeric)} is "
                "numeric, and its errors would add up. Take couplings, autoregressive or linear "
                "layers, or leave reversible out."
            )
        moody = sorted({type(one).__name__ for one in self.modules() if not mode_free(one)})
        if moody:
            raise OptionError(
                "A reversible chain computes its layers twice, and needs the same both times; "
                f"{', '.join(moody)} may differ in train mode. Take a conditioner of layers such "
                "as nn.Linear and nn.Tanh, or leave reversible out."
            )

    def _through(
        self, layers: list[Layer], x: Tensor, context: Tensor | None, *, back: bool
    ) -> TensorPair:
        """Run layers in this order, keeping no activations; ``back`` is the other direction."""
        from pyro_nfvi.flows._reversible import run_reversibly

        steps = [(one.flow, one.inverted != back, one.flow.context_dim > 0) for one in layers]
        return run_reversibly(steps, x, context)

    @property
    def _members(self) -> list[Flow]:
        return [flow for flow in self.flows if isinstance(flow, Flow)]

    def layers(self) -> list[Layer]:
        return [
            Layer(flow, inverted, _joined(f"flows.{index}", path))
            for index, member in enumerate(self._members)
            for flow, inverted, path in member.layers()
        ]

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, context = self.enter(x, context)
        if self.reversible and _records():
            return self._through(self.layers(), x, context, back=False)
        total = x.new_zeros(x.shape[:-1])
        for flow in self._members:
            x, ladj = flow(x, context if flow.context_dim else None)
            total = total + ladj
        return x, total

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, context = self.enter(y, context)
        if self.reversible and _records():
            return self._through(self.layers()[::-1], y, context, back=True)
        total = y.new_zeros(y.shape[:-1])
        for flow in reversed(self._members):
            y, ladj = flow.inverse(y, context if flow.context_dim else None)
            total = total + ladj
        return y, total

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        x, context = self.enter(x, context)
        if self.reversible and _records():
            with torch.no_grad():
                pushed = self._push_score(x.detach(), score, context)[2]
            return *self(x, context), pushed
        return self._push_score(x, score, context)

    def _push_score(self, x: Tensor, score: Tensor, context: Tensor | None) -> ImageAndScore:
        score = score.expand_as(x)
        total = x.new_zeros(x.shape[:-1])
        for flow in self._members:
            x, ladj, score = flow.forward_with_score(
                x, score, context if flow.context_dim else None
            )
            total = total + ladj
        return x, total, score
