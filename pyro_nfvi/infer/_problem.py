"""``Problem``: the model of one fit with its data, and the random streams of the fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch

from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import stream
from pyro_nfvi._train.density_selection import EAGER, DensityEngine
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._scopes import only


@dataclass(frozen=True, eq=False)
class Problem:
    """A posterior to be approximated; nothing of it changes but the model's own parameters.

    Attributes:
        log_joint: The model with its arguments, as a density of the latents.
        param_names: The ``pyro.param`` names of the model.
        seed: Seed of all noise.
        notes: Lines for the report about the set-up.
        density: What evaluates the log joint, and why.
    """

    log_joint: LogJoint
    param_names: frozenset[str]
    seed: int
    notes: tuple[str, ...] = ()
    density: DensityEngine = EAGER

    @property
    def model(self) -> Callable[..., Any]:
        """The model, with discrete sites marked for enumeration."""
        return self.log_joint.model

    @property
    def latent(self) -> LatentSpace:
        """The latent sites as one vector."""
        return self.log_joint.latent

    def stream(self, *labels: int | str) -> torch.Generator:
        """Return the random stream of these labels, on the latents' device."""
        return stream(self.seed, *labels, device=self.latent.init_loc.device)

    @contextmanager
    def own_names(self) -> Iterator[None]:
        """Hide the guides built so far from Pyro's param store, so that one more can be built.

        The model's own parameters stay, and go on training.
        """
        store = pyro.get_param_store()
        with store.scope(only(store.get_state(), self.param_names)):
            yield

    def guide(self, flow: str | None) -> AutoFlow:
        """Build a guide, within :meth:`own_names`."""
        guide = AutoFlow(self.model, flow, outer="whitened")
        guide.setup(*self.log_joint.args, **self.log_joint.kwargs)
        return guide
