"""Encoder and decoder of residual convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_nfvi.vae._dense_networks import Head
from pyro_nfvi.vae._image_axes import ImageAxes
from pyro_nfvi.vae._recipe import NETWORKS


class _Block(nn.Module):
    """Two convolutions whose result is added to their input; the second starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, 1, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(F.elu(self.first(F.elu(x))))
        return x + found


def _blocks(channels: int) -> list[nn.Module]:
    return [_Block(channels) for _ in range(NETWORKS.resnet_blocks)]


class ResNetEncoder(nn.Module):
    """Images, grey or in colour, to ``(loc, scale, context)`` through residual blocks.

    Two blocks of 3x3 convolutions at full size (16 channels), at half (32) and at a quarter (32),
    then a dense layer to 256 numbers; ELU between.

    Args:
        shape: ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)``, sides that are multiples of 4.
        latent_dim: D.
        context_dim: Size of the flow's context; 256 hands the last layer on as it is; 0: none.
        condition_dim: Size of labels, which enter beside the last map.

    Shape:
        ``x (B, *shape)``, ``c (B, condition_dim)`` -> ``(B, D)``, ``(B, D)``, ``(B, C)`` or None.

    Source: He et al. 2016, arXiv:1603.05027 (blocks); in VAEs Kingma et al. 2016, arXiv:1606.04934.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import ResNetEncoder
        >>> ResNetEncoder((3, 32, 32), latent_dim=4)(torch.ones(2, 3, 32, 32))[0].shape
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
            "kind": "ResNetEncoder", "shape": list(shape), "latent_dim": latent_dim,
            "context_dim": context_dim, "condition_dim": condition_dim,
        }  # fmt: skip
        self.axes = ImageAxes.of(shape, 4)
        full, half, quarter = NETWORKS.resnet_channels
        height, width = self.axes.quarter()
        self.body = nn.Sequential(
            nn.Conv2d(self.axes.channels, full, 3, 1, 1), *_blocks(full),
            nn.ELU(), nn.Conv2d(full, half, 3, 2, 1), *_blocks(half),
            nn.ELU(), nn.Conv2d(half, quarter, 3, 2, 1), *_blocks(quarter),
            nn.ELU(), nn.Flatten(),
        )  # fmt: skip
        size = quarter * height * width + condition_dim
        self.last = nn.Linear(size, NETWORKS.conv_width)
        self.head = Head(NETWORKS.conv_width, latent_dim, context_dim)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return ``(loc, scale, context)``."""
        h = self.body(self.axes.to_maps(x))
        h = F.elu(self.last(h if c is None else torch.cat([h, c], -1)))
        found: tuple[Tensor, Tensor, Tensor | None] = self.head(h)
        return found


class ResNetDecoder(nn.Module):
    """Latent points to the parameters of images, grey or in colour, through residual blocks.

    The sizes of :class:`ResNetEncoder` the other way round.

    Args:
        latent_dim: D.
        shape: ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)``, sides that are multiples of 4.
        num_params: Numbers per pixel and channel; above 1 they stand on a last axis.
        condition_dim: Size of labels that come beside the latent point.

    Shape:
        ``z (N, D)``, ``c (N, condition_dim)`` -> ``(N, *shape)`` or ``(N, *shape, num_params)``.

    Source: as :class:`ResNetEncoder`.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import LogisticMixture, ResNetDecoder
        >>> pixels = LogisticMixture(levels=256, components=3)
        >>> decoder = ResNetDecoder(4, (3, 32, 32), num_params=pixels.num_params)
        >>> decoder(torch.zeros(2, 4)).shape
        torch.Size([2, 3, 32, 32, 9])
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
            "kind": "ResNetDecoder", "latent_dim": latent_dim, "shape": list(shape),
            "num_params": num_params, "condition_dim": condition_dim,
        }  # fmt: skip
        self.axes, self.num_params = ImageAxes.of(shape, 4), num_params
        full, half, quarter = NETWORKS.resnet_channels
        height, width = self.axes.quarter()
        self.body = nn.Sequential(
            nn.Linear(latent_dim + condition_dim, NETWORKS.conv_width), nn.ELU(),
            nn.Linear(NETWORKS.conv_width, quarter * height * width),
            nn.Unflatten(1, (quarter, height, width)), *_blocks(quarter),
            nn.ELU(), nn.ConvTranspose2d(quarter, half, 4, 2, 1), *_blocks(half),
            nn.ELU(), nn.ConvTranspose2d(half, full, 4, 2, 1), *_blocks(full),
            nn.ELU(), nn.Conv2d(full, self.axes.channels * num_params, 3, 1, 1),
        )  # fmt: skip

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Return the likelihood's parameters."""
        rows = z if c is None else torch.cat([z, c], -1)
        return self.axes.from_maps(self.body(rows), self.num_params)
