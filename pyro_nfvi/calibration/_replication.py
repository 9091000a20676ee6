"""Data replicated at draws of a posterior, and the model of the data with such a replicate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_nfvi._pyro_model.forward_model import DrawAnew, Hold, is_factor
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.calibration._simulation import (
    SetObserved,
    Simulation,
    is_data,
    is_function,
    names_of,
    run_model,
    sites_of,
)
from pyro_nfvi.errors import ModelError, OptionError

#: Ending of the name of a site's replicate.
REPLICATE = "_replicate"


class _Values(Messenger):
    """Records the values of some sites in a run, from wherever they came."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names
        self.values: dict[str, Any] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            self.values[msg["name"]] = msg["value"]


class _Replicate(Messenger):
    """Makes a second run of a model the likelihood of a replicate, given the latents of the first.

    Replicated sites and discrete ones (which each data set has its own of) get a name of their own;
    no handler outside of this one sees the others.
    """

    def __init__(self, latents: Mapping[str, Any], data: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.latents, self.data = latents, data

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.data:
            msg["value"], msg["is_observed"], msg["done"] = self.data[name], True, False
            msg["name"] = name + REPLICATE
        elif name in self.latents:
            msg["value"], msg["done"], msg["stop"] = self.latents[name], True, True
        elif msg["is_observed"] or site_is_subsample(msg) or is_function(msg):
            msg["stop"] = True
        else:
            msg["name"] = name + REPLICATE


class AugmentedModel:
    r"""A model of its own data and of a replicate of them, which share the latents.

    .. math:: p(\theta)\, p(y_\text{obs} \mid \theta)\, p(y' \mid \theta)

    The model is run twice: as it is, and once more at the same latents, where its data are the
    replicate's. A class and not a closure, so that it can be pickled whenever the model can.

    Args:
        model: The model.
        data: Values of the replicate by observed site.
        latents: Names of the latents that both share.
    """

    def __init__(
        self, model: Callable[..., Any], data: Mapping[str, Tensor], latents: Collection[str]
    ) -> None:
        self.model, self.data, self.latents = model, dict(data), tuple(latents)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Values(self.latents) as seen:
            result = self.model(*args, **kwargs)
        with _Replicate(seen.values, self.data):
            self.model(*args, **kwargs)
        return result


class Replicator:
    """Draws data from a model at values of its latents.

    Args:
        model: The Pyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        observed: Names of the sites that are replicated; None for all that are observed.
        latents: Values of the continuous latents, one draw.

    Raises:
        ModelError: Data cannot be replicated; the message says why.
        OptionError: ``observed`` names no site, or is of the wrong kind.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observed: str | Sequence[str] | None,
        latents: TensorDict,
    ) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        self.latents = tuple(latents)
        trace = run_model(Hold(latents)(model), args, self.kwargs, 0)
        sites = dict(sites_of(trace))
        data = [name for name, site in sites.items() if is_data(site) and not is_factor(site)]
        names = names_of(observed)
        unknown = [name for name in names or () if name not in data]
        if unknown:
            raise OptionError(
                f"observed names {unknown}; the model's observed sites are {data or 'none'}."
            )
        self.names = tuple(data) if names is None else names
        self._check(trace, sites)
        drawn = self._trace(latents, 0)
        self._check_support(drawn)

    def draw(self, latents: TensorDict, seed: int) -> Simulation:
        """Draw data at values of the latents, of which one draw is given."""
        sites = sites_of(self._trace(latents, seed))
        data = {name: site["value"] for name, site in sites if name in self.names}
        return Simulation(dict(latents), data)

    def augment(self, data: Mapping[str, Tensor]) -> AugmentedModel:
        """Return the model of the data of the fit and of these beside them."""
        return AugmentedModel(self.model, data, self.latents)

    def _trace(self, latents: TensorDict, seed: int) -> Trace:
        model = DrawAnew(self.names)(Hold(latents)(self.model))
        return run_model(model, self.args, self.kwargs, seed)

    def _check(self, trace: Trace, sites: Mapping[str, Mapping[str, Any]]) -> None:
        if not self.names:
            factors = [name for name, site in sites.items() if is_factor(site)]
            why = (
                f"its data enter by pyro.factor ({', '.join(factors[:3])}), which has no sampler"
                if factors
                else "it observes nothing"
            )
            raise ModelError(
                f"There is no data to replicate in the model: {why}. Posterior simulation-based "
                "calibration draws data at an observed site: write the likelihood as "
                "pyro.sample(name, distribution, obs=data)."
            )
        params = [name for name, site in trace.nodes.items() if site["type"] == "param"]
        if params:
            raise ModelError(
                f"The model trains parameters ({', '.join(params[:5])}) beside its posterior, and "
                "they would follow each replicate. Give them a prior, or fix them as plain tensors."
            )
        for name, site in sites.items():
            frames = site["cond_indep_stack"]
            part = [f.name for f in frames if f.full_size is not None and f.size != f.full_size]
            if part:
                raise ModelError(
                    f"The plate {part[0]!r} subsamples; replicated data must be whole. Fit with "
                    "subsample_size=None."
                )
            scaled = isinstance(site["scale"], Tensor) or site["scale"] != 1
            if name in self.names and scaled:
                raise ModelError(
                    f"The site {name!r} is scaled by {site['scale']}, so its data are not drawn "
                    "from the likelihood that the fit has. Take the poutine.scale away, or name "
                    "other sites in observed=."
                )

    def _check_support(self, trace: Trace) -> None:
        """Refuse a replicate that the model itself finds impossible."""
        data = {name: trace.nodes[name]["value"] for name in self.names}
        model = Hold({n: s["value"] for n, s in sites_of(trace) if n not in self.names})(self.model)
        again = run_model(SetObserved(data)(model), self.args, self.kwargs, 0)
        again.compute_log_prob(lambda name, _: name in self.names)
        bad = [n for n in self.names if not bool(torch.isfinite(again.nodes[n]["log_prob_sum"]))]
        if bad:
            raise ModelError(
                f"Data drawn at the site {bad[0]!r} have no finite density under the model itself: "
                "the sampler of its distribution is not that of its density. Mend it, or name "
                "other sites in observed=."
            )
