"""The exponential moving average of a VAE's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._files.archives import Malformed
from pyro_nfvi.errors import OptionError
from pyro_nfvi.vae._recipe import TRAINER


class WeightAverage:
    r"""An exponential moving average of tensors.

    .. math:: m_t = d_t m_{t-1} + (1 - d_t) \theta_t, \qquad
        d_t = \min\left(d, \tfrac{1 + t}{10 + t}\right)

    Early states, far from the later ones, are forgotten faster. Whole numbers are taken over.

    Args:
        decay: The decay d, between 0 and 1.
        tensors: What is averaged: parameters, and buffers that training moves.

    Source: Polyak and Juditsky 1992; the warm-up is that of TensorFlow's moving averages.
    """

    def __init__(self, decay: float, tensors: Sequence[Tensor]) -> None:
        if not 0 < decay < 1:
            raise OptionError(f"ema is a decay between 0 and 1, such as 0.999; got {decay!r}.")
        self.decay, self.tensors = decay, tensors
        self.count = 0
        self.values = [tensor.detach().clone() for tensor in tensors]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present state."""
        self.count += 1
        decay = min(self.decay, self.count / (TRAINER.average_warm_up - 1 + self.count))
        for value, tensor in zip(self.values, self.tensors, strict=True):
            if value.is_floating_point():
                value.lerp_(tensor, 1 - decay)
            else:
                value.copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average where the weights are; they come back afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for value, tensor in zip(self.values, self.tensors, strict=True):
            held = tensor.detach().clone()
            tensor.copy_(value)
            value.copy_(held)

    def state(self) -> dict[str, Any]:
        """Return the state as a file can hold it."""
        return {"count": self.count, "values": list(self.values)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that :meth:`state` returned.

        Raises:
            Malformed: It is one of other tensors.
        """
        values = list(state["values"])
        if [(v.shape, v.dtype) for v in values] != [(t.shape, t.dtype) for t in self.tensors]:
            raise Malformed("its average of the weights is one of other tensors")
        self.count = int(state["count"])
        self.values = [value.clone() for value in values]
