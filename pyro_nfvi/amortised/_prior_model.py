"""The prior of some latents of a model, as a model: run no further than its last latent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_nfvi._pyro_model.constraints import bijection
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._typing import TensorDict

#: Name of the factor that a likelihood scores.
FACTOR = "neural_likelihood"


class _AllSeen(Exception):
    """All latents were drawn: the simulator behind them is not run."""


class _StopAfter(Messenger):
    """Holds the values of sites, and ends the run with the last of them."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names, self.values = set(names), dict[str, Tensor]()

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            self.values[msg["name"]] = msg["value"]
            if len(self.values) == len(self.names):
                raise _AllSeen


class PriorModel:
    r"""The latents of a model under their prior, and perhaps a likelihood of them as a factor.

    The simulator, which may have no gradient and take long, is not run. A latent whose prior
    depends on a site that is not among them makes the density random, which set-up finds.

    Args:
        model: The Pyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        latent: The latents.
        log_likelihood: Maps unconstrained latents ``(n, D)`` to ``(n,)``, in nats; None for the
            prior alone.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        latent: LatentSpace,
        log_likelihood: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        self.latent, self.log_likelihood = latent, log_likelihood

    def __call__(self) -> None:
        names = tuple(self.latent.sites)
        stop = _StopAfter(names)
        hidden = poutine.block(hide_fn=lambda site: _is_other(site, names))
        try:
            with hidden, stop:
                self.model(*self.args, **self.kwargs)
        except _AllSeen:
            pass
        if self.log_likelihood is not None:
            self._score(stop.values, self.log_likelihood)

    def _score(self, values: TensorDict, log_likelihood: Callable[[Tensor], Tensor]) -> None:
        """Add the likelihood; in a plate of particles left of the model's, for each."""
        parts, batch, nesting = [], torch.Size(), 0
        for site in self.latent.records:
            value = values[site.name]
            u = bijection(site.support).inv(value)
            lead = value.shape[: value.dim() - len(site.shape)]
            if lead.numel() > batch.numel():
                batch, nesting = lead, len(lead) - 1 + len(site.batch_shape)
            parts.append((u, math.prod(site.unconstrained_shape)))
        count = batch.numel()
        z = torch.cat([u.reshape(-1, size).expand(count, size) for u, size in parts], -1)
        found = log_likelihood(z)
        shape = (count, *(1,) * nesting) if count > 1 or len(batch) else ()
        pyro.factor(FACTOR, found.reshape(shape))


def _is_other(site: Any, names: tuple[str, ...]) -> bool:
    return site["type"] == "sample" and site["name"] not in names
