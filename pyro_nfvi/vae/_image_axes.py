"""Axes of images: grey or with channels, first or last, as convolutions take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pyro_nfvi.errors import OptionError

#: Most channels of an image: red, green, blue and opacity.
_MOST = 4


@dataclass(frozen=True)
class ImageAxes:
    """Shape of an image, and its place among the axes of convolutions ``(N, C, H, W)``.

    Attributes:
        channels: C; 1 for grey images.
        height: H.
        width: W.
        place: Axis of the channels in a single image: 0, -1, or None for grey ones without one.
    """

    channels: int
    height: int
    width: int
    place: int | None

    @classmethod
    def of(cls, shape: Sequence[int], divisor: int) -> ImageAxes:
        """Read a shape ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)``.

        Args:
            shape: Shape of an image.
            divisor: Number of which both sides have to be multiples.

        Raises:
            OptionError: The shape is none of these.

        Example:
            >>> ImageAxes.of((32, 28, 3), 4)
            ImageAxes(channels=3, height=32, width=28, place=-1)
        """
        found = None
        if len(shape) == 2:
            found = cls(1, shape[0], shape[1], None)
        elif len(shape) == 3 and shape[0] <= _MOST:
            found = cls(shape[0], shape[1], shape[2], 0)
        elif len(shape) == 3 and shape[-1] <= _MOST:
            found = cls(shape[-1], shape[0], shape[1], -1)
        if found is None or found.height % divisor or found.width % divisor:
            raise OptionError(
                "The convolutional nets take images (H, W), (C, H, W) or (H, W, C) of at most "
                f"{_MOST} channels with sides that are multiples of {divisor}; got "
                f"{tuple(shape)}. Take the dense nets."
            )
        return found

    def quarter(self) -> tuple[int, int]:
        """Return a quarter of either side."""
        return self.height // 4, self.width // 4

    def to_maps(self, x: Tensor) -> Tensor:
        """Turn images ``(N, *shape)`` into ``(N, C, H, W)``."""
        if self.place is None:
            return x.unsqueeze(1)
        return x if self.place == 0 else x.movedim(-1, 1)

    def from_maps(self, maps: Tensor, num_params: int) -> Tensor:
        """Turn ``(N, C * P, H, W)`` into ``(N, *shape)``, or ``(N, *shape, P)`` for P > 1."""
        out = maps.unflatten(1, (self.channels, num_params)).movedim(2, -1)  # (N, C, H, W, P)
        if self.place is None:
            out = out.squeeze(1)
        elif self.place == -1:
            out = out.movedim(1, 3)
        return out.squeeze(-1) if num_params == 1 else out
