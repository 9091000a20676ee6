"""Training of an amortised posterior or likelihood, round by round."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pyro_nfvi._random import fold_in
from pyro_nfvi.amortised._amortised_likelihood import AmortisedLikelihood
from pyro_nfvi.amortised._amortised_posterior import AmortisedPosterior
from pyro_nfvi.amortised._model_simulations import ModelSimulations, Simulations
from pyro_nfvi.amortised._rank_calibration import rank
from pyro_nfvi.amortised._recipe import JUDGEMENT
from pyro_nfvi.amortised._trained_density import (
    References,
    TrainingRecord,
    at_data,
    likelihood_density,
    named_flow,
    posterior_density,
    split,
    train,
)
from pyro_nfvi.amortised._truncated_prior import TruncatedPrior
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.distributions._maximum_likelihood import DensityFit
from pyro_nfvi.errors import ModelError, OptionError


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that was asked for, checked, and its rounds."""

    simulations: ModelSimulations
    num_simulations: int
    rounds: int
    data: Any
    flow: str
    flow_options: dict[str, Any]
    summary: str | nn.Module | None
    training: dict[str, Any]
    seed: int
    progress: bool
    begin: float

    def posterior(self) -> AmortisedPosterior:
        """Train the posterior, round by round."""
        made = self._simulate(0)
        found = self._train_posterior(made, 1)
        for number in range(1, self.rounds):
            _, x = self.simulations.read(self.data)
            at = FlowDensity(at_data(found.density.flow, found.scaling(x)))
            region = TruncatedPrior(self.simulations, at, fold_in(self.seed, "edge", number))
            z = region.draw(self._count(number), fold_in(self.seed, "region", number))
            # Those of earlier rounds that lie in the region are draws from the prior there too.
            inside = made.at(region.holds(made.z))
            made = inside.joined(self._simulate(number, z))
            found = self._train_posterior(made, number + 1)
        return found

    def likelihood(self) -> AmortisedLikelihood:
        """Train the likelihood, round by round."""
        whole_numbers = self.simulations.layout.whole
        if whole_numbers:
            raise OptionError(
                f"method='likelihood' needs continuous data, and {whole_numbers[0]!r} are whole "
                "numbers, which a density would grow at without bound. Take method='posterior'."
            )
        if self.summary is not None:
            raise OptionError(
                "method='likelihood' is a density of the data themselves: leave summary out, or "
                "let the model observe a summary."
            )
        made = self._simulate(0)
        if made.left_out:
            raise ModelError(
                f"{made.left_out} of {self._count(0)} simulations have NaN or infinite numbers: "
                "without them the likelihood would be another. Take method='posterior', which can "
                "leave them out."
            )
        found = self._train_likelihood(made, 1)
        for number in range(1, self.rounds):
            fit = found(self.data, progress=self.progress)
            drawn = fit.sample(self._count(number), seed=fold_in(self.seed, "round", number))
            z = self.simulations.latent.pack(drawn)
            made = made.joined(self._simulate(number, z))
            found = self._train_likelihood(made, number + 1)
        return found

    def _count(self, number: int) -> int:
        """Simulations of a round; the first takes what does not divide."""
        share, rest = divmod(self.num_simulations, self.rounds)
        return share + (rest if number == 0 else 0)

    def _simulate(self, number: int, z: Tensor | None = None) -> Simulations:
        return self.simulations.run(
            self._count(number), fold_in(self.seed, "amortise", number), z=z
        )

    def _train_posterior(self, made: Simulations, rounds: int) -> AmortisedPosterior:
        latent = self.simulations.latent
        formula = named_flow(self.flow, latent.dim)
        scaling, density = posterior_density(
            self.simulations.layout, latent.init_loc, formula, self.flow_options, self.summary,
            self.seed,
        )  # fmt: skip
        rows, held = split(made, self.seed)
        scaling.set_from(rows.x)
        fitted = train(
            density, (rows.z, scaling(rows.x)), (held.z, scaling(held.x)), self.training, self.seed,
            progress=self.progress,
        )  # fmt: skip
        ranks = rank(
            density, latent, held.z, scaling(held.x), num_draws=JUDGEMENT.rank_draws,
            level=JUDGEMENT.level, seed=self.seed,
        )  # fmt: skip
        references = References.of(rows.x, scaling, density.flow, self.seed)
        record = self._record(formula, made, fitted, rounds)
        return AmortisedPosterior(self.simulations, density, scaling, references, ranks, record)

    def _train_likelihood(self, made: Simulations, rounds: int) -> AmortisedLikelihood:
        layout, like = self.simulations.layout, self.simulations.latent.init_loc
        formula = named_flow(self.flow, layout.dim)
        of_data, of_latents, density = likelihood_density(
            layout, like, formula, self.flow_options, self.seed
        )
        rows, held = split(made, self.seed)
        of_data.set_from(rows.x)
        of_latents.set_from(rows.z)
        fitted = train(
            density, (of_data(rows.x), of_latents(rows.z)), (of_data(held.x), of_latents(held.z)),
            self.training, self.seed, progress=self.progress,
        )  # fmt: skip
        references = References.of(rows.x, of_data, None, self.seed)
        record = self._record(formula, made, fitted, rounds)
        return AmortisedLikelihood(
            self.simulations, density, of_data, of_latents, references, record
        )

    def _record(
        self, formula: str, made: Simulations, fitted: DensityFit, rounds: int
    ) -> TrainingRecord:
        summary = self.summary
        return TrainingRecord(
            formula,
            summary if isinstance(summary, str) else type(summary).__name__ if summary else "",
            self.num_simulations,
            made.left_out,
            self.simulations.how,
            fitted.steps,
            -fitted.best,
            fitted.reason,
            time.monotonic() - self.begin,
            self.seed,
            self.flow_options,
            rounds,
        )
