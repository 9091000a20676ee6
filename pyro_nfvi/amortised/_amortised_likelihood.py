"""``AmortisedLikelihood``: a density of the data given the latents, learnt from simulations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi.amortised._model_simulations import ModelSimulations
from pyro_nfvi.amortised._prior_model import PriorModel
from pyro_nfvi.amortised._summary_networks import Scaling
from pyro_nfvi.amortised._trained_density import References, TrainingRecord
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.infer._amortised_findings import LearntLikelihood
from pyro_nfvi.infer._fit import Fit, add_finding
from pyro_nfvi.infer._nfvi import NFVI
from pyro_nfvi.infer._plate_fit import PlateFit


class AmortisedLikelihood:
    r"""The likelihood of a simulator, :math:`q(x \mid \theta)`, learnt from simulations.

    Made by ``nfvi.amortise(model, method="likelihood")``. Calling it with data fits the posterior
    under the model's own prior by :class:`NFVI`, as of any model; ``fit.mcmc()`` draws from it by
    chains. Importance weights judge the fit to this likelihood, and not the likelihood itself.

    Args:
        simulations: The model as a simulator.
        density: The conditional density of scaled data, given scaled latents.
        of_data: Scales data.
        of_latents: Scales unconstrained latents.
        references: Simulations that data are compared with.
        record: How it was trained.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> import pyro_nfvi as nfvi
        >>> def model():
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        ...     noise = pyro.sample("noise", dist.Normal(0.0, 1.0))
        ...     pyro.deterministic("y", mu + noise)
        >>> likelihood = nfvi.amortise(
        ...     model, observed="y", sites="mu", method="likelihood", num_simulations=1000,
        ...     flow="affine", seed=0, progress=False,
        ... )
        >>> fit = likelihood(2.0, guide="affine", max_steps=100, progress=False)
        >>> round(fit.summary()["mu"].mean / 1.6)
        1
    """

    def __init__(
        self,
        simulations: ModelSimulations,
        density: FlowDensity,
        of_data: Scaling,
        of_latents: Scaling,
        references: References,
        record: TrainingRecord,
    ) -> None:
        self.simulations, self.density = simulations, density
        self.of_data, self.of_latents = of_data, of_latents
        self.references, self.record = references, record

    @property
    def latent(self) -> LatentSpace:
        """The latents that are inferred, as one vector."""
        return self.simulations.latent

    @property
    def report(self) -> str:
        """Account of the training in lines to read."""
        return "\n".join(self.record.lines())

    def __repr__(self) -> str:
        return (
            f"AmortisedLikelihood({', '.join(self.simulations.layout.shapes)} given "
            f"{', '.join(self.latent.sites)}; {self.record.num_simulations} simulations)"
        )

    def log_likelihood(self, data: Any) -> Callable[[Tensor], Tensor]:
        """Return the log likelihood of data: unconstrained latents ``(n, D)`` to ``(n,)``, nats."""
        _, x = self.simulations.read(data)
        scaled, ladj = self.of_data(x), self.of_data.ladj(x)

        def log_likelihood(z: Tensor) -> Tensor:
            found: Tensor = self.density.log_prob(scaled, self.of_latents(z)) + ladj
            return found

        return log_likelihood

    def model(self, data: Any) -> PriorModel:
        """Return the prior and the likelihood of data as a Pyro model without arguments."""
        simulator = self.simulations.simulator
        freed = {**simulator.kwargs, **dict.fromkeys(simulator.arguments.values())}
        likelihood = self.log_likelihood(data)
        return PriorModel(simulator.model, simulator.args, freed, self.latent, likelihood)

    def fit(self, data: Any, **options: Any) -> Fit | PlateFit:
        """Fit the posterior of a data set; calling the object is the same.

        Args:
            data: The data: of the one observed site, or a dict by site.
            options: Options of :class:`NFVI`.

        Cost:
            That of a fit, of a model that is two passes of a flow.

        Raises:
            ShapeError: Data of another shape than those that were simulated.
            DataError: NaN or infinite numbers.
        """
        _, x = self.simulations.read(data)
        unusual = self.references.judge(
            x, self.of_data(x), None, self.simulations.layout, weighed=False
        )
        learnt = LearntLikelihood(self.record.num_simulations, self.record.held_out)
        with torch.enable_grad():
            options = {"seed": self.record.seed, **options}
            fit = NFVI(self.model(data), **options).run()
        if not isinstance(fit, Fit):
            return fit
        return add_finding(add_finding(fit, unusual), learnt)

    __call__ = fit
