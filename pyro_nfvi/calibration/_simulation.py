"""Parameters and data drawn from a model, and the model with such data put in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_nfvi._error_text import describe_error
from pyro_nfvi._option_names import meant
from pyro_nfvi._pyro_model.forward_model import DrawAnew, is_factor
from pyro_nfvi._pyro_model.latent_space import is_discrete, is_point_mass
from pyro_nfvi._pyro_model.model_run import is_deterministic
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import ModelError, NFVIError, OptionError
from pyro_nfvi.infer._scopes import own_random_state

Site = Mapping[str, Any]


@dataclass(frozen=True)
class Simulation:
    """One draw of parameters and data.

    Attributes:
        truth: Latent and deterministic sites.
        data: Observed sites.
    """

    truth: TensorDict
    data: TensorDict


class SetObserved(Messenger):
    """Sets the values of observed sites, also where the model has others there."""

    def __init__(self, data: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.data = data

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.data:
            msg["value"], msg["is_observed"], msg["done"] = self.data[msg["name"]], True, False


class ConditionedModel:
    """A model conditioned on data: at its observed sites, or as keyword arguments.

    A class and not a closure, so that it can be pickled whenever the model can.

    Args:
        model: The model.
        data: Values by observed site.
        arguments: Names of keyword arguments by observed site; these get the value too.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        data: Mapping[str, Tensor],
        arguments: Mapping[str, str],
    ) -> None:
        self.model, self.data, self.arguments = model, dict(data), dict(arguments)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = {argument: self.data[site] for site, argument in self.arguments.items()}
        with SetObserved(self.data):
            return self.model(*args, **{**kwargs, **given})


