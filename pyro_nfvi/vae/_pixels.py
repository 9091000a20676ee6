"""From pixels in a file to what a likelihood describes: binarisation and dequantisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_nfvi._random import stream
from pyro_nfvi.errors import DataError, OptionError
from pyro_nfvi.vae._datasets import ImageData
from pyro_nfvi.vae._likelihoods import Likelihood
from pyro_nfvi.vae._pixel_scales import grey_recipe
from pyro_nfvi.vae._recipe import DATA

#: Likelihoods that describe integers as they are.
_OF_INTEGERS = (
    "logistic-mixture", "poisson", "negative-binomial", "zero-inflated-negative-binomial"
)  # fmt: skip
_KINDS = ("as-is", "static", "dynamic", "threshold", "dequantize")


def binarize(x: Tensor, levels: int = 256, seed: int = DATA.peer_seed) -> Tensor:
    """Draw 0/1 pixels with probability ``x / (levels - 1)``.

    With seed 777 these are the numbers of NumPy's ``RandomState(777).binomial``, which the public
    codes of VampPrior and Sylvester flows use for validation and test images.

    Args:
        x: Integer pixels ``(N, *shape)``, 0 .. levels-1.
        levels: Number of levels.
        seed: Of the draw.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import binarize
        >>> binarize(torch.tensor([[0, 255]]))
        tensor([[0., 1.]])
    """
    return _binomial(np.random.RandomState(seed), _checked(x, levels), levels)


def dequantize(x: Tensor, levels: int = 256, seed: int = 0, margin: float = 0.0) -> Tensor:
    r"""Add uniform noise to integer pixels: :math:`\epsilon + (1 - 2\epsilon)(x + u)/L`.

    .. math:: \log P(x) \ge \mathbb{E}_u\bigl[\log p(x')\bigr] - D \log L + D \log(1 - 2\epsilon)

    Args:
        x: Integer pixels ``(N, *shape)``, 0 .. levels-1.
        levels: Number of levels L.
        seed: Of the noise.
        margin: How far pixels are kept from 0 and 1, for a logit-normal.

    Source: Theis et al. 2016, arXiv:1511.01844, section 3.1.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0, 128, 255]])
        >>> torch.equal((dequantize(x) * 256).floor().long(), x)
        True
    """
    rows = _checked(x, levels).to(torch.get_default_dtype())
    noise = torch.rand(rows.shape, dtype=rows.dtype, generator=stream(seed, "dequantize"))
    return _spread(rows, noise, levels, margin)


def _checked(x: Tensor, levels: int) -> Tensor:
    # Compared as Python numbers: a uint8 tensor knows no 256.
    if x.is_floating_point() or int(x.min()) < 0 or int(x.max()) >= levels:
        raise DataError(
            f"Pixels need to be integers from 0 to {levels - 1}; got {x.dtype} from "
            f"{float(x.min()):g} to {float(x.max()):g}."
        )
    return x


def _top(levels: int) -> int:
    """The pixel that is ink for certain; real pixels are probabilities."""
    return levels - 1 if levels else 1


def _binomial(rng: np.random.RandomState, x: Tensor, levels: int) -> Tensor:
    drawn = rng.binomial(1, x.numpy().astype(np.float64) / _top(levels))
    return torch.from_numpy(drawn.astype(np.float32)).to(torch.get_default_dtype())


def _spread(rows: Tensor, noise: Tensor, levels: int, margin: float) -> Tensor:
    # Noise of exactly 1 after rounding would be the next level.
    inside = (rows + noise).minimum(rows + 1 - torch.finfo(rows.dtype).eps * levels) / levels
    return margin + (1 - 2 * margin) * inside


@dataclass(frozen=True)
class Preparation:
    """Preparation of images: the numbers that a likelihood describes.

    Attributes:
        kind: ``"as-is"``; ``"static"``, ``"dynamic"`` or ``"threshold"`` binarisation (dynamic:
            training images drawn anew each time, the others once); ``"dequantize"``.
        levels: Number of levels of the pixels in the file; 0 for real ones.
        margin: As in :func:`dequantize`.
    """

    kind: str
    levels: int
    margin: float = 0.0

    @property
    def noisy(self) -> bool:
        """Tell whether training images are drawn anew each time."""
        return self.kind in ("dynamic", "dequantize")

    def images(self, data: ImageData) -> tuple[Tensor, Tensor, Tensor]:
        """Return train, valid and test images; where ``noisy``, train as it is in the file."""
        if self.kind == "as-is":
            keep = self.levels > 2  # integers of a categorical
            parts = (data.train, data.valid, data.test)
            return tuple(x.long() if keep else x.to(torch.get_default_dtype()) for x in parts)  # type: ignore[return-value]
        if self.kind == "threshold":
            cut = _top(self.levels) / 2
            parts = (data.train, data.valid, data.test)
            return tuple((x > cut).to(torch.get_default_dtype()) for x in parts)  # type: ignore[return-value]
        if self.kind == "dequantize":
            held = [
                dequantize(x, self.levels, DATA.peer_seed + i, self.margin)
                for i, x in enumerate((data.valid, data.test))
            ]
            return data.train, held[0], held[1]
        rng = np.random.RandomState(DATA.peer_seed)
        valid = _binomial(rng, data.valid, self.levels)
        test = _binomial(rng, data.test, self.levels)
        if self.kind == "dynamic":
            return data.train, valid, test
        return _binomial(rng, data.train, self.levels), valid, test

    def draw(self, x: Tensor, noise: Tensor) -> Tensor:
        """Prepare training images with uniform noise of their shape."""
        rows = x.to(noise)
        if self.kind == "dynamic":
            return (noise * _top(self.levels) < rows).to(noise)
        return _spread(rows, noise, self.levels, self.margin)

    def log_volume(self, dim: int) -> float:
        """Nats per image from a density of prepared pixels to a probability of integers."""
        if self.kind != "dequantize":
            return 0.0
        return dim * (math.log1p(-2 * self.margin) - math.log(self.levels))

    def spec(self) -> dict[str, Any]:
        """Describe the preparation with what JSON can hold."""
        return {"kind": self.kind, "levels": self.levels, "margin": self.margin}


def _check_real(data: ImageData, name: str) -> None:
    """Refuse real pixels that a likelihood does not describe."""
    parts = (data.train, data.valid, data.test)
    low, high = min(float(x.min()) for x in parts), max(float(x.max()) for x in parts)
    came = f"{data.name} holds real pixels from {low:g} to {high:g}"
    save = f"Save {grey_recipe(low, high)}"
    if name in ("categorical", "logistic-mixture"):
        raise OptionError(
            f"{came}; the {name} likelihood is for integers. {save}, or take --likelihood gaussian."
        )
    if name == "bernoulli" and (low < 0 or high > 1):
        raise OptionError(
            f"{came}; the bernoulli likelihood takes 0 to 1, as probabilities of ink, or integers "
            f"0 to 255. {save}, or take --likelihood gaussian."
        )
    if name == "logit-normal" and (low <= 0 or high >= 1):
        raise OptionError(
            f"{came}; a logit-normal has no density at 0, at 1 and beyond. {save}, which are "
            "dequantised, or take --likelihood gaussian."
        )


def choose_preparation(data: ImageData, likelihood: Likelihood, kind: str = "auto") -> Preparation:
    """Return how these images have to be prepared for a likelihood.

    Args:
        data: The images.
        likelihood: What they are to be described by.
        kind: ``"auto"``, or one of the kinds of :class:`Preparation`.

    Raises:
        OptionError: The kind does not fit pixels or likelihood.

    Example:
        >>> from pyro_nfvi.vae import Bernoulli, choose_preparation, load_data
        >>> choose_preparation(load_data("digits"), Bernoulli()).kind
        'dynamic'
    """
    if kind not in ("auto", *_KINDS):
        raise OptionError(f"binarize is auto, {', '.join(_KINDS)}; got {kind!r}.")
    name, levels = likelihood.name, data.levels
    kinds = {
        "bernoulli": ("as-is",) if levels == 2 else ("dynamic", "static", "threshold"),
        "categorical": ("as-is",),
        "gaussian": ("dequantize",) if levels else ("as-is",),
        "logit-normal": ("dequantize",) if levels else ("as-is",),
        "student-t": ("dequantize",) if levels else ("as-is",),
    } | dict.fromkeys(_OF_INTEGERS, ("as-is",))
    fits = kinds.get(name, _KINDS)
    if not levels:
        _check_real(data, name)
    chosen = fits[0] if kind == "auto" else kind
    if chosen not in fits:
        raise OptionError(
            f"--binarize {chosen} does not fit {data.name} ({levels or 'no'} levels) under the "
            f"{name} likelihood; what fits: {', '.join(fits)}."
        )
    return Preparation(chosen, levels, DATA.logit_margin if name == "logit-normal" else 0.0)
