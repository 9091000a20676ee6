"""Gated convolutional encoder and decoder, with the sizes of the Sylvester paper's code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_nfvi.vae._dense_networks import Head
from pyro_nfvi.vae._image_axes import ImageAxes
from pyro_nfvi.vae._recipe import NETWORKS

#: (channels, stride) of the encoder's 5x5 layers; the decoder mirrors them.
_DOWN = ((32, 1), (32, 2), (64, 1), (64, 2), (64, 1))
_UP = ((64, 1), (64, 1), (32, 2), (32, 1), (32, 2), (32, 1))


class _Gated(nn.Module):
    """A convolution, transposed or not, of twice the channels: value times sigmoid of gate."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.conv(x), 1)


class ConvEncoder(nn.Module):
    """Images, grey or in colour, to ``(loc, scale, context)`` through gated convolutions.

    Five 5x5 layers (32, 32 with stride 2, 64, 64 with stride 2, 64 channels), then one layer over
    the whole quarter-size map to 256 numbers.

    Args:
        shape: ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)``, sides that are multiples of 4.
        latent_dim: D.
        context_dim: Size of the flow's context; 256 hands the last layer on as it is; 0: none.
        condition_dim: Size of labels, which enter beside the 256 numbers.

    Shape:
        ``x (B, *shape)``, ``c (B, condition_dim)`` -> ``(B, D)``, ``(B, D)``, ``(B, C)`` or None.

    Source: van den Berg et al. 2018, arXiv:1803.05649, appendix; sizes as in the authors' code.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import ConvEncoder
        >>> ConvEncoder((28, 20), latent_dim=4)(torch.ones(2, 28, 20))[0].shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int,
        *,
        context_dim: int = 0,
        condition_dim: int = 0,
    ) -> None:
        super().__init__()
        self.made_of = {
            "kind": "ConvEncoder", "shape": list(shape), "latent_dim": latent_dim,
            "context_dim": context_dim, "condition_dim": condition_dim,
        }  # fmt: skip
        self.axes = ImageAxes.of(shape, 4)
        parts: list[nn.Module] = []
        inputs = self.axes.channels
        for channels, stride in _DOWN:
            parts.append(_Gated(nn.Conv2d(inputs, 2 * channels, 5, stride, 2)))
            inputs = channels
        parts.append(_Gated(nn.Conv2d(inputs, 2 * NETWORKS.conv_width, self.axes.quarter())))
        self.body = nn.Sequential(*parts)
        self.join = (
            nn.Linear(NETWORKS.conv_width + condition_dim, NETWORKS.conv_width)
            if condition_dim
            else None
        )
        self.head = Head(NETWORKS.conv_width, latent_dim, context_dim)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return ``(loc, scale, context)``."""
        h = self.body(self.axes.to_maps(x)).flatten(1)
        if self.join is not None and c is not None:
            h = torch.tanh(self.join(torch.cat([h, c], -1)))
        found: tuple[Tensor, Tensor, Tensor | None] = self.head(h)
        return found


class ConvDecoder(nn.Module):
    """Latent points to the likelihood's parameters through gated transposed convolutions.

    Args:
        latent_dim: D.
        shape: ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)``, sides that are multiples of 4.
        num_params: Numbers per pixel and channel; above 1 they stand on a last axis.
        condition_dim: Size of labels that come beside the latent point.

    Shape:
        ``z (N, D)``, ``c (N, condition_dim)`` -> ``(N, *shape)`` or ``(N, *shape, num_params)``.

    Source: as :class:`ConvEncoder`.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import ConvDecoder
        >>> ConvDecoder(4, (28, 20))(torch.zeros(2, 4)).shape
        torch.Size([2, 28, 20])
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        *,
        num_params: int = 1,
        condition_dim: int = 0,
    ) -> None:
        super().__init__()
        self.made_of = {
            "kind": "ConvDecoder", "latent_dim": latent_dim, "shape": list(shape),
            "num_params": num_params, "condition_dim": condition_dim,
        }  # fmt: skip
        self.axes, self.num_params = ImageAxes.of(shape, 4), num_params
        inputs, (first, _) = latent_dim + condition_dim, _UP[0]
        whole = nn.ConvTranspose2d(inputs, 2 * first, self.axes.quarter())
        parts: list[nn.Module] = [_Gated(whole)]
        inputs = first
        for channels, stride in _UP[1:]:
            conv = nn.ConvTranspose2d(inputs, 2 * channels, 5, stride, 2, stride - 1)
            parts.append(_Gated(conv))
            inputs = channels
        self.body = nn.Sequential(*parts)
        self.last = nn.Conv2d(inputs, self.axes.channels * num_params, 1)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Return the likelihood's parameters."""
        rows = z if c is None else torch.cat([z, c], -1)
        return self.axes.from_maps(self.last(self.body(rows[..., None, None])), self.num_params)
