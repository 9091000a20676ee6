"""A net of fully connected layers with a linear skip, and the options that nets share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_nfvi._typing import Hidden
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import OptionError

#: Name of the function between the layers of a net.
Activation = Literal["tanh", "relu", "elu", "silu"]

_Function = Callable[[Tensor], Tensor]
#: Each activation with its derivative; both take what comes in.
_ACTIVATIONS: dict[str, tuple[_Function, _Function]] = {
    "tanh": (torch.tanh, lambda t: 1 - torch.tanh(t).square()),
    "relu": (torch.relu, lambda t: (t > 0).to(t.dtype)),
    "elu": (F.elu, lambda t: t.clamp_max(0).exp()),
    "silu": (F.silu, lambda t: torch.sigmoid(t) * (1 + t * torch.sigmoid(-t))),
}


def activation_of(name: str) -> tuple[_Function, _Function]:
    """Return an activation and its derivative by name; raise for an unknown one."""
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        known = ", ".join(repr(one) for one in get_args(Activation))
        raise OptionError(f"activation needs to be one of {known}; got {name!r}.")
    return _ACTIVATIONS[name]


def hidden_widths(hidden_dim: Hidden, default: int) -> tuple[int, ...]:
    """Normalise ``hidden_dim`` (None, a width, or several) to a tuple of widths."""
    if hidden_dim is None:
        return (default,)
    listed = isinstance(hidden_dim, Sequence) and not isinstance(hidden_dim, str)
    widths = tuple(hidden_dim) if isinstance(hidden_dim, Sequence) and listed else (hidden_dim,)
    if not widths:
        raise OptionError("hidden_dim needs a width, or several; got none.")
    return tuple(whole("hidden_dim", width) for width in widths)


class MLP(nn.Module):
    """A net with a linear skip beside its hidden layers; last layer and skip start at zero.

    The skip holds linear dependence whatever the hidden layers do. Its inputs x outputs weights are
    more than all others where both are many.

    Args:
        inputs: Size of the last axis of the input; 0 gives outputs that depend on nothing.
        outputs: Size of the last axis of the output.
        hidden: Widths of the hidden layers.
        activation: ``"tanh"``, ``"relu"``, ``"elu"`` or ``"silu"``.
        skip_connections: Whether to have the skip.

    Raises:
        OptionError: An unknown activation.

    Example:
        >>> import torch
        >>> bool((MLP(3, 4, hidden=(16,))(torch.ones(5, 3)) == 0).all())
        True
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: Sequence[int] = (32,),
        activation: Activation = "tanh",
        skip_connections: bool = True,
    ) -> None:
        super().__init__()
        activation_of(activation)
        between = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}[activation]
        layers: list[nn.Module] = []
        size = inputs
        for width in hidden:
            layers += [nn.Linear(size, width), between()]
            size = width
        last = nn.Linear(size, outputs)
        self.skip = nn.Linear(inputs, outputs, bias=False) if skip_connections else None
        for weight in (last.weight, last.bias):
            nn.init.zeros_(weight)
        if self.skip is not None:
            nn.init.zeros_(self.skip.weight)
        self.net = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*b, inputs)`` to ``(*b, outputs)``."""
        out: Tensor = self.net(x)
        return out if self.skip is None else out + self.skip(x)
