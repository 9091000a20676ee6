"""Autoregressive flows: the earlier coordinates give the parameters of each one's transformer."""

from __future__ import annotations

from typing import Literal, final, get_args

import torch
from torch import Tensor

from pyro_nfvi._nn.made import MADE
from pyro_nfvi._nn.mlp import Activation, hidden_widths
from pyro_nfvi._typing import Contexts, Hidden, Image, ImageAndScore, Points
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Flow, InverseKind
from pyro_nfvi.flows._recipe import SIZES
from pyro_nfvi.flows._transformer_names import TransformerLike, make_transformer
from pyro_nfvi.flows._transformers import AffineTransformer, GatedTransformer, Transformer

Gate = Literal["affine", "sigmoid"]


@final
class Autoregressive(Flow):
    r"""One inverse autoregressive layer: :math:`y_i = k(x_i; \phi_i(x_{<i}))`.

    ``forward`` is one pass of the masked net (the fast direction of IAF), ``inverse`` takes D
    passes. ``flow.inv`` is MAF. In the model's trace order, parents before children, one
    affine layer already holds the funnel of a centred hierarchy.

    Args:
        dim: Event size D.
        context_dim: Size of the context, which every coordinate sees; 0 for none.
        transformer: The univariate map, or its name (``"spline"``). Default: an affine one with a
            bounded log-scale.
        hidden_dim: Hidden width, or several. Default max(32, 2D), at most 512.
        reverse: Take the coordinates from the last to the first (inside the masks).
        activation: Of the masked net: ``"tanh"``, ``"relu"``, ``"elu"`` or ``"silu"``. ReLU learns
            densities of few dimensions with steep edges faster; tanh is smooth, as path gradients
            like it, and holds still at outliers.
        skip_connections: Whether a masked matrix runs past the hidden layers. Without it (as in
            Pyro's and NumPyro's nets) the hidden layers need D - 1 units at least.

    Shape:
        ``x (*b, D)``, ``context (*b, C)`` or broadcastable -> ``y (*b, D)``, ``ladj (*b,)``.

    Cost:
        One net pass forward, D passes inverse; weights grow as (2D + 2C) H. The score's
        recursion forms a (D, D) Jacobian per row up to D = 64, above it 32 blocks on its diagonal.

    Raises:
        OptionError: ``hidden_dim`` is not a positive integer or a sequence of them, or too small
            to do without the skip; an unknown activation.
        ShapeError: A point or context of the wrong size.

    Source: Kingma et al. 2016, arXiv:1606.04934, algorithm 1; Papamakarios et al. 2017,
    arXiv:1705.07057 (the inverse direction).

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import Autoregressive
        >>> flow = Autoregressive(3, hidden_dim=16)
        >>> y, ladj = flow(torch.zeros(5, 3))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    inverse_kind: InverseKind = "sequential"

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        *,
        transformer: TransformerLike = None,
        hidden_dim: Hidden = None,
        reverse: bool = False,
        activation: Activation = "tanh",
        skip_connections: bool = True,
    ) -> None:
        super().__init__(dim, context_dim)
        self.transformer = make_transformer(transformer)
        if self.transformer.periodic:
            raise OptionError(
                f"Autoregressive reads its coordinates as real numbers; {self.transformer} moves "
                "angles. Take Coupling, whose conditioner sees cosines and sines: 'ncsf'."
            )
        if self.transformer.inverse_kind == "numeric":
            self.inverse_kind = "numeric"
        self.reverse = reverse
        hidden = hidden_widths(hidden_dim, min(max(SIZES.least_hidden, 2 * dim), SIZES.most_hidden))
        self.net = MADE(
            dim,
            self.transformer.num_params,
            context_dim=context_dim,
            hidden=hidden,
            reverse=reverse,
            activation=activation,
            skip_connections=skip_connections,
        )
        size = sum(parameter.numel() for parameter in self.net.parameters())
        if size > SIZES.large_net:
            warn(
                f"An autoregressive layer with dim={dim} and hidden={list(hidden)} has {size:,} "
                "weights. A smaller hidden_dim, 'planar*16' or 'sylvester' grow with D, not D^2.",
            )

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, context = self.enter(x, context)
        y, ladj = self.transformer.forward(x, self.net(x, context))
        return y, ladj.sum(-1)

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
        y, context = self.enter(y, context)
        ladjs: list[Tensor] = []

        def solve_one(i: int, params: Tensor) -> Tensor:
            x_i, ladj = self.transformer.inverse(y[..., i], params)
            ladjs.append(ladj)
            return x_i

        x = self.net.solve(solve_one, torch.zeros_like(y), context)
        return x, torch.stack(ladjs, -1).sum(-1)

    def forward_with_score(
        self, x: Points, score: Points, context: Contexts | None = None
    ) -> ImageAndScore:
        x, context = self.enter(x, context)
        params = self.net(x, context)
        y, ladj = self.transformer.forward(x, params)
        with torch.no_grad():
            dx, dparams, dladj_dx, dladj_dparams = self.transformer.slopes(x, params)
        score = score.detach().expand_as(x)
        # All at once up to here; beyond, the explicit Jacobian of every row would be too much work.
        block = (
            self.dim
            if self.dim <= SIZES.explicit_jacobian
            else -(-self.dim // SIZES.jacobian_blocks)
        )
        with torch.no_grad():
            pushed = self.net.solve_transposed(
                x, context, score - dladj_dx, dx, dparams, dladj_dparams, block=block
            )
        return y, ladj.sum(-1), pushed

    def extra_repr(self) -> str:
        transformer = type(self.transformer).__name__
        return super().extra_repr() + f", transformer={transformer}, reverse={self.reverse}"


def _kernel(gate: str) -> Transformer:
    if gate not in get_args(Gate):
        raise OptionError(f"gate needs to be 'affine' or 'sigmoid'; got {gate!r}.")
    return GatedTransformer() if gate == "sigmoid" else AffineTransformer()


def iaf(
    dim: int,
    context_dim: int = 0,
    *,
    hidden_dim: Hidden = None,
    gate: Gate = "affine",
    reverse: bool = False,
    activation: Activation = "tanh",
    skip_connections: bool = True,
) -> Flow:
    """Build one inverse autoregressive layer: fast to sample, D passes to score a new point.

    Args:
        dim: Event size D.
        context_dim: Size of the context.
        hidden_dim: Hidden width, or several.
        gate: ``"affine"`` (bounded log-scale) or ``"sigmoid"`` (Kingma's, normalised).
        reverse: Take the coordinates from the last to the first.
        activation: Of the masked net, as in :class:`Autoregressive`.
        skip_connections: As in :class:`Autoregressive`.

    Source: Kingma et al. 2016, arXiv:1606.04934.

    Example:
        >>> from pyro_nfvi.flows._autoregressive import iaf
        >>> iaf(3, gate="sigmoid").inverse_kind
        'sequential'
    """
    return Autoregressive(
        dim,
        context_dim,
        transformer=_kernel(gate),
        hidden_dim=hidden_dim,
        reverse=reverse,
        activation=activation,
        skip_connections=skip_connections,
    )


def maf(
    dim: int,
    context_dim: int = 0,
    *,
    hidden_dim: Hidden = None,
    gate: Gate = "affine",
    reverse: bool = False,
    activation: Activation = "tanh",
    skip_connections: bool = True,
) -> Flow:
    """Build one masked autoregressive layer: fast to score, D passes to sample; ``iaf(...).inv``.

    Args:
        dim: Event size D.
        context_dim: Size of the context.
        hidden_dim: Hidden width, or several.
        gate: As in :func:`iaf`.
        reverse: Take the coordinates from the last to the first.
        activation: Of the masked net, as in :class:`Autoregressive`.
        skip_connections: As in :class:`Autoregressive`.

    Source: Papamakarios et al. 2017, arXiv:1705.07057.

    Example:
        >>> from pyro_nfvi.flows._autoregressive import maf
        >>> type(maf(3)).__name__
        'Inverse'
    """
    layer = iaf(
        dim,
        context_dim,
        hidden_dim=hidden_dim,
        gate=gate,
        reverse=reverse,
        activation=activation,
        skip_connections=skip_connections,
    )
    return layer.inv
