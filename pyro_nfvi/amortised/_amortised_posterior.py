"""``AmortisedPosterior``: one density for the posteriors of all data sets."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_nfvi._error_text import describe_error
from pyro_nfvi._option_names import knows_options
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import fold_in, fresh_seed, seeded, stream
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._validation import number, seed_number, whole
from pyro_nfvi.amortised._amortised_fit import AmortisedFit
from pyro_nfvi.amortised._model_simulations import ModelSimulations
from pyro_nfvi.amortised._posterior_files import Trained, load_posterior, save_posterior
from pyro_nfvi.amortised._rank_calibration import RankCalibration, rank
from pyro_nfvi.amortised._recipe import JUDGEMENT
from pyro_nfvi.amortised._summary_networks import Scaling
from pyro_nfvi.amortised._trained_density import References, TrainingRecord, at_data
from pyro_nfvi.diagnostics._finding import Finding
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import ModelError, NFVIError, OptionError
from pyro_nfvi.flows._affine import DiagonalAffine
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._amortised_findings import NoDensity, RanksOnAverage
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._nfvi import NFVI
from pyro_nfvi.infer._plate_fit import PlateFit
from pyro_nfvi.infer._weighted_draws import WeighedDraws, push_chunks, weigh


class AmortisedPosterior:
    r"""The posterior of every data set that a model simulates: :math:`q(\theta \mid x)`.

    Made by :func:`pyro_nfvi.amortise`. Calling it with data gives their posterior, in
    milliseconds; ``calibration`` says whether such posteriors are right on average, and
    ``refine`` trains one further on its data.

    Args:
        simulations: The model as a simulator.
        density: The conditional density of unconstrained latents, given scaled data.
        scaling: Scales data.
        references: Simulations that data are compared with.
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
        references: References,
        held_out: RankCalibration,
        record: TrainingRecord,
    ) -> None:
        self.simulations, self.density, self.scaling = simulations, density, scaling
        self.references, self.held_out, self.record = references, held_out, record

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
        self,
        data: Any,
        *,
        num_draws: int = JUDGEMENT.draws,
        calibration: RankCalibration | None = None,
        seed: int | None = None,
    ) -> AmortisedFit:
        """Return the posterior of a data set, with its verdict; calling the object is the same.

        Args:
            data: The data: of the one observed site, or a dict by site.
            num_draws: Draws on which it is judged.
            calibration: What ``posterior.calibration()`` returned, for the verdict; by default the
                calibration on the simulations that were held out.
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
        values, x = self.simulations.read(data)
        density = FlowDensity(self._flow_at(x))
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
        held = self.held_out if calibration is None else calibration
        weighed = draws.exact
        findings += [
            self.references.judge(
                x, self.scaling(x), self.density.flow, self.simulations.layout, weighed=weighed
            ),
            RanksOnAverage(str(held.verdict), held.num_simulations, held.largest, weighed),
        ]
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
        values, x = self.simulations.read(data)
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

        Raises:
            ModelError: The posterior was trained in rounds, for one data set.

        Source: Talts et al. 2018, arXiv:1804.06788; Hermans et al. 2022, arXiv:2110.06581, for the
        coverage.
        """
        num, num_draws = whole("num", num, 20), whole("num_draws", num_draws, 10)
        level = number("level", level, above=0)
        if level >= 1:
            raise OptionError(f"level is a number between 0 and 1; got {level!r}.")
        if self.record.rounds > 1:
            raise ModelError(
                "The posterior was trained in rounds on simulations near one data set, so it is "
                "none of data from the whole prior. posterior.held_out has the ranks of the "
                "simulations that were held out."
            )
        begin = time.monotonic()
        chosen = seed_number(seed)
        base = fresh_seed() if chosen is None else chosen
        made = self.simulations.run(num, fold_in(base, "calibration"))
        found = rank(
            self.density, self.latent, made.z, self.scaling(made.x),
            num_draws=num_draws, level=level, seed=base,
        )  # fmt: skip
        return replace(found, seconds=time.monotonic() - begin)

    # ------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the posterior to a file, without the model: all of it or nothing.

        Raises:
            FileError: The folder is missing or read-only, or the disk is full.
        """
        save_posterior(path, self.simulations, self._trained())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        summary: nn.Module | None = None,
    ) -> AmortisedPosterior:
        """Read a posterior that :meth:`save` wrote; no code in the file runs.

        Args:
            path: The file.
            model: The model.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            summary: A network like the one that it was trained with, where that was your own.

        Raises:
            FileError: The file cannot be read, is damaged, or is of another model.
        """
        simulations, trained = load_posterior(path, model, args, kwargs or {}, summary)
        return cls(simulations, *trained)

    def _trained(self) -> Trained:
        return Trained(self.density, self.scaling, self.references, self.held_out, self.record)

    # ------------------------------------------------------------------------- in between

    def _flow_at(self, x: Tensor) -> Flow:
        """Return the flow at one data set, from base noise to unconstrained latents."""
        return at_data(self.density.flow, self.scaling(x))

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
