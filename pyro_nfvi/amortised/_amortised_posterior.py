"""``AmortisedPosterior``: one density for the posteriors of all data sets."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._error_text import describe_error
from pyro_nfvi._option_names import knows_options
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import fold_in, fresh_seed, seeded, stream
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._validation import number, seed_number, whole
from pyro_nfvi.amortised._amortised_findings import NoDensity, RanksOnAverage, UnusualData
from pyro_nfvi.amortised._amortised_fit import AmortisedFit
from pyro_nfvi.amortised._model_simulations import ModelSimulations
from pyro_nfvi.amortised._rank_calibration import RankCalibration, rank
from pyro_nfvi.amortised._recipe import JUDGEMENT
from pyro_nfvi.amortised._summarised_flow import FlowAt, SummarisedFlow
from pyro_nfvi.amortised._summary_networks import Scaling
from pyro_nfvi.amortised._typicality import Neighbourhood
from pyro_nfvi.diagnostics._finding import Finding
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import ModelError, NFVIError, OptionError
from pyro_nfvi.flows._affine import DiagonalAffine
from pyro_nfvi.flows._base import Chain, Flow
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._nfvi import NFVI
from pyro_nfvi.infer._plate_fit import PlateFit
from pyro_nfvi.infer._weighted_draws import WeighedDraws, push_chunks, weigh


@dataclass(frozen=True)
class TrainingRecord:
    """Record of how a density was trained.

    Attributes:
        flow: The flow's formula, or its class.
        summary: The summary network, in words; empty for none.
        num_simulations: Simulations that were made.
        left_out: Simulations with numbers that are not finite.
        how: The way in which they were run.
        steps: Steps of training.
        held_out: Mean log density of the simulations that were held out, in nats.
        reason: Reason for which training ended.
        seconds: Time of all.
        seed: Seed of all.
    """

    flow: str
    summary: str
    num_simulations: int
    left_out: int
    how: str
    steps: int
    held_out: float
    reason: str
    seconds: float
    seed: int

    def lines(self) -> tuple[str, ...]:
        """Describe it in lines to read."""
        left = f", {self.left_out} left out as not finite" if self.left_out else ""
        by = {"plate": "together in a plate", "vmap": "together by vmap", "loop": "one by one"}
        return (
            f"trained on {self.num_simulations} simulations ({by.get(self.how, self.how)}{left}), "
            f"flow {self.flow}{f', summary {self.summary}' if self.summary else ''}",
            f"{self.steps} steps, {self.reason}; {self.held_out:.3f} nats held out; "
            f"{self.seconds:.1f} s, seed {self.seed}",
        )


class AmortisedPosterior:
    r"""The posterior of every data set that a model simulates: :math:`q(\theta \mid x)`.

    Made by :func:`pyro_nfvi.amortise`. Calling it with data gives their posterior, in
    milliseconds; ``calibration`` says whether such posteriors are right on average, and
    ``refine`` trains one further on its data.

    Args:
        simulations: The model as a simulator.
        density: The conditional density of unconstrained latents, given scaled data.
        scaling: Scales data.
        neighbourhoods: Simulations that data are compared with: as they are, and their summaries.
        ranges: Least and largest of each number over the simulations, ``(2, X)``.
        held_out: Calibration on the simulations that were held out.
        record: How it was trained.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> import pyro_nfvi as nfvi
        >>> def model(y=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        ...     with pyro.plate("data", 5):
        ...         return pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> posterior = nfvi.amortise(
        ...     model, observed="y", num_simulations=1000, flow="affine", seed=0, progress=False
        ... )
        >>> fit = posterior(torch.tensor([1.0, 2.0, 3.0, 2.0, 2.0]))
        >>> round(fit.summary()["mu"].mean)
        2
    """

    def __init__(
        self,
        simulations: ModelSimulations,
        density: FlowDensity,
        scaling: Scaling,
        neighbourhoods: Sequence[Neighbourhood],
        ranges: Tensor,
        held_out: RankCalibration,
        record: TrainingRecord,
    ) -> None:
        self.simulations, self.density, self.scaling = simulations, density, scaling
        self.neighbourhoods, self.ranges = tuple(neighbourhoods), ranges
        self.held_out, self.record = held_out, record

    @property
    def latent(self) -> LatentSpace:
        """The latents that are inferred, as one vector."""
        return self.simulations.latent

    @property
    def report(self) -> str:
        """Account of the training in lines to read."""
        drawn = self.simulations.summed_out
        lines = [*self.record.lines()]
        if drawn:
            lines.append(f"summed out by being drawn: {', '.join(drawn)}")
        lines.append(
            f"on {self.held_out.num_simulations} simulations held out: {self.held_out.verdict} "
            f"({'; '.join(self.held_out.verdict.reasons)})"
        )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"AmortisedPosterior({', '.join(self.latent.sites)} given "
            f"{', '.join(self.simulations.layout.shapes)}; {self.record.num_simulations} "
            f"simulations, {str(self.held_out.verdict)!r})"
        )

    # ---------------------------------------------------------------------- one data set

    @knows_options
    def fit(
        self, data: Any, *, num_draws: int = JUDGEMENT.draws, seed: int | None = None
    ) -> AmortisedFit:
        """Return the posterior of a data set, with its verdict; calling the object is the same.

        Args:
            data: The data: of the one observed site, or a dict by site.
            num_draws: Draws on which it is judged.
            seed: Same seed, same draws; None takes that of the training.

        Cost:
            One pass of the flow and, where the model has a density, some runs of the model.

        Raises:
            OptionError: A site is missing or unknown.
            ShapeError: Data of another shape than those that were simulated.
            DataError: NaN or infinite numbers.
        """
        num_draws = whole("num_draws", num_draws, 100)
        chosen = seed_number(seed)
        base = self.record.seed if chosen is None else chosen
        values, x = self._read(data)
        density = self._at(x)
        generator = stream(base, "amortised draws", device=x.device)
        z, log_q = push_chunks(
            density, num_draws, lambda n: density.sample_base(n, generator=generator)
        )
        model = self.simulations.condition(values)
        args, kwargs = self.simulations.simulator.args, self.simulations.simulator.kwargs
        draws = WeighedDraws(z, torch.full_like(log_q, torch.nan), log_q, exact=False)
        findings: list[Finding] = []
        why = self._no_density()
        log_joint: LogJoint | None = None
        if not why:
            log_joint, why = self._log_joint(values, z, base)
        if log_joint is not None:
            again = stream(base, "amortised draws", device=x.device)
            draws = weigh(density, log_joint, num_draws, again)
        else:
            findings.append(NoDensity(why))
        findings += [*self._usual(x, weighed=draws.exact), self._average(weighed=draws.exact)]
        make = None if log_joint is None else (lambda: self._guide(x, values))
        return AmortisedFit(
            density, self.latent, draws, tuple(findings), model, args, kwargs, values,
            self.record.lines(), make,
        )  # fmt: skip

    __call__ = fit

    def refine(self, data: Any, **options: Any) -> Fit | PlateFit:
        """Train the posterior of a data set further, by the ELBO of the model at these data.

        Args:
            data: The data.
            options: Options of :class:`NFVI`: ``max_steps``, ``num_particles``, ``seed``, ...

        Returns:
            An ordinary fit, whose training started from the amortised posterior.

        Cost:
            That of a fit, whose start is better.

        Raises:
            ModelError: The model has no density of the latents that are inferred.
        """
        values, x = self._read(data)
        why = self._no_density()
        if why:
            raise ModelError(f"There is no ELBO to refine by: {why}.")
        if "guide" in options:
            raise OptionError("refine trains the amortised posterior: leave guide out.")
        guide = self._guide(x, values, set_up=False)
        simulator = self.simulations.simulator
        options = {"seed": self.record.seed, **options}
        model = self.simulations.condition(values)
        return NFVI(model, guide, **options).run(*simulator.args, **simulator.kwargs)

    # ---------------------------------------------------------------------- all data sets

    @knows_options
    def calibration(
        self,
        num: int = 10_000,
        *,
        num_draws: int = JUDGEMENT.rank_draws,
        level: float = 0.01,
        seed: int | None = None,
    ) -> RankCalibration:
        r"""Simulation-based calibration on new simulations: ranks, coverage and a verdict.

        Data are simulated at known parameters and :math:`p = \Pr_q(\theta < \theta_0 \mid x)` is
        taken of each: uniform where posteriors are right. So is the probability of the smallest
        region of highest density around the truth (expected coverage).

        Args:
            num: Data sets.
            num_draws: Draws from each posterior.
            level: Largest chance that exact posteriors are called something else than calibrated.
            seed: Same seed, same result; None draws one.

        Cost:
            ``num`` simulations and ``num * num_draws`` draws, in a few passes: seconds to minutes.

        Source: Talts et al. 2018, arXiv:1804.06788; Hermans et al. 2022, arXiv:2110.06581, for the
        coverage.
        """
        num, num_draws = whole("num", num, 20), whole("num_draws", num_draws, 10)
        level = number("level", level, above=0)
        if level >= 1:
            raise OptionError(f"level is a number between 0 and 1; got {level!r}.")
        begin = time.monotonic()
        chosen = seed_number(seed)
        base = fresh_seed() if chosen is None else chosen
        made = self.simulations.run(num, fold_in(base, "calibration"))
        found = rank(
            self.density, self.latent, made.z, self.scaling(made.x),
            num_draws=num_draws, level=level, seed=base,
        )  # fmt: skip
        return replace(found, seconds=time.monotonic() - begin)

    # ------------------------------------------------------------------------- in between

    def _read(self, data: Any) -> tuple[TensorDict, Tensor]:
        """Return the data by site, and as a vector ``(X,)``."""
        layout, like = self.simulations.layout, self.latent.init_loc
        values = layout.read(data, like)
        rows = {name: value.unsqueeze(0) for name, value in values.items()}
        return values, layout.flatten(rows, like)[0]

    def _flow_at(self, x: Tensor) -> Flow:
        """Return the flow at one data set, from base noise to unconstrained latents."""
        return at_data(self.density.flow, self.scaling(x))

    def _at(self, x: Tensor) -> FlowDensity:
        return FlowDensity(self._flow_at(x))

    def _no_density(self) -> str:
        """Say why the model cannot score draws, as far as that is known without data."""
        made = self.simulations
        if made.functions:
            return f"the observed site {made.functions[0]!r} is a function of others"
        left = [name for name in made.latents if name not in made.latent.sites]
        if left:
            return f"the site {left[0]!r} is drawn in each simulation and not inferred"
        return ""

    def _log_joint(self, values: TensorDict, z: Tensor, seed: int) -> tuple[LogJoint | None, str]:
        """Return the model's log joint at these data, or why there is none."""
        made = self.simulations
        space = replace(self.latent, init_loc=z.median(0).values)
        simulator = made.simulator
        try:
            with seeded(seed, "amortised set-up"):
                model = made.condition(values)
                return LogJoint(model, simulator.args, simulator.kwargs, space), ""
        except NFVIError as error:
            return None, str(error).rstrip(".")
        except Exception as error:  # a user's model may fail in any way
            return None, describe_error(error)

    def _usual(self, x: Tensor, *, weighed: bool) -> list[Finding]:
        scaled = self.scaling(x)
        points = [scaled]
        if len(self.neighbourhoods) > 1:
            with torch.no_grad():
                points.append(summarised(self.density.flow, scaled))
        ps = [home.p_value(point) for home, point in zip(self.neighbourhoods, points)]
        low, high = self.ranges
        beyond = ((x < low) | (x > high)).nonzero().flatten().tolist()
        outside = [
            f"{self.simulations.layout.at(i)} = {float(x[i]):.3g} was from {float(low[i]):.3g} to "
            f"{float(high[i]):.3g}"
            for i in beyond[:3]
        ] + ["..."] * (len(beyond) > 3)  # fmt: skip
        found = UnusualData(
            min(1.0, len(ps) * min(ps)), JUDGEMENT.level, len(self.neighbourhoods[0].points),
            tuple(outside), weighed,
        )  # fmt: skip
        return [found]

    def _average(self, *, weighed: bool) -> Finding:
        held = self.held_out
        return RanksOnAverage(str(held.verdict), held.num_simulations, held.largest, weighed)

    def _guide(self, x: Tensor, values: TensorDict, *, set_up: bool = True) -> AutoFlow:
        """Build the posterior of a data set as a guide that owns its parameters."""
        flow = copy.deepcopy(self._flow_at(x))
        guide = AutoFlow(
            self.simulations.condition(values), flow, outer=DiagonalAffine(self.latent.dim)
        )
        if set_up:
            simulator = self.simulations.simulator
            with seeded(self.record.seed, "amortised set-up"):
                guide.setup(*simulator.args, **simulator.kwargs)
        return guide


def at_data(flow: Flow, scaled: Tensor) -> Flow:
    """Return a flow of data at one data set, without context."""
    if isinstance(flow, Chain):
        return Chain(*(at_data(layer.map, scaled) for layer in flow.layers()))
    if isinstance(flow, SummarisedFlow):
        with torch.no_grad():
            return FlowAt(flow.flow, flow.network(scaled))
    return FlowAt(flow, scaled) if flow.context_dim else flow


def summarised(flow: Flow, scaled: Tensor) -> Tensor:
    """Return the summary of data by the network of a flow."""
    for layer in flow.layers():
        if isinstance(layer.flow, SummarisedFlow):
            found: Tensor = layer.flow.network(scaled)
            return found
    return scaled
