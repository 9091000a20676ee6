"""Posterior draws of summed-out discrete sites for a batch of latent vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor

from pyro_nfvi._pyro_model.model_run import ModelRun
from pyro_nfvi._random import stream
from pyro_nfvi._typing import TensorDict

if TYPE_CHECKING:
    from collections.abc import Iterable


class Assignment:
    """Draws the enumerated sites of a model given its continuous latents.

    As the log joint itself, all draws are made in one run where that gives what single runs give
    from the same noise, else under ``vmap``, else one by one.

    Args:
        run: The model at work.
        ways: The ways to try, in order.
        points: Latent vectors at which they are compared.
        subsample: Subsample indices for that.
    """

    def __init__(
        self, run: ModelRun, ways: Iterable[str], points: Tensor, subsample: Mapping[str, Tensor]
    ) -> None:
        self._run = run
        with pyro.validation_enabled(False):
            values, _ = run.latent.constrain(points[0])
            trace = run.trace(values, subsample, enumerate_sites=False)
        #: Batch shapes of the discrete sites.
        self._shapes = {name: trace.nodes[name]["fn"].batch_shape for name in run.enumerated}
        # The way is chosen by what the model is, whatever the seed of a fit.
        noise = self.noise(len(points), points, stream(0, "assignment"))
        expected = self._draw(points, subsample, noise, "loop")
        self.how = "loop"
        for way in ways:
            if way == "loop":
                break
            try:
                found = self._draw(points, subsample, noise, way)
            except Exception:  # a model may fail in any way when it is batched
                continue
            if _same(found, expected):
                self.how = way
                break

    def noise(self, count: int, like: Tensor, generator: torch.Generator | None) -> TensorDict:
        """Uniform numbers ``(count, *batch_shape)`` for every discrete site, above 0."""
        device = torch.device("cpu") if generator is None else generator.device
        return {
            name: torch.rand((count, *shape), generator=generator, device=device, dtype=like.dtype)
            .to(like.device)
            .clamp_(min=torch.finfo(like.dtype).tiny)
            for name, shape in sorted(self._shapes.items())
        }

    def draw(
        self, z: Tensor, subsample: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[TensorDict, TensorDict]:
        """Draw for each row of ``z (S, D)``: discrete and deterministic sites, ``(S, *shape)``."""
        return self._draw(z, subsample, self.noise(len(z), z, generator), self.how)

    def _draw(
        self, z: Tensor, subsample: Mapping[str, Tensor], noise: TensorDict, way: str
    ) -> tuple[TensorDict, TensorDict]:
        run = self._run
        with torch.no_grad(), pyro.validation_enabled(False):
            if way == "plate":
                return run.discrete(z, subsample, noise, together=True)
            if way == "vmap":
                run.under_vmap = True
                try:
                    return torch.vmap(
                        lambda row, one: run.discrete(row, subsample, one, together=False)
                    )(z, noise)
                finally:
                    run.under_vmap = False
            parts = [
                run.discrete(
                    row, subsample, {n: one[i] for n, one in noise.items()}, together=False
                )
                for i, row in enumerate(z)
            ]
        return (
            {name: torch.stack([part[0][name] for part in parts]) for name in parts[0][0]},
            {name: torch.stack([part[1][name] for part in parts]) for name in parts[0][1]},
        )


def _same(found: tuple[TensorDict, TensorDict], expected: tuple[TensorDict, TensorDict]) -> bool:
    """Tell whether two ways agree; a category may flip where the noise is at a step's very edge."""
    for mine, theirs in zip(found, expected):
        for name, other in theirs.items():
            one = mine[name]
            if one.shape != other.shape or one.dtype != other.dtype:
                return False
            close = torch.isclose(one.double(), other.double(), rtol=1e-3, atol=1e-3)
            if close.double().mean() < 0.999 and int((~close).sum()) > 1:
                return False
    return True
