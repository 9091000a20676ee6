"""Summaries of a guide that is no single map of noise, from fixed points through its density."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_nfvi._autocast import full_precision
from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi.guides._guide_draws import chunk_rows
from pyro_nfvi.guides._quantiles import base_points, column_quantiles
from pyro_nfvi.guides._vector_guide import VectorGuide


class PointsGuide(VectorGuide):
    """A guide whose noise has another size than its latents: a density, and no flow."""

    def _noise_dim(self) -> int:
        """Return how many numbers of noise a draw takes."""
        raise NotImplementedError

    def get_base_dist(self) -> Distribution:
        self.transport()
        raise AssertionError  # transport has raised

    def _points(self) -> Tensor:
        """The fixed base points through the guide: ``(4097, D)``."""
        density: Any = self.density()
        noise = base_points(self._like().new_zeros(self._noise_dim()))
        rows = chunk_rows(self.latent_dim)
        return torch.cat([density.draw(part) for part in noise.split(rows)])

    def _levels(self, levels: Tensor) -> TensorPair:
        points = self._points()
        return torch.zeros_like(points[0]), column_quantiles(points, levels)

    @full_precision
    @torch.no_grad()
    def mean(self, *args: Any, **kwargs: Any) -> TensorDict:
        """Return the posterior mean of each constrained site, over the fixed base points."""
        self._summary_setup(args, kwargs)
        values = self.latent.constrain(self._points())[0]
        return {name: value.mean(0) for name, value in values.items()}
