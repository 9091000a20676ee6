"""A masked net whose outputs see only earlier inputs (MADE)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_nfvi._nn.masked_jacobian import solve_transposed
from pyro_nfvi._nn.mlp import Activation, activation_of
from pyro_nfvi.errors import OptionError


class MADE(nn.Module):
    r"""A net whose output i depends on the inputs before i in the given order.

    ``num_outputs`` numbers come out per input. The last layer starts at zero, so the net starts at
    zero whatever the hidden weights are. A context of size C is seen by every output.

    A masked linear skip, also zero at the start, runs beside the hidden layers: however narrow they
    are, every input is seen. With tanh the net is linear far out, and holds still where data have
    outliers; ReLU learns steep conditionals of few dimensions faster, and its gradient jumps.

    Args:
        dim: Number of inputs D.
        num_outputs: Outputs per input.
        context_dim: Size C of the context.
        hidden: Widths of the hidden layers.
        reverse: Take the inputs from the last to the first.
        activation: ``"tanh"``, ``"relu"``, ``"elu"`` or ``"silu"``.
        skip_connections: Whether to have the skip. Without it every hidden layer needs D - 1 units
            at least, or some outputs would not see some inputs.

    Shape:
        ``x (*b, D)``, ``context (*b, C)`` -> ``(*b, D, num_outputs)``.

    Raises:
        OptionError: An unknown activation; hidden layers too narrow to do without the skip.

    Source: Germain et al. 2015, arXiv:1502.03509, section 4; the skip is its equation 16.

    Example:
        >>> import torch
        >>> net = MADE(3, 2, hidden=(16,))
        >>> net(torch.zeros(5, 3)).shape
        torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        dim: int,
        num_outputs: int,
        *,
        context_dim: int = 0,
        hidden: Sequence[int] = (32,),
        reverse: bool = False,
        activation: Activation = "tanh",
        skip_connections: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.context_dim, self.num_outputs = dim, context_dim, num_outputs
        self.activation, self.reverse = activation, reverse
        activation_of(activation)
        rank = torch.arange(dim).flip(0) if reverse else torch.arange(dim)
        inputs = torch.cat([rank, torch.full((context_dim,), -1)])
        # Hidden degrees run over those that some output can use. With a context the degree -1
        # (context only) is one of them; without, a first output has nothing to look at.
        lowest = -1 if context_dim else 0
        span = max(dim - 1 - lowest, 1)
        if not skip_connections and min(hidden) < span:
            raise OptionError(
                f"skip_connections=False needs hidden layers of at least {span} units (dim={dim}, "
                f"context_dim={context_dim}), or outputs would not see all earlier inputs; got "
                f"{list(hidden)}. Give a larger hidden_dim, or keep the skip."
            )
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        self._masks: list[str] = []
        degrees = inputs
        for width in hidden:
            following = torch.arange(width) % span + lowest
            self._add_layer(following[:, None] >= degrees, zero=False)
            degrees = following
        outputs = rank.repeat_interleave(num_outputs)
        self._add_layer(outputs[:, None] > degrees, zero=True)
        weight = torch.zeros(len(outputs), len(inputs))
        self.skip = nn.Parameter(weight) if skip_connections else None
        mask = (outputs[:, None] > inputs).to(weight.dtype)
        self.register_buffer("skip_mask", mask * float(skip_connections), persistent=False)
        self.skip_mask: Tensor

    def _add_layer(self, mask: Tensor, *, zero: bool) -> None:
        fan_out, fan_in = mask.shape
        weight = torch.zeros(fan_out, fan_in)
        bias = torch.zeros(fan_out)
        if not zero:
            # Scaled by the inputs that the mask leaves.
            seen = mask.sum(1, keepdim=True).clamp_min(1).sqrt()
            if self.activation == "relu":
                # Bias and weight of one size: the kinks lie all over the data.
                weight.uniform_(-1, 1).div_(seen)
                bias.uniform_(-1, 1).div_(seen.squeeze(1))
            else:
                # Pre-activations of unit size.
                weight.normal_().div_(seen)
                bias.uniform_(-0.5, 0.5)
        name = f"mask{len(self._masks)}"
        self.register_buffer(name, mask.to(weight.dtype), persistent=False)
        self._masks.append(name)
        self.weights.append(nn.Parameter(weight))
        self.biases.append(nn.Parameter(bias))

    def masked_weights(self) -> list[Tensor]:
        """Weights of the hidden layers and of the last, masked."""
        return [weight * getattr(self, name) for weight, name in zip(self.weights, self._masks)]

    def _masked_skip(self) -> Tensor:
        # Without a skip its mask is all zeros.
        return self.skip_mask if self.skip is None else self.skip * self.skip_mask

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the outputs, the last axis over ``num_outputs``."""
        first, *hidden, last = zip(self.masked_weights(), self.biases)
        between, _ = activation_of(self.activation)
        h = between(self._both(x, context, *first))
        for weight, bias in hidden:
            h = between(F.linear(h, weight, bias))
        out = F.linear(h, *last)
        if self.skip is not None:
            out = out + self._both(x, context, self._masked_skip())
        return out.unflatten(-1, (self.dim, self.num_outputs))

    def _both(
        self, x: Tensor, context: Tensor | None, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Apply a layer to point and context apart: points that share a context pay for it once."""
        if context is None:
            return F.linear(x, weight, bias)
        beside = F.linear(context, weight[:, self.dim :], bias)
        return F.linear(x, weight[:, : self.dim]) + beside

    def solve(
        self,
        solve_one: Callable[[int, Tensor], Tensor],
        start: Tensor,
        context: Tensor | None = None,
    ) -> Tensor:
        """Find the inputs one by one, each from the outputs that the earlier ones give.

        Args:
            solve_one: ``(i, outputs (*b, num_outputs)) -> x_i (*b,)``.
            start: Zeros ``(*b, D)``.
            context: As in ``forward``.

        Returns:
            ``x (*b, D)``.

        Cost:
            That of one pass and D passes through the hidden layers after the first: an input
            that is found is added to what the first layer has summed up, and of the last layer
            only the outputs in question are computed.
        """
        between, _ = activation_of(self.activation)
        (first, *inner, last), (bias, *biases, last_bias) = self.masked_weights(), self.biases
        skip = None if self.skip is None else self._masked_skip()
        inputs = self._join(start, context)
        total = F.linear(inputs, first, bias)
        beside = None if skip is None else F.linear(inputs, skip)
        found: dict[int, Tensor] = {}
        order = range(self.dim)
        for i in reversed(order) if self.reverse else order:
            h = between(total)
            for weight, more in zip(inner, biases):
                h = between(F.linear(h, weight, more))
            rows = slice(i * self.num_outputs, (i + 1) * self.num_outputs)
            out = F.linear(h, last[rows], last_bias[rows])
            found[i] = solve_one(i, out if beside is None else out + beside[..., rows])
            column = found[i].unsqueeze(-1)
            total = total + column * first[:, i]
            if skip is not None and beside is not None:
                beside = beside + column * skip[:, i]
        return torch.stack([found[i] for i in order], -1)

    def solve_transposed(
        self,
        x: Tensor,
        context: Tensor | None,
        target: Tensor,
        dx: Tensor,
        dparams: Tensor,
        extra: Tensor,
        *,
        block: int,
    ) -> Tensor:
        r"""Solve :math:`J^\top u = v - N^\top e` at x, J the Jacobian of a layer with this net.

        The rest as in :func:`pyro_nfvi._nn.masked_jacobian.solve_transposed`.
        """
        weights, skip = self.masked_weights(), self._masked_skip()
        slopes = self._slopes(x, context, weights)
        if self.context_dim:
            weights, skip = [weights[0][:, : self.dim], *weights[1:]], skip[:, : self.dim]
        return solve_transposed(
            weights, skip, slopes, target, dx, dparams, extra, reverse=self.reverse, block=block
        )

    def _slopes(self, x: Tensor, context: Tensor | None, weights: Sequence[Tensor]) -> list[Tensor]:
        """Derivatives of the activations in each hidden layer."""
        between, slope_of = activation_of(self.activation)
        h, slopes = self._join(x, context), []
        for weight, bias in itertools.islice(zip(weights, self.biases), len(weights) - 1):
            before = F.linear(h, weight, bias)
            h = between(before)
            slopes.append(slope_of(before))
        return slopes

    def jacobian(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Jacobian of the outputs in ``x``: ``(*b, D, num_outputs, D)``, by matrix products."""
        weights = self.masked_weights()
        slopes = self._slopes(x, context, weights)
        # From the last layer backwards: the free axis is the small first layer's input.
        product: Tensor = weights[-1].expand(*x.shape[:-1], *weights[-1].shape)
        for weight, slope in zip(reversed(weights[:-1]), reversed(slopes)):
            product = (product * slope.unsqueeze(-2)) @ weight
        product = product + self._masked_skip()
        return product[..., : self.dim].unflatten(-2, (self.dim, self.num_outputs))

    def _join(self, x: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            return x
        return torch.cat([x, context.expand(*x.shape[:-1], self.context_dim)], -1)

    def extra_repr(self) -> str:
        widths = [len(bias) for bias in self.biases][:-1]
        return (
            f"dim={self.dim}, context_dim={self.context_dim}, hidden={widths}, "
            f"activation={self.activation!r}"
        )
