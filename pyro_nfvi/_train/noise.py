"""The random numbers of a fit: base noise and mini-batches, drawn for many steps at once."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._train.recipe import TRAINING
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.distributions._density import NoiseDensity
from pyro_nfvi.distributions._flow_density import FlowDensity


class Noise:
    """A stream of inputs for steps.

    The numbers are drawn in blocks whose length depends on sizes alone. Who takes how many steps
    at a time is therefore of no consequence: step n of a seed always gets the same numbers.

    Args:
        density: For its base.
        log_joint: For its mini-batches.
        num_particles: Rows of noise in each step.
        generator: Source; None draws from torch's own state.
    """

    def __init__(
        self,
        density: FlowDensity | NoiseDensity,
        log_joint: LogJoint,
        num_particles: int,
        generator: torch.Generator | None,
    ) -> None:
        self._density, self._log_joint = density, log_joint
        self._particles, self.generator = num_particles, generator
        per_step = num_particles * log_joint.latent.dim
        per_step += sum(count for _, count in log_joint.subsampled.values())
        #: Steps in a block.
        self.length = max(1, min(TRAINING.noise_steps, TRAINING.noise_numbers // per_step))
        self._used = self.length
        self._start: Tensor | None = None
        self._eps: Tensor
        self._streams: TensorDict = {}

    @property
    def left(self) -> int:
        """Steps for which numbers can be taken at once."""
        return self.length - self._used if self._used < self.length else self.length

    def look(self, count: int) -> tuple[Tensor, TensorDict]:
        """Return inputs of the next ``count`` steps, at most ``left``: each ``(count, ...)``."""
        if self._used >= self.length:
            self._draw()
        span = slice(self._used, self._used + count)
        return self._eps[span], {name: index[span] for name, index in self._streams.items()}

    def use(self, count: int) -> None:
        """Go on by ``count`` steps."""
        self._used += count

    def _draw(self) -> None:
        self._start, self._used = self._rng(), 0
        with torch.no_grad():
            self._eps = self._density.sample_base(
                (self.length, self._particles), generator=self.generator
            )
        self._streams = self._log_joint.draw_subsamples(self.length, self.generator)

    def _rng(self) -> Tensor:
        return self.generator.get_state() if self.generator else torch.get_rng_state()

    def state(self) -> tuple[Tensor, int]:
        """Return what restores this stream: the state at the block's start, and steps used."""
        if self._start is None or self._used >= self.length:
            return self._rng(), 0
        return self._start, self._used

    def restore(self, state: Tensor, used: int) -> None:
        """Go on from a :meth:`state`."""
        if self.generator:
            self.generator.set_state(state)
        else:
            torch.set_rng_state(state)
        self._used = self.length
        if used:
            self._draw()
            self._used = used
