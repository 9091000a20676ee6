"""``AmortisedFit``: the posterior of one data set, from a posterior that was trained for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._option_names import knows_options
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._random import fresh_seed, stream
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.amortised._recipe import JUDGEMENT
from pyro_nfvi.diagnostics._finding import Finding, Level
from pyro_nfvi.diagnostics._importance import log_evidence, resample, weighted_quantile
from pyro_nfvi.diagnostics._khat import TailReading
from pyro_nfvi.diagnostics._verdict import BAD, GOOD, Cause, Verdict, judge_weights
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import ModelError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._amortised_findings import RanksOnAverage, UnusualData
from pyro_nfvi.infer._findings import find
from pyro_nfvi.infer._summary import Summary
from pyro_nfvi.infer._weighted_draws import WeighedDraws, push_chunks


@dataclass(frozen=True, eq=False, repr=False)
class AmortisedFit:
    """The posterior of one data set; made by calling an amortised posterior.

    All densities are in nats.

    Attributes:
        density: The density of the unconstrained latents.
        latent: The latent sites as one vector.
        draws: Draws with both densities, from which ``khat`` and the other figures are computed;
            without the model's own where it has none.
        findings: Findings about this data set, for the verdict.
        model: The model with the data put in.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        data: The data, by site.
        history: Lines on how the posterior was trained.
        make_guide: Builds the guide of this posterior; None where the model has no density.
    """

    density: FlowDensity
    latent: LatentSpace
    draws: WeighedDraws
    findings: tuple[Finding, ...]
    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    data: TensorDict
    history: tuple[str, ...] = ()
    make_guide: Callable[[], AutoFlow] | None = field(default=None)

    # ------------------------------------------------------------------------- what it says

    @property
    def weighed(self) -> bool:
        """True if the model scores the draws, so that importance weights judge them."""
        return self.draws.exact

    @property
    def khat(self) -> float:
        """Shape of the tail of the importance weights; NaN where there are none."""
        return self.draws.quality()[0]

    @property
    def tail(self) -> TailReading:
        """Reading of k-hat: a :class:`~pyro_nfvi.diagnostics._khat.TailReading`."""
        return self.draws.tail()

    @property
    def ess(self) -> float:
        """Effective number of the reweighted draws; NaN where there are no weights."""
        return self.draws.quality()[1]

    @property
    def elbo(self) -> float:
        """Evidence lower bound, in nats; NaN where the model has no density."""
        return self.draws.elbo()[0]

    @cached_property
    def verdict(self) -> Verdict:
        """Trust in this posterior: a word, with ``.reasons`` and ``.next_step``.

        Of a model with a density as that of a fit, from importance weights: ``"good"``,
        ``"usable with reweighting"`` or ``"do not trust"``. Else ``"good"`` where the data lie
        among the simulations and posteriors of at least 1000 simulated data sets are calibrated,
        at least nearly: right on average, which no single posterior needs to be. ``"not known"``
        with fewer.
        """
        sentences: dict[Level, list[str]] = {level: [] for level in Level}
        for found in self.findings:
            if sentence := found.sentence():
                sentences[found.level].append(sentence)
        faults, remarks = sentences[Level.FAULT], sentences[Level.REMARK]
        if self.weighed:
            word = judge_weights(self.draws.z, self.draws.log_w, name=self.latent.at, faults=faults)
            if word == GOOD:
                return Verdict(word, [*word.reasons, *remarks], word.next_step, word.cause)
            step = "posterior.refine(data) trains it further on these data."
            return Verdict(word, [*word.reasons, *remarks], f"{word.next_step} {step}", word.cause)
        if faults:
            unusual = find(self.findings, UnusualData)
            outside = unusual is not None and unusual.unusual
            step = _NEXT_OUTSIDE if outside else _NEXT_RANKS
            return Verdict(BAD, [*faults, *remarks], step, Cause.FAULT)
        ranks = find(self.findings, RanksOnAverage)
        if ranks is None or ranks.data_sets < JUDGEMENT.data_sets:
            few = f"{0 if ranks is None else ranks.data_sets} data sets are too few to judge by"
            return Verdict("not known", [few, *remarks], _NEXT_FEW)
        return Verdict(GOOD, remarks, "Use the draws as they are; no reweighting is possible.")

    @property
    def report(self) -> str:
        """Account of the posterior in lines to read."""
        sites = ", ".join(self.latent.sites)
        lines = [f"{self.latent.dim} latents ({sites}); {len(self.draws.z)} draws", *self.history]
        if self.weighed:
            value, error = self.log_evidence()
            lines.append(
                f"{self.tail}, ESS {self.ess:.0f} of {len(self.draws.z)} draws, ELBO "
                f"{self.elbo:.3f}, log evidence {value:.3f} ± {error:.3f} nats"
            )
        word = self.verdict
        lines.append(f"verdict: {word} ({'; '.join(word.reasons)}). {word.next_step}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        shown = f", {self.tail}" if self.weighed else ""
        return f"AmortisedFit({self.latent.dim} latents{shown}, {str(self.verdict)!r})"

    # ------------------------------------------------------------------------ what it gives

    @knows_options
    def sample(self, num_samples: int = 1000, *, seed: int | None = None) -> TensorDict:
        """Draw the latent sites: each site's draws ``(num_samples, *shape)``.

        Args:
            num_samples: Number of draws.
            seed: Makes the draws repeatable; None draws one.
        """
        num_samples, seed = whole("num_samples", num_samples), seed_number(seed)
        noise = stream(fresh_seed() if seed is None else seed, "sample", device=self.draws.z.device)
        z, _ = push_chunks(
            self.density, num_samples, lambda n: self.density.sample_base(n, generator=noise)
        )
        return self.latent.constrain(z)[0]

    @knows_options
    def resample(self, num_samples: int = 1000, *, seed: int | None = None) -> TensorDict:
        """Draw from the draws by their smoothed importance weights, as :meth:`Fit.resample`.

        Raises:
            ModelError: There are no weights.
        """
        num_samples, seed = whole("num_samples", num_samples), seed_number(seed)
        noise = stream(fresh_seed() if seed is None else seed, "resample")
        index = resample(self._log_weights(), num_samples, generator=noise)
        return self.latent.constrain(self.draws.z[index])[0]

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Score constrained values, ``(*b, *site shape)`` each: ``(*b,)`` in nats."""
        with torch.no_grad():
            z, ladj = self.latent.unconstrain(values)
            return self.density.log_prob(z) + ladj

    def log_evidence(self) -> tuple[float, float]:
        """Estimate the log evidence: ``(value, standard error)``, in nats.

        Raises:
            ModelError: There are no weights.
        """
        self._log_weights()
        return log_evidence(self.draws.log_w)

    def quantiles(self, levels: Sequence[float] = (0.05, 0.5, 0.95)) -> TensorDict:
        """Return quantiles of each site, ``(len(levels), *shape)``, of the draws as they are."""
        values = self.latent.constrain(self.draws.z)[0]
        even = torch.zeros(len(self.draws.z), dtype=torch.float64)
        return {
            name: torch.stack(list(weighted_quantile(value.double(), even, tuple(levels))))
            for name, value in values.items()
        }

    def summary(self, *, reweighted: bool = False) -> Summary:
        """Return mean, sd and quantiles of every number.

        Args:
            reweighted: Use the smoothed importance weights of the draws.

        Raises:
            ModelError: ``reweighted`` where there are no weights.
        """
        weights = torch.zeros(len(self.draws.z), dtype=torch.float64)
        if reweighted:
            weights = self._log_weights()
        note = f"{len(weights)} draws{', reweighted' if reweighted else ''}; {self.verdict}"
        return Summary.of(self.latent.constrain(self.draws.z)[0], weights, note)

    @cached_property
    def guide(self) -> AutoFlow | None:
        """The posterior as a guide of Pyro's; None where the model has no density."""
        return None if self.make_guide is None else self.make_guide()

    def to_arviz(self, **options: Any) -> Any:
        """Convert for ArviZ; see :func:`pyro_nfvi.to_arviz` for the options."""
        from pyro_nfvi.arviz._to_arviz import to_arviz

        return to_arviz(self, **options)

    def _log_weights(self) -> Tensor:
        smoothed = self.draws.smoothed()
        if smoothed is None:
            raise ModelError(
                "There are no importance weights: the model has no density, or gives density 0 "
                "to every draw. fit.verdict says which."
            )
        return smoothed.log_weights


_NEXT_OUTSIDE = (
    "Check the data and the model: its prior and noise make no such data. A posterior extrapolates "
    "there."
)
_NEXT_FEW = "posterior(data, calibration=posterior.calibration()) judges by 10,000."
_NEXT_RANKS = "Train on more simulations, or with a larger flow; posterior.calibration() says more."
