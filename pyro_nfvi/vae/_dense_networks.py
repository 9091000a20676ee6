"""Dense encoders and decoders: plain, and gated as in the papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_nfvi.errors import OptionError
from pyro_nfvi.vae._recipe import NETWORKS


class GatedLinear(nn.Module):
    r"""A linear layer and a gate of its own: :math:`(Ax + a) \cdot \sigma(Bx + b)`.

    Source: Dauphin et al. 2017, arXiv:1612.08083, equation 1; in VAEs Tomczak and Welling 2018,
    arXiv:1705.07120.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.both = nn.Linear(inputs, 2 * outputs)  # one matrix product for value and gate

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*b, inputs)`` to ``(*b, outputs)``."""
        return F.glu(self.both(x), -1)


class Head(nn.Module):
    """The last layer of an encoder: ``h -> (loc, scale, context)``.

    The context is ``h`` itself where ``context_dim`` is its width, as in the papers; else a linear
    map of it.

    Args:
        width: Size of ``h``.
        latent_dim: D.
        context_dim: Size of the context; 0 for none.
    """

    def __init__(self, width: int, latent_dim: int, context_dim: int = 0) -> None:
        super().__init__()
        self.gaussian = nn.Linear(width, 2 * latent_dim)
        own = context_dim and context_dim != width
        self.context = nn.Linear(width, context_dim) if own else None
        self.context_dim = context_dim

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return ``(loc, scale, context)``."""
        loc, raw = self.gaussian(h).chunk(2, -1)
        context = h if self.context is None else self.context(h)
        return loc, F.softplus(raw) + NETWORKS.min_scale, context if self.context_dim else None


def dense_layers(inputs: int, widths: Sequence[int], *, gated: bool) -> nn.Sequential:
    """Hidden layers, gated or with ReLU."""
    if not widths or not all(isinstance(w, int) and w > 0 for w in widths):
        raise OptionError(f"hidden needs positive widths, such as (300, 300); got {widths!r}.")
    parts: list[nn.Module] = []
    for width in widths:
        parts += [GatedLinear(inputs, width)] if gated else [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*parts)


class DenseEncoder(nn.Module):
    """Images of any shape to ``(loc, scale, context)`` through dense layers.

    With ``gated=True`` and widths (300, 300) it is the papers' gated dense encoder.

    Args:
        shape: Shape of an image.
        latent_dim: D.
        hidden: Widths of the hidden layers.
        context_dim: Size of the flow's context; 0 for none.
        condition_dim: Size of labels that come beside the image.
        gated: Gated layers instead of ReLU.
        levels: Number of categories of ``Categorical(levels, ordered=False)``: pixels are integers,
            which the encoder looks up in a table of vectors that all pixels share; 0 for numbers.
        embedding: Size of these vectors.

    Shape:
        ``x (B, *shape)``, ``c (B, condition_dim)`` -> ``(B, D)``, ``(B, D)``, ``(B, C)`` or None.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import DenseEncoder
        >>> loc, scale, context = DenseEncoder((28, 28), 40, context_dim=8)(torch.ones(5, 28, 28))
        >>> loc.shape, context.shape, bool((scale > 0).all())
        (torch.Size([5, 40]), torch.Size([5, 8]), True)
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = NETWORKS.hidden,
        *,
        context_dim: int = 0,
        condition_dim: int = 0,
        gated: bool = True,
        levels: int = 0,
        embedding: int = NETWORKS.embedding,
    ) -> None:
        super().__init__()
        self.made_of: dict[str, Any] = {
            "kind": "DenseEncoder", "shape": list(shape), "latent_dim": latent_dim,
            "hidden": list(hidden), "context_dim": context_dim, "condition_dim": condition_dim,
            "gated": gated,
        }  # fmt: skip
        size = math.prod(shape)
        self.table = None
        if levels:
            self.made_of |= {"levels": levels, "embedding": embedding}
            self.table = nn.Embedding(levels, embedding)
            size *= embedding
        self.body = dense_layers(size + condition_dim, hidden, gated=gated)
        self.head = Head(hidden[-1], latent_dim, context_dim)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return ``(loc, scale, context)``."""
        rows = (x if self.table is None else self.table(x)).flatten(1)
        found: tuple[Tensor, Tensor, Tensor | None] = self.head(
            self.body(rows if c is None else torch.cat([rows, c], -1))
        )
        return found


class DenseDecoder(nn.Module):
    """Latent points to the likelihood's parameters through dense layers.

    Args:
        latent_dim: D.
        shape: Shape of an image.
        hidden: Widths of the hidden layers.
        num_params: Numbers per pixel, ``likelihood.num_params``; above 1 they stand on a last
            axis of their own.
        condition_dim: Size of labels that come beside the latent point.
        gated: Gated layers instead of ReLU.

    Shape:
        ``z (N, D)``, ``c (N, condition_dim)`` -> ``(N, *shape)`` or ``(N, *shape, num_params)``.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import DenseDecoder
        >>> DenseDecoder(40, (28, 20), num_params=256)(torch.zeros(5, 40)).shape
        torch.Size([5, 28, 20, 256])
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        hidden: Sequence[int] = NETWORKS.hidden,
        *,
        num_params: int = 1,
        condition_dim: int = 0,
        gated: bool = True,
    ) -> None:
        super().__init__()
        self.made_of = {
            "kind": "DenseDecoder", "latent_dim": latent_dim, "shape": list(shape),
            "hidden": list(hidden), "num_params": num_params, "condition_dim": condition_dim,
            "gated": gated,
        }  # fmt: skip
        self._out = (*shape, num_params) if num_params > 1 else tuple(shape)
        self.body = dense_layers(latent_dim + condition_dim, hidden, gated=gated)
        self.last = nn.Linear(hidden[-1], math.prod(self._out))

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Return the likelihood's parameters."""
        rows = z if c is None else torch.cat([z, c], -1)
        out: Tensor = self.last(self.body(rows))
        return out.reshape(-1, *self._out)