class Simulator:
    """Draws from a model with its observed sites freed.

    Args:
        model: The Pyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        observed: Sites that are data; see :func:`pyro_nfvi.vsbc`.

    Raises:
        ModelError: Data cannot be simulated from the model; the message says why.
        OptionError: ``observed`` names no site, or is of the wrong kind.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observed: str | Sequence[str] | Mapping[str, str] | None,
    ) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        self.arguments = dict(observed) if isinstance(observed, Mapping) else {}
        names = names_of(observed)
        if names is None:
            fixed = self._trace((), seed=0)
            names = tuple(
                name for name, site in sites_of(fixed) if is_data(site) and not is_factor(site)
            )
            if not names:
                raise ModelError(
                    "The model observes nothing in this call, so there is no data to simulate. "
                    "Name the data with observed=, as in observed=['y']: a model called with "
                    "y=None draws it."
                )
        self.names = names
        trace = self._trace(names, seed=0)
        self.latents = self._check(trace)
        self._check_other_uses(trace)

    # ------------------------------------------------------------------------------- drawing

    def draw(self, seed: int) -> Simulation:
        """Draw parameters from the prior, and data given them."""
        trace = self._trace(self.names, seed=seed)
        truth: TensorDict = {}
        data: TensorDict = {}
        for name, site in sites_of(trace):
            if name in self.names:
                data[name] = site["value"]
            elif name in self.latents or is_function(site):
                truth[name] = site["value"]
        return Simulation(truth, data)

    def condition(self, data: Mapping[str, Tensor]) -> ConditionedModel:
        """Return the model with this data in place of its own."""
        return ConditionedModel(self.model, data, self.arguments)

    def _trace(self, names: tuple[str, ...], *, seed: int) -> Trace:
        kwargs = {**self.kwargs, **dict.fromkeys(self.arguments.values())}
        return run_model(DrawAnew(names)(self.model), self.args, kwargs, seed)

    # -------------------------------------------------------------------------------- checks

    def _check(self, trace: Trace) -> tuple[str, ...]:
        """Refuse what makes draws no draws of the posterior's own model; name the latents."""
        sites = dict(sites_of(trace))
        unknown = [name for name in self.names if name not in sites]
        if unknown:
            raise OptionError(
                f"observed names {unknown}, which the model does not have."
                f"{meant(unknown[0], list(sites))} Its sites are {list(sites)}."
            )
        params = [name for name, site in trace.nodes.items() if site["type"] == "param"]
        if params:
            raise ModelError(
                f"The model trains parameters ({', '.join(params[:5])}) beside its posterior, and "
                "they would follow each data set. Calibration is of a posterior under its prior: "
                "give them one, or fix them as plain tensors."
            )
        latents = []
        for name, site in sites.items():
            frames = site["cond_indep_stack"]
            part = [f.name for f in frames if f.full_size is not None and f.size != f.full_size]
            if part:
                raise ModelError(
                    f"The plate {part[0]!r} subsamples; simulated data must be whole. Run it with "
                    "subsample_size=None."
                )
            if isinstance(site["scale"], Tensor) or site["scale"] != 1:
                raise ModelError(
                    f"The site {name!r} is scaled by {site['scale']}, so the fit's posterior is "
                    "not that of the model that makes the data. Take the poutine.scale away."
                )
            if name in self.names and not is_factor(site):
                continue
            if is_data(site):
                kind = "is a pyro.factor" if is_factor(site) else "still has its obs fixed"
                raise ModelError(
                    f"The site {name!r} {kind}: what it says of the parameters is in every fit, "
                    "but not in the prior that they are drawn from. "
                    + (
                        "Write it as a prior or as an observed site with a sampler."
                        if is_factor(site)
                        else f"Name it in observed= as well: observed={[*self.names, name]}; or "
                        "give it no obs where it depends on no latent."
                    )
                )
            if not is_function(site):
                latents.append(name)
        continuous = tuple(name for name in latents if not is_discrete_site(sites[name]))
        if not continuous:
            raise ModelError("The model has no continuous latent site to calibrate.")
        return continuous

    def _check_other_uses(self, trace: Trace) -> None:
        """Refuse a model that uses the data's values elsewhere than at the observed sites.

        Its data are put in at the sites alone, and a lag or a normalisation would stay that of the
        first data. Seen by running the model once more with other values in the arguments that are
        data, and the same draws.
        """
        if self.arguments:
            return
        fixed = run_model(self.model, self.args, self.kwargs, 0)
        addresses = {
            _storage_address(site["value"]): trace.nodes[name]["value"]
            for name, site in fixed.nodes.items()
            if name in self.names and site["type"] == "sample" and site["is_observed"]
        }

        def other_values(value: Any) -> Any:
            if (
                not isinstance(value, Tensor)
                or _storage_address(value) not in addresses
                or value.numel() < 2
            ):
                return value
            drawn = addresses[_storage_address(value)]
            if drawn.shape == value.shape:
                return drawn.to(value.dtype)
            # Many sites observe parts of it: its own first half twice, to stay in its support.
            return value.flatten()[torch.arange(value.numel()) // 2].reshape(value.shape)

        args = tuple(other_values(value) for value in self.args)
        kwargs = {name: other_values(value) for name, value in self.kwargs.items()}
        try:
            other = run_model(DrawAnew(self.names)(self.model), args, kwargs, 0)
        except ModelError:
            return  # data of mixed kinds, which cannot be exchanged like this
        for name, site in sites_of(trace):
            again = other.nodes.get(name)
            if again is None or not _equal(site["value"], again["value"]):
                raise ModelError(
                    f"The site {name!r} depends on the values of the data, apart from being "
                    "observed: simulated data put in at the sites would not reach it. Give the "
                    "model its data as a keyword that may be None (it then draws them, and uses "
                    "what it drew), and name the keyword: observed={'y': 'y'}."
                )


def names_of(observed: Any) -> tuple[str, ...] | None:
    """Return the names of the sites that are data; None where all observed ones are.

    Raises:
        OptionError: ``observed`` is of the wrong kind.
    """
    if observed is None:
        return None
    names = (observed,) if isinstance(observed, str) else tuple(observed)
    texts = [*names, *(observed.values() if isinstance(observed, Mapping) else ())]
    if not names or not all(isinstance(text, str) for text in texts):
        raise OptionError(
            "observed is a site's name, several, or a dict {site: keyword argument}; got "
            f"{observed!r}."
        )
    return names


def run_model(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int
) -> Trace:
    """Run a model under a seed, in a parameter store of its own, and return its trace.

    Raises:
        ModelError: The model cannot be run, or a prior cannot be drawn from.
    """
    store = pyro.get_param_store()
    try:
        with (
            own_random_state(seed, "simulate"),
            store.scope(store.get_state()),
            torch.no_grad(),
        ):
            with poutine.block():
                return poutine.trace(model).get_trace(*args, **kwargs)
    except NFVIError:
        raise
    except NotImplementedError as error:
        raise ModelError(
            "A prior of the model cannot be drawn from; it is improper, or has no sampler "
            f"({describe_error(error)}). Simulations need proper priors: give the site one."
        ) from error
    except Exception as error:
        raise ModelError(
            f"The model could not be simulated: {describe_error(error)}. It is called "
            "with the args and kwargs given, and draws the observed sites by itself; with "
            "observed={site: argument} the argument is None."
        ) from error


def sites_of(trace: Trace) -> list[tuple[str, Site]]:
    """Return the sample sites of a trace, those of subsampling left out."""
    return [
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    ]


def is_data(site: Site) -> bool:
    """Tell whether a site is observed, deterministic ones left out."""
    return bool(site["is_observed"]) and not is_deterministic(site)


def is_function(site: Mapping[str, Any]) -> bool:
    """Tell whether a site of a run from the prior is a function of others."""
    return bool(site["infer"].get("_deterministic")) or is_point_mass(site)


def is_discrete_site(site: Site) -> bool:
    """Tell whether a site has a discrete support."""
    if getattr(site["fn"], "has_enumerate_support", False):
        return True
    return is_discrete(site["fn"])


def _storage_address(value: Any) -> int | None:
    """Return the address of a tensor's storage: the same for a tensor and its views."""
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else None


def _equal(one: Any, two: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return bool(one is two or one == two)
    return one.shape == two.shape and bool(torch.allclose(one, two, equal_nan=True))
