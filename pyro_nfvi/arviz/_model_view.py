"""The model at given draws: log joint, deterministic sites, log likelihood."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_nfvi._pyro_model.enumeration import unmarked
from pyro_nfvi._pyro_model.forward_model import ForwardModel, is_factor
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.model_run import Evaluation, SetSubsample, is_deterministic, is_observed
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.arviz._recipe import RECIPE
from pyro_nfvi.errors import ModelWarning, OptionError


class ModelView:
    """A model with its arguments, looked at through draws of its latents.

    One set of subsample indices is drawn for all that is asked of it.

    Args:
        model: The Pyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        first: One draw of each latent site, constrained.
        subsample: Indices of the plates that subsample; new ones are drawn without.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        first: TensorDict,
        subsample: Mapping[str, Tensor] | None = None,
    ) -> None:
        # Held at the draw, so that a prior need not be able to sample.
        start = SetSubsample(first)(model)
        devices = [value.device.index for value in first.values() if value.is_cuda]
        with (
            torch.random.fork_rng(devices=sorted(set(devices))),
            torch.no_grad(),
            poutine.block(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", ModelWarning)
            prototype = poutine.trace(start).get_trace(*args, **kwargs)
            if unmarked(prototype):  # as NUTS and NFVI do by themselves
                model = config_enumerate(model)
                start = SetSubsample(first)(model)
                prototype = poutine.trace(start).get_trace(*args, **kwargs)
            self.latent = LatentSpace.from_trace(prototype)
            self.log_joint = LogJoint(model, args, kwargs, self.latent)
        missing = [name for name in self.latent.sites if name not in first]
        if missing:
            raise OptionError(f"there are no draws of the model's latent site {missing[0]!r}")
        first = {name: first[name] for name in self.latent.sites}
        self.subsample = dict(subsample or self.log_joint.draw_subsample())
        self.args, self.kwargs = args, dict(kwargs)
        with torch.no_grad(), poutine.block(), SetSubsample(self.subsample):
            #: A run at the first draw: shapes, plates, observed values.
            self.trace: Trace = poutine.trace(poutine.condition(model, data=first)).get_trace(
                *args, **kwargs
            )
        self.simulator = ForwardModel(model, args, kwargs, self.subsample)

    @property
    def rows(self) -> int:
        """Draws that are evaluated together."""
        return max(1, RECIPE.numbers_in_chunk // max(1, self.log_joint.size))

    @property
    def mini_batch(self) -> str:
        """Counts of rows, and of how many, where plates subsample; empty where none does."""
        plates = self.log_joint.subsampled.items()
        return ", ".join(
            f"{count} of the {size} rows of {name!r}" for name, (size, count) in plates
        )

    def observed(self) -> dict[str, Tensor]:
        """Values of the observed sites, factors left out."""
        return {
            name: site["value"]
            for name, site in self.trace.nodes.items()
            if is_observed(site, self.latent.sites)
            and not is_factor(site)
            and torch.is_tensor(site["value"])
        }

    def factors(self) -> dict[str, bool]:
        """Names of the ``pyro.factor`` sites, and whether they lie in a plate."""
        nodes = self.trace.nodes.items()
        return {
            name: any(frame.vectorized for frame in site["cond_indep_stack"])
            for name, site in nodes
            if site["type"] == "sample" and is_factor(site) and not site_is_subsample(site)
        }

    def own_scale(self, name: str) -> float | Tensor:
        """Scale of a site by ``poutine.scale``, without that of plates that subsample."""
        site = self.trace.nodes[name]
        scale: float | Tensor = site["scale"]
        for frame in site["cond_indep_stack"]:
            size = frame.full_size
            if size is not None and frame.size:
                scale = scale / (int(size) / int(frame.size))
        return scale

    def deterministic(self) -> dict[str, Tensor]:
        """Values of the deterministic sites at the first draw."""
        nodes = self.trace.nodes.items()
        return {
            n: s["value"] for n, s in nodes if is_deterministic(s) and torch.is_tensor(s["value"])
        }

    def discrete(self) -> dict[str, Tensor]:
        """Values of the discrete sites that are summed out, at one draw from their prior."""
        return {name: self.trace.nodes[name]["value"] for name in sorted(self.log_joint.enumerated)}

    def evaluate(
        self,
        values: TensorDict,
        *,
        deterministic: bool,
        log_likelihood: Collection[str] = (),
        log_prior: bool = False,
        discrete: bool = False,
    ) -> Iterator[Evaluation]:
        """Evaluate draws ``(S, *shape)`` chunk by chunk; ``log_p`` in the sites' own measure.

        Raises:
            ModelError: The log likelihood does not split into observations.
        """
        rows = self.rows
        count = len(next(iter(values.values())))
        for start in range(0, count, rows):
            z = self.latent.pack({n: values[n][start : start + rows] for n in self.latent.sites})
            with torch.no_grad():
                _, ladj = self.latent.constrain(z)
                if deterministic or log_likelihood or log_prior or discrete:
                    found = self.log_joint.evaluate(
                        z,
                        self.subsample,
                        log_likelihood=log_likelihood,
                        log_prior=log_prior,
                        discrete=discrete,
                    )
                else:
                    found = Evaluation(self.log_joint(z, self.subsample))
            yield replace(found, log_p=found.log_p - ladj)
