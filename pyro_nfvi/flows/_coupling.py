"""Coupling flows: some coordinates move by a transformer, given the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from pyro_nfvi._eval_mode import evaluation
from pyro_nfvi._nn.mlp import MLP, Activation, hidden_widths
from pyro_nfvi._typing import Contexts, Hidden, Image, ImageAndScore, Points, TensorPair
from pyro_nfvi._vjp import vjp
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._coupling_masks import make_mask
from pyro_nfvi.flows._transformer_names import TransformerLike, make_transformer

#: Builds a conditioner from its input and output sizes.
Conditioner = Callable[[int, int], nn.Module]


@final
class Coupling(Flow):
    r"""One coupling layer: :math:`y_B = k(x_B; \phi(x_A))`, :math:`y_A = x_A`.

    Both directions cost one pass of the conditioner. Stack layers with complementary masks:
    ``make_flow("realnvp*6", dim)`` does.

    Args:
        dim: Event size D, at least 2.
        context_dim: Size of the context, appended to the conditioner's input; 0 for none.
        transformer: The univariate map: affine by default (RealNVP); ``ShiftTransformer`` (NICE),
            ``SplineTransformer`` (NSF), or one of your own. With one of angles
            (``CircularSplineTransformer``, ``MoebiusTransformer``) all D coordinates are angles,
            and the conditioner sees their cosines and sines.
        mask: ``"halves"``, ``"alternating"``, ``"random"``, or D booleans, True where the
            coordinates move.
        reverse: Take the complement of the mask.
        hidden_dim: Hidden width of the conditioner, or several. Default 32 up to D = 40, 64 up
            to 200, 128 above.
        conditioner: Builds another conditioner, ``(inputs, outputs) -> nn.Module`` over the last
            axis. For the layer to start as the identity it has to start at zero.
        activation: Of the conditioner: ``"tanh"``, ``"relu"``, ``"elu"`` or ``"silu"``.
        skip_connections: Whether a matrix runs past the conditioner's hidden layers. At many
            dimensions it has most of the weights; without it nets are as the papers'.

    Shape:
        ``x (*b, D)``, ``context (*b, C)`` or broadcastable -> ``y (*b, D)``, ``ladj (*b,)``.

    Cost:
        One pass of the conditioner both ways; one vector-Jacobian product more for the score.

    Raises:
        OptionError: D = 1, or a mask that does not fit.
        ShapeError: A point or context of the wrong size.

    Source: Dinh et al. 2015, arXiv:1410.8516, section 3.2; Dinh et al. 2017, arXiv:1605.08803,
    equations 4-8.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Coupling
        >>> y, ladj = Coupling(4, mask="alternating")(torch.zeros(5, 4))
        >>> y.shape, ladj.shape
        (torch.Size([5, 4]), torch.Size([5]))
    """

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        *,
        transformer: TransformerLike = None,
        mask: str | Tensor | Sequence[bool] = "halves",
        reverse: bool = False,
        hidden_dim: Hidden = None,
        conditioner: Conditioner | None = None,
        activation: Activation = "tanh",
        skip_connections: bool = True,
    ) -> None:
        super().__init__(dim, context_dim)
        self.transformer = make_transformer(transformer)
        self.inverse_kind = self.transformer.inverse_kind
        self.periodic = self.transformer.periodic
        moved = make_mask(mask, dim)
        if reverse:
            moved = ~moved
        # Saved with the state: sampling depends on them.
        self.register_buffer("moved", moved.nonzero().squeeze(-1))
        self.register_buffer("kept", (~moved).nonzero().squeeze(-1))
        self.register_buffer("back", torch.argsort(torch.cat([self.kept, self.moved])))
        self.moved: Tensor
        self.kept: Tensor
        self.back: Tensor
        # An angle is a point of the circle to the conditioner.
        inputs = len(self.kept) * (2 if self.periodic else 1) + context_dim
        outputs = len(self.moved) * self.transformer.num_params
        self._in_rows = conditioner is not None
        if conditioner is None:
            default = 32 if dim <= 40 else 64 if dim <= 200 else 128
            self.net: nn.Module = MLP(
                inputs,
                outputs,
                hidden=hidden_widths(hidden_dim, default),
                activation=activation,
                skip_connections=skip_connections,
            )
        elif hidden_dim is not None or activation != "tanh" or not skip_connections:
            raise OptionError(
                "Coupling takes a conditioner, or hidden_dim, activation and skip_connections for "
                "its own, not both."
            )
        else:
            self.net = _built(conditioner, inputs, outputs)

    def _params(self, kept: Tensor, context: Tensor | None) -> Tensor:
        inputs = torch.cat([kept.cos(), kept.sin()], -1) if self.periodic else kept
        if context is not None:
            inputs = torch.cat([inputs, context.expand(*kept.shape[:-1], self.context_dim)], -1)
        # Layers such as batch normalisation take rows and nothing else.
        rows = inputs.reshape(-1, inputs.shape[-1]) if self._in_rows else inputs
        out: Tensor = self.net(rows)
        return out.reshape(*inputs.shape[:-1], len(self.moved), self.transformer.num_params)

    def _split(self, x: Tensor) -> TensorPair:
        return x.index_select(-1, self.kept), x.index_select(-1, self.moved)

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved], -1).index_select(-1, self.back)

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, context = self.enter(x, context)
        kept, moved = self._split(x)
        moved, ladj = self.transformer.forward(moved, self._params(kept, context))
        return self._join(kept, moved), ladj.sum(-1)

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, context = self.enter(y, context)
        kept, moved = self._split(y)
        moved, ladj = self.transformer.inverse(moved, self._params(kept, context))
        return self._join(kept, moved), ladj.sum(-1)

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        x, context = self.enter(x, context)
        kept, moved = self._split(x)
        params = self._params(kept, context)
        y, ladj = self.transformer.forward(moved, params)
        held = None if context is None else context.detach()
        with torch.no_grad():
            score_kept, score_moved = self._split(score.detach().expand_as(x))
            dx, dparams, dladj_dx, dladj_dparams = self.transformer.slopes(moved, params)
            score_moved = (score_moved - dladj_dx) / dx
            pull = vjp(lambda point: self._params(point, held), kept.detach())
            (pulled,) = pull(dladj_dparams + dparams * score_moved.unsqueeze(-1))
            pushed = self._join(score_kept - pulled, score_moved)
        return self._join(kept, y), ladj.sum(-1), pushed

    def extra_repr(self) -> str:
        return super().extra_repr() + f", transformer={self.transformer}, moved={len(self.moved)}"


def _built(conditioner: Conditioner, inputs: int, outputs: int) -> nn.Module:
    """Build a caller's conditioner and see that it takes and returns what it should."""
    builds = callable(conditioner) and not isinstance(conditioner, nn.Module)
    try:
        net = conditioner(inputs, outputs) if builds else None
    except TypeError as error:
        raise OptionError(
            f"Coupling's conditioner takes (inputs, outputs); called so it says: {error}"
        ) from error
    if not isinstance(net, nn.Module):
        raise OptionError(
            "Coupling needs conditioner, a callable (inputs, outputs) -> nn.Module; got "
            f"{conditioner!r}."
        )
    known = (p for p in net.parameters() if not isinstance(p, nn.UninitializedParameter))
    like = next(known, torch.empty(()))
    try:
        with torch.no_grad(), evaluation(net):
            found = tuple(net(like.new_zeros(3, inputs)).shape)
    except Exception as error:
        raise OptionError(
            f"Coupling's conditioner fails at an input (3, {inputs}): {type(error).__name__}: "
            f"{error}"
        ) from error
    if found != (3, outputs):
        raise OptionError(
            f"Coupling's conditioner returns {found} for an input (3, {inputs}); it needs "
            f"(3, {outputs}), {outputs} numbers for each row."
        )
    return net
