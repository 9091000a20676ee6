"""The number of latent points that a decoder is given at once, so that memory stays bounded."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_nfvi._autocast import full_dtype
from pyro_nfvi._eval_mode import evaluation
from pyro_nfvi.vae._generative_model import GenerativeModel
from pyro_nfvi.vae._recipe import EVALUATION


@torch.no_grad()
def numbers_per_row(vae: GenerativeModel, x: Tensor, c: Tensor | None = None) -> int:
    """Count the numbers of the largest tensor that decoding one latent point makes.

    That is what the likelihood needs (256 numbers per pixel of a categorical), or the output of a
    layer before it, which in convolutional nets is larger.

    Args:
        vae: The VAE.
        x: Images ``(B, *shape)``.
        c: Labels of a conditional VAE as rows, from ``vae.condition``.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae._architecture import Architecture
        >>> from pyro_nfvi.vae._memory_tiles import numbers_per_row
        >>> vae = Architecture((4, 4), latent_dim=2, hidden=(8,)).build(seed=0)
        >>> numbers_per_row(vae, torch.zeros(1, 4, 4))
        16
    """
    sizes = [math.prod(x.shape[1:]) * vae.likelihood.num_params]

    def note(module: nn.Module, given: Any, found: Any) -> None:
        if isinstance(found, Tensor):
            sizes.append(found.numel())

    hooks = [part.register_forward_hook(note) for part in vae.decoder.modules()]
    try:
        like = next(vae.parameters(), torch.empty((), device=x.device))
        with evaluation(cast(nn.Module, vae)):
            point = like.new_zeros(1, vae.latent_dim, dtype=full_dtype(like.dtype))
            vae.decode(point, None if c is None else c[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)


def rows_at_once(
    vae: GenerativeModel, x: Tensor, c: Tensor | None = None, *, most: int = EVALUATION.tile_rows
) -> int:
    """Return how many latent points fit a tile: at least 1, at most ``most``.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae._architecture import Architecture
        >>> from pyro_nfvi.vae._memory_tiles import rows_at_once
        >>> vae = Architecture((4, 4), latent_dim=2, hidden=(8,)).build(seed=0)
        >>> rows_at_once(vae, torch.zeros(1, 4, 4), most=100)
        100
    """
    numbers = EVALUATION.tile_cpu if x.device.type == "cpu" else EVALUATION.tile_accelerator
    return max(1, min(most, numbers // numbers_per_row(vae, x, c)))
