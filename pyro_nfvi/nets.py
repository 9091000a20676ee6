"""Conditioners: a plain net, and a masked one whose outputs see only earlier inputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_nfvi._typing import Hidden
from pyro_nfvi.errors import OptionError

__all__ = ["MADE", "MLP", "hidden_widths"]


def hidden_widths(hidden_dim: Hidden, default: int) -> tuple[int, ...]:
    """Normalise ``hidden_dim`` (None, a width, or several) to a tuple of widths."""
    if hidden_dim is None:
        return (default,)
    listed = isinstance(hidden_dim, Sequence) and not isinstance(hidden_dim, str)
    widths = tuple(hidden_dim) if isinstance(hidden_dim, Sequence) and listed else (hidden_dim,)
    found = tuple(w for w in widths if isinstance(w, int) and not isinstance(w, bool) and w > 0)
    if not widths or found != widths:
        raise OptionError(
            f"hidden_dim needs a positive integer or a sequence of them; got {hidden_dim!r}."
        )
    return found


class MLP(nn.Module):
    """A tanh net with a linear skip beside its hidden layers; last layer and skip start at zero.

    Args:
        inputs: Size of the last axis of the input; 0 gives outputs that depend on nothing.
        outputs: Size of the last axis of the output.
        hidden: Widths of the hidden layers.

    Example:
        >>> import torch
        >>> bool((MLP(3, 4, hidden=(16,))(torch.ones(5, 3)) == 0).all())
        True
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: Sequence[int] = (32,)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size = inputs
        for width in hidden:
            layers += [nn.Linear(size, width), nn.Tanh()]
            size = width
        last = nn.Linear(size, outputs)
        self.skip = nn.Linear(inputs, outputs, bias=False)
        for weight in (last.weight, last.bias, self.skip.weight):
            nn.init.zeros_(weight)
        self.net = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*b, inputs)`` to ``(*b, outputs)``."""
        out: Tensor = self.net(x) + self.skip(x)
        return out


class MADE(nn.Module):
    r"""A tanh net whose output i depends on the inputs before i in the given order.

    ``num_outputs`` numbers come out per input. A masked linear skip runs beside the hidden
    layers. The last layer and the skip start at zero, so the net starts at zero whatever the
    hidden weights are. A context of size C is seen by every output.

    Args:
        dim: Number of inputs D.
        num_outputs: Outputs per input.
        context_dim: Size C of the context.
        hidden: Widths of the hidden layers.
        reverse: Take the inputs from the last to the first.

    Shape:
        ``x (*b, D)``, ``context (*b, C)`` -> ``(*b, D, num_outputs)``.

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
    ) -> None:
        super().__init__()
        self.dim, self.context_dim, self.num_outputs = dim, context_dim, num_outputs
        rank = torch.arange(dim).flip(0) if reverse else torch.arange(dim)
        inputs = torch.cat([rank, torch.full((context_dim,), -1)])
        # Hidden degrees run over those that some output can use. With a context the degree -1
        # (context only) is one of them; without, a first output has nothing to look at.
        lowest = -1 if context_dim else 0
        span = max(dim - 1 - lowest, 1)
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
        self.skip = nn.Parameter(torch.zeros(len(outputs), len(inputs)))
        self.register_buffer(
            "skip_mask", (outputs[:, None] > inputs).to(self.skip.dtype), persistent=False
        )
        self.skip_mask: Tensor

    def _add_layer(self, mask: Tensor, *, zero: bool) -> None:
        fan_out, fan_in = mask.shape
        weight = torch.zeros(fan_out, fan_in)
        bias = torch.zeros(fan_out)
        if not zero:
            # Scaled by the inputs that the mask leaves, so that pre-activations have unit size.
            weight.normal_().div_(mask.sum(1, keepdim=True).clamp_min(1).sqrt())
            bias.uniform_(-0.5, 0.5)
        name = f"mask{len(self._masks)}"
        self.register_buffer(name, mask.to(weight.dtype), persistent=False)
        self._masks.append(name)
        self.weights.append(nn.Parameter(weight))
        self.biases.append(nn.Parameter(bias))

    def masked_weights(self) -> list[Tensor]:
        """Weights of the hidden layers and of the last, masked."""
        return [weight * getattr(self, name) for weight, name in zip(self.weights, self._masks)]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the outputs, the last axis over ``num_outputs``."""
        inputs = x
        if context is not None:
            inputs = torch.cat([x, context.expand(*x.shape[:-1], self.context_dim)], -1)
        *hidden, last = zip(self.masked_weights(), self.biases)
        h = inputs
        for weight, bias in hidden:
            h = torch.tanh(F.linear(h, weight, bias))
        out = F.linear(h, *last) + F.linear(inputs, self.skip * self.skip_mask)
        return out.unflatten(-1, (self.dim, self.num_outputs))

    def jacobian(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Jacobian of the outputs in ``x``: ``(*b, D, num_outputs, D)``, by matrix products."""
        inputs = x
        if context is not None:
            inputs = torch.cat([x, context.expand(*x.shape[:-1], self.context_dim)], -1)
        weights = self.masked_weights()
        h, slopes = inputs, []
        for weight, bias in itertools.islice(zip(weights, self.biases), len(weights) - 1):
            h = torch.tanh(F.linear(h, weight, bias))
            slopes.append(1 - h.square())
        # From the last layer backwards: the free axis is the small first layer's input.
        product: Tensor = weights[-1].expand(*x.shape[:-1], *weights[-1].shape)
        for weight, slope in zip(reversed(weights[:-1]), reversed(slopes)):
            product = (product * slope.unsqueeze(-2)) @ weight
        product = product + self.skip * self.skip_mask
        return product[..., : self.dim].unflatten(-2, (self.dim, self.num_outputs))

    def extra_repr(self) -> str:
        widths = [len(bias) for bias in self.biases][:-1]
        return f"dim={self.dim}, context_dim={self.context_dim}, hidden={widths}"
