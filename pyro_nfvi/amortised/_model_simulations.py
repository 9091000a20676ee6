"""Many simulations of a model: unconstrained latents, and the data that go with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_nfvi._error_text import describe_error
from pyro_nfvi._option_names import meant
from pyro_nfvi._pyro_model.forward_model import ForwardModel, Way
from pyro_nfvi._pyro_model.latent_space import LatentSpace, is_point_mass
from pyro_nfvi._pyro_model.model_run import is_deterministic
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._user_warning import warn
from pyro_nfvi.amortised._observed_layout import ObservedLayout
from pyro_nfvi.amortised._recipe import SIMULATIONS
from pyro_nfvi.calibration._simulation import ConditionedModel, Simulator
from pyro_nfvi.errors import DataWarning, ModelError, NFVIError, OptionError
from pyro_nfvi.infer._scopes import own_random_state


@dataclass(frozen=True)
class Simulations:
    """Draws of latents and data, those with numbers that are not finite left out.

    Attributes:
        z: Unconstrained latents ``(n, D)``.
        x: Data as vectors ``(n, X)``.
        left_out: Simulations with NaN or infinite numbers.
    """

    z: Tensor
    x: Tensor
    left_out: int

    def joined(self, other: Simulations) -> Simulations:
        """Return these and others."""
        z, x = torch.cat([self.z, other.z]), torch.cat([self.x, other.x])
        return Simulations(z, x, self.left_out + other.left_out)

    def at(self, index: Tensor) -> Simulations:
        """Return some of them."""
        return Simulations(self.z[index], self.x[index], self.left_out)


class ModelSimulations:
    """A model as a simulator of latents and data.

    Args:
        model: The Pyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        observed: Sites that are data; see :func:`pyro_nfvi.amortise`.
        sites: Latent sites to infer; the others are drawn, and so summed out.

    Raises:
        ModelError: Data cannot be simulated from the model.
        OptionError: A name that the model does not have.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        observed: str | Sequence[str] | Mapping[str, str] | None,
        sites: str | Sequence[str] | None,
    ) -> None:
        self.simulator = Simulator(model, args, kwargs, observed)
        freed = {**kwargs, **dict.fromkeys(self.simulator.arguments.values())}
        self.forward = ForwardModel(model, args, freed, {})
        with self.scope(0):
            trace = self._attempt(lambda: self.forward.start({}))
        self.layout = ObservedLayout.of(trace, self.simulator.names)
        #: All continuous latents of the model.
        self.latents = self.simulator.latents
        chosen = _chosen(trace, self.latents, sites)
        #: Those that are inferred, as one vector.
        self.latent = _space(trace, chosen)
        #: Latents that are drawn in each simulation and not inferred.
        self.summed_out = tuple(
            name
            for name, site in trace.nodes.items()
            if site["type"] == "sample"
            and name not in (*chosen, *self.simulator.names)
            and not (site["is_observed"] or is_point_mass(site) or name in self._plates(trace))
        )
        #: Observed sites whose value is a function of others, so that they have no density.
        self.functions = tuple(
            name
            for name in self.layout.shapes
            if is_deterministic(trace.nodes[name]) or _is_delta(trace.nodes[name])
        )

    @staticmethod
    def _plates(trace: Trace) -> set[str]:
        return {f.name for site in trace.nodes.values() for f in site.get("cond_indep_stack", ())}

    @property
    def how(self) -> Way:
        """The way in which simulations are run: ``"plate"``, ``"vmap"`` or ``"loop"``."""
        return self.forward.how

    def condition(self, data: Mapping[str, Tensor]) -> ConditionedModel:
        """Return the model with this data in place of its own."""
        return self.simulator.condition(data)

    def read(self, data: Any) -> tuple[TensorDict, Tensor]:
        """Return a user's data by site, and as a vector ``(X,)``."""
        values = self.layout.read(data, self.latent.init_loc)
        rows = {name: value.unsqueeze(0) for name, value in values.items()}
        return values, self.layout.flatten(rows, self.latent.init_loc)[0]

    def run(self, count: int, seed: int, *, z: Tensor | None = None) -> Simulations:
        """Simulate, from the prior or at unconstrained latents ``z (count, D)``.

        Raises:
            ModelError: The model raises, or more simulations than ``SIMULATIONS.bad_share`` have
                numbers that are not finite.
        """
        held = {} if z is None else self.latent.constrain(z)[0]
        rows = min(SIMULATIONS.run_rows, SIMULATIONS.run_size // max(1, self.forward.size))
        wanted = (*self.latent.sites, *self.layout.shapes)
        like = self.latent.init_loc
        with self.scope(seed):
            parts = self._attempt(lambda: list(self.forward.run(count, held, wanted, rows)))
        values = {name: torch.cat([part[name] for part in parts]) for name in wanted}
        x = self.layout.flatten(values, like)
        fine = x.isfinite().all(1)
        if z is None:
            for name in self.latent.sites:
                fine &= values[name].flatten(1).isfinite().all(1) if values[name].dim() > 1 else (
                    values[name].isfinite()
                )  # fmt: skip
            self._tell(int((~fine).sum()), count)
            z = self.latent.pack({name: values[name][fine] for name in self.latent.sites})
        else:
            self._tell(int((~fine).sum()), count)
            z = z[fine]
        return Simulations(z.detach(), x[fine].detach(), int((~fine).sum()))

    def _tell(self, bad: int, count: int) -> None:
        """Warn of simulations that are not finite; refuse where they are many."""
        if not bad:
            return
        what = f"{bad} of {count} simulations have NaN or infinite numbers"
        if bad > SIMULATIONS.bad_share * count:
            raise ModelError(
                f"{what}, more than {100 * SIMULATIONS.bad_share:.0f} %. Make the prior tighter "
                "or the simulator safe where it overflows; if a simulation may truly fail, let "
                "the model say so by a finite number."
            )
        warn(
            f"{what} and are left out: the posterior is that given data that are finite, as "
            "yours need to be.",
            DataWarning,
        )

    def scope(self, seed: int) -> ExitStack:
        """Run the model under a random state of its own, and leave parameters as they are."""
        stack, store = ExitStack(), pyro.get_param_store()
        stack.enter_context(own_random_state(seed, "simulate"))
        stack.enter_context(store.scope(store.get_state()))
        return stack

    @staticmethod
    def _attempt(run: Callable[[], Any]) -> Any:
        try:
            return run()
        except NFVIError:
            raise
        except Exception as error:  # a user's model may fail in any way
            raise ModelError(
                f"The model could not be simulated: {describe_error(error)}. It is called with "
                "the args and kwargs given, and draws the observed sites by itself."
            ) from error


def _chosen(
    trace: Trace, latents: tuple[str, ...], sites: str | Sequence[str] | None
) -> tuple[str, ...]:
    """Check the sites that are to be inferred."""
    if sites is None:
        return latents
    names = (sites,) if isinstance(sites, str) else tuple(sites)
    for name in names:
        if name in latents:
            continue
        drawn = name in trace.nodes and trace.nodes[name]["type"] == "sample"
        kind = (
            "is discrete or a function of others, which a flow does not describe; leave it out, "
            "and it is summed out by being drawn."
            if drawn
            else f"is not in the model.{meant(name, latents)}"
        )
        raise OptionError(
            f"sites names {name!r}, which {kind} Those that can be inferred are "
            f"{', '.join(map(repr, latents))}."
        )
    if not names:
        raise OptionError("sites names nothing to infer.")
    return tuple(name for name in latents if name in names)


def _space(trace: Trace, names: tuple[str, ...]) -> LatentSpace:
    """Return the latent space of some sites of a run."""
    kept = trace.copy()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and name not in names:
            kept.remove_node(name)
    return LatentSpace.from_trace(kept)


def _is_delta(site: Mapping[str, Any]) -> bool:
    return is_point_mass({**site, "is_observed": False})
