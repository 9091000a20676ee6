"""``Fit``: the result of a fit, with draws, densities, diagnostics and files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._option_names import knows_options
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.pyro_state import takes_turn, turn
from pyro_nfvi._random import seeded, stream
from pyro_nfvi._timing import Timing
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._user_warning import warn
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.diagnostics._importance import log_evidence, resample
from pyro_nfvi.diagnostics._khat import TailReading
from pyro_nfvi.diagnostics._verdict import Verdict
from pyro_nfvi.errors import ConversionWarning, ModelError, NotSetUpError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.guides._pyro_guide import PyroGuide
from pyro_nfvi.infer._findings import Finding, ModeSearch, find, with_finding
from pyro_nfvi.infer._model_parameters import ModelParams
from pyro_nfvi.infer._predict import Predictions, predict_from
from pyro_nfvi.infer._summary import Summary
from pyro_nfvi.infer._training import Training
from pyro_nfvi.infer._weighted_draws import WeighedDraws, push_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyro_nfvi.infer._mcmc_run import MCMCRun


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A fitted posterior.

    Made by :meth:`NFVI.run` or :func:`load`. All densities are in nats.

    Attributes:
        guide: The trained guide.
        draws: 2000 draws with both densities, from which ``elbo``, ``khat`` and the other figures
            are computed.
        training: How the fit came about.
        params: Values of the model's own ``pyro.param`` parameters after training.
        log_joint: The model's log joint; None for a fit that was loaded without the model.
    """

    guide: AutoFlow | AutoMixture | PyroGuide
    draws: WeighedDraws
    training: Training
    params: TensorDict = field(default_factory=dict)
    log_joint: LogJoint | None = None
    _params: ModelParams = field(default_factory=ModelParams)
    _replaced: tuple[str, ...] = ()

    # ------------------------------------------------------------------------- what it says

    @property
    def latent(self) -> LatentSpace:
        """The latent sites as one vector."""
        return self.guide.latent

    @property
    def model(self) -> Callable[..., Any] | None:
        """The model, or None for a fit that was loaded without it."""
        return None if self.log_joint is None else self.log_joint.model

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments of the model."""
        return () if self.log_joint is None else self.log_joint.args

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the model."""
        return {} if self.log_joint is None else self.log_joint.kwargs

    @property
    def replaced(self) -> tuple[str, ...]:
        """Sites that a reparameteriser replaced by others; they count as latents."""
        return self._replaced if self.log_joint is None else self.log_joint.replaced

    @property
    def losses(self) -> Tensor:
        """Negative bound of each step, in nats; NaN where no particle counted.

        The bound of the objective that was trained, which need not be the ELBO.
        """
        return self.training.losses

    @property
    def elbo(self) -> float:
        """Evidence lower bound of the fit, in nats, whatever the objective was."""
        return self.draws.elbo()[0]

    @property
    def elbo_se(self) -> float:
        """Standard error of ``elbo``, in nats."""
        return self.draws.elbo()[1]

    @property
    def khat(self) -> float:
        """Shape of the tail of the importance weights; ``fit.tail`` says what it means.

        NaN where weights say nothing (data scored in subsamples, or no draw possible).
        """
        return self.draws.quality()[0]

    @property
    def tail(self) -> TailReading:
        """Reading of k-hat: a :class:`~pyro_nfvi.diagnostics._khat.TailReading`."""
        return self.draws.tail()

    @property
    def ess(self) -> float:
        """Effective number of the reweighted draws."""
        return self.draws.quality()[1]

    @property
    def modes(self) -> tuple[dict[str, Any], ...]:
        """The modes of a mixture fit, one for each component; empty for a guide of one piece.

        Each has its ``weight`` and ``weight_se`` (None where importance weights say nothing),
        ``starts``, how many starts ended there, and ``at``, where it is, by site. They are those
        that a start came to: others are not in the fit.
        """
        return tuple(asdict(mode) for mode in self.training.settings.modes)

    @property
    def num_starts(self) -> int:
        """Points from which modes were looked for; 0 where none were."""
        search = find(self.training.findings, ModeSearch)
        return 0 if search is None else search.starts

    @cached_property
    def verdict(self) -> Verdict:
        """Trust in the fit: a word, with ``.reasons`` and ``.next_step``.

        ``"good"``, ``"usable with reweighting"`` or ``"do not trust"``, from the importance
        weights (:func:`pyro_nfvi.diagnostics.judge_weights`), from modes that the search found
        and the guide does not reach, from draws far outside of the guide's own (up to 30
        latents), and from directions without a posterior. A mode that the search does
        not find stays unseen.
        """
        from pyro_nfvi.infer._fit_verdict import verdict

        return verdict(self)

    @property
    def engine(self) -> str:
        """Engine that ran the steps: ``"compiled"``, or ``"eager"``, ordinary PyTorch."""
        return self.training.engine

    @property
    def engine_reason(self) -> str:
        """Reason for the choice of that engine."""
        return self.training.engine_reason

    @property
    def timing(self) -> Timing:
        """Seconds of the call that made the fit, part by part.

        ``fit.timing.parts`` sums to ``fit.timing.total``; ``fit.timing.step`` is the time of one
        step of training.
        """
        return self.training.timing

    @property
    def why_stopped(self) -> StopReason:
        """Reason for which training ended: one word, with the sentence in ``.detail``."""
        return self.training.why_stopped

    @property
    def report(self) -> str:
        """Account of the fit in lines to read: the guide, its training, and its quality."""
        from pyro_nfvi.infer._report import report

        return report(self)

    def __repr__(self) -> str:
        return (
            f"Fit({type(self.guide).__name__}, {self.latent.dim} latents, "
            f"elbo {self.elbo:.2f} ± {self.elbo_se:.2f} nats, {self.tail}, "
            f"{len(self.losses)} steps, {self.why_stopped})"
        )

    def _repr_html_(self) -> str:
        from pyro_nfvi.infer._report import report_html

        return report_html(self, self.latent.constrain(self.draws.z)[0])

    # ------------------------------------------------------------------------ what it gives

    @knows_options
    @takes_turn
    def sample(
        self, num_samples: int = 1000, *, seed: int | None = None, deterministic: bool = False
    ) -> TensorDict:
        """Draw the latent sites from the posterior: each site's draws ``(num_samples, *shape)``.

        A site that a reparameteriser replaced is a latent of the model, and comes beside those in
        its place. Latents alone are what ``pyro.infer.Predictive`` may be given: it would hold a
        deterministic site at its old value also where new data ask for another. For predictions
        see :meth:`predict`, which runs under the trained parameters too.

        Args:
            num_samples: Number of draws.
            seed: Makes the draws repeatable; None uses torch's own random state.
            deterministic: Add the model's deterministic sites, at the data of the fit.

        Warns:
            ConversionWarning: A replaced site is left out, since the fit was loaded without its
                model, which computes it.

        Cost:
            One pass of the flow; with deterministic or replaced sites, a run of the model too.

        Raises:
            OptionError: ``num_samples`` is not a positive whole number.
            NotSetUpError: ``deterministic`` for a fit that was loaded without its model.
        """
        return self._sample(num_samples, seed, deterministic=deterministic, replaced=True)

    def _sample(
        self, num_samples: int, seed: int | None, *, deterministic: bool, replaced: bool
    ) -> TensorDict:
        num_samples, seed = whole("num_samples", num_samples), seed_number(seed)
        density = self.guide.density()
        noise: torch.Generator | None = None
        state: AbstractContextManager[None] = nullcontext()
        if seed is not None and density.takes_generator:
            noise = stream(seed, "sample", device=self.draws.z.device)
        elif seed is not None:  # torch.distributions draw from the global state
            state = seeded(seed, "sample")
        with state:
            z, _ = push_chunks(
                density, num_samples, lambda rows: density.sample_base(rows, generator=noise)
            )
            if replaced and not deterministic and self.log_joint is None:
                self._tell_missing(self.replaced)
            elif deterministic or (replaced and self.replaced):
                fixed = self._deterministic(z, noise)
                return self._sites(z, self._chosen(fixed, deterministic=deterministic))
            return self._sites(z, {})

    @knows_options
    @takes_turn
    def resample(
        self, num_samples: int = 1000, *, seed: int | None = None, deterministic: bool = False
    ) -> TensorDict:
        """Draw latents from the fit's draws by their smoothed importance weights.

        Where ``tail.reliable`` this takes away most of what the flow got wrong. A draw may
        come up more than once; ask for no more than ``ess``. Sites that a reparameteriser
        replaced are among the latents, as in :meth:`sample`.

        Args:
            num_samples: Number of draws.
            seed: Makes the draws repeatable; None uses torch's own random state.
            deterministic: Add the deterministic sites of these draws, at the data of the fit.

        Raises:
            OptionError: ``num_samples`` is not a positive whole number.
            ModelError: The weights say nothing, because data was scored in subsamples or no draw
                is possible under the model.
        """
        num_samples, seed = whole("num_samples", num_samples), seed_number(seed)
        smoothed = self.draws.smoothed()
        if smoothed is None:
            raise ModelError(f"The draws cannot be reweighted: {self._no_weights()}")
        noise = None if seed is None else stream(seed, "resample")
        index = resample(smoothed.log_weights, num_samples, generator=noise)
        fixed = self._chosen(self.draws.deterministic, deterministic=deterministic)
        return self._sites(self.draws.z[index], {n: value[index] for n, value in fixed.items()})

    @takes_turn
    def predict(
        self,
        *args: Any,
        num_samples: int = 1000,
        sites: Sequence[str] | None = None,
        seed: int | None = None,
        reweighted: bool = False,
        from_prior: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Predictions:
        r"""Predict: run the model forward at draws of the latents, for data of any size.

        .. math:: \tilde y_s \sim p(\tilde y \mid \theta_s, \tilde x, \hat\phi),
            \qquad \theta_s \sim q(\theta)

        Latents alone are held, under the trained parameters of the model. Observed sites are drawn
        anew, whether the model gets ``None`` for their data or always gets data; deterministic
        sites are computed anew. A plate that subsamples is gone through batch by batch.

        Discrete sites that were summed out: one in the plates of an observed site (the component
        of each row) is drawn from its prior given the latents, one that rows share (outside of all
        plates, or in a plate of groups) from its posterior. Without any arguments the model is run
        with those of the fit, and all of them come from their posterior.

        A latent in a plate of unchanged size is held, also where its entries should stand for
        other things than in the fit: name it in ``from_prior`` then. Of a site that a
        reparameteriser replaced, those in its place are held; the site is computed anew. Where a
        latent has an entry for each row of the data, and the data are other ones, a warning asks
        which of the two is meant.

        Args:
            *args: The model's positional arguments at new data.
            num_samples: Number of draws of the latents.
            sites: Sites to return; by default all that were not held.
            seed: Makes predictions repeatable; None uses torch's own random state.
            reweighted: Take the latents from :meth:`resample`, which corrects the fit by its
                importance weights.
            from_prior: Latent sites that are drawn from their prior given the other latents:
                groups that were not in the data, say. ``[]`` says that there are none.
            **kwargs: The model's keyword arguments (a model whose own are called as one of these
                options is wrapped in a function).

        Shape:
            ``(num_samples, *shape of the site at the new data)`` each.

        Cost:
            One run of the model for each chunk of draws, or for each draw where it cannot be
            vectorised; every chunk is compared with the model run alone.

        Raises:
            NotSetUpError: The fit was loaded without its model.
            ModelError: A latent has another shape at the new data, the model does not take the
                arguments, a site cannot be drawn, or several plates subsample.
            OptionError: An option is wrong, or a name is not in the model.

        Source: Gelman et al. 2013, Bayesian Data Analysis, 3rd edition, section 1.3.

        Example:
            >>> import pyro, torch
            >>> import pyro.distributions as dist
            >>> from pyro_nfvi import NFVI
            >>> def model(x, y=None):
            ...     slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
            ...     with pyro.plate("rows", len(x)):
            ...         mean = pyro.deterministic("mean", slope * x)
            ...         return pyro.sample("y", dist.Normal(mean, 0.1), obs=y)
            >>> x = torch.linspace(-1, 1, 20)
            >>> fit = NFVI(model, "affine", max_steps=200, seed=0, progress=False).run(x, 2 * x)
            >>> new = fit.predict(torch.tensor([10.0, 20.0]), num_samples=400, seed=0)
            >>> sorted(new), new["y"].shape, bool((new["y"].mean(0)[1] - 40).abs() < 1)
            (['mean', 'y'], torch.Size([400, 2]), True)
        """
        log_joint, num_samples = self.require_model(), whole("num_samples", num_samples)
        seed = seed_number(seed)
        with self.model_scope(), seeded(seed, "predict") if seed is not None else nullcontext():
            draws = (
                self.resample(num_samples)
                if reweighted
                else self._sample(num_samples, None, deterministic=False, replaced=False)
            )
            return predict_from(log_joint, draws, args, kwargs, sites=sites, from_prior=from_prior)

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Score constrained values, ``(*b, *site shape)`` each: ``(*b,)`` in nats.

        The density is in the sites' own measure, so that the model's log joint minus this is
        the log importance weight. Names that are not latent sites are ignored.
        """
        with torch.no_grad():
            return self.guide.log_prob(values)

    def log_evidence(self) -> tuple[float, float]:
        """Estimate the log evidence: ``(value, standard error)``, in nats.

        By importance sampling from the fit; trust it where ``tail.reliable``.

        Raises:
            ModelError: Data was scored in subsamples, or no draw is possible under the model.
        """
        if self.draws.smoothed() is None:
            raise ModelError(f"The evidence cannot be estimated: {self._no_weights()}")
        return log_evidence(self.draws.log_w)

    @knows_options
    @takes_turn
    def summary(self, *, reweighted: bool = False) -> Summary:
        """Return mean, sd and quantiles of every number, deterministic sites included.

        Args:
            reweighted: Use the smoothed importance weights of the draws.

        Raises:
            ModelError: ``reweighted`` where the weights say nothing.
        """
        smoothed = self.draws.smoothed()
        if reweighted and smoothed is None:
            raise ModelError(f"The draws cannot be reweighted: {self._no_weights()}")
        weights = torch.zeros(len(self.draws.z), dtype=torch.float64)
        if reweighted and smoothed is not None:
            weights = smoothed.log_weights
        sites = self._sites(self.draws.z, self.draws.deterministic)
        note = (
            f"{len(weights)} draws{', reweighted' if reweighted else ''}; "
            f"{self.tail}, ELBO {self.elbo:.2f} ± {self.elbo_se:.2f} nats"
        )
        return Summary.of(sites, weights.to(self.draws.z.device), note)

    # --------------------------------------------------------------------- to other formats

    def to_arviz(self, **options: Any) -> Any:
        """Convert for ArviZ; see :func:`pyro_nfvi.to_arviz` for the options."""
        from pyro_nfvi.arviz._to_arviz import to_arviz

        return to_arviz(self, **options)

    @knows_options
    def mcmc(
        self,
        *,
        num_samples: int = 1000,
        num_chains: int = 64,
        warmup_steps: int = 200,
        max_seconds: float | None = None,
        seed: int | None = None,
        progress: bool = True,
    ) -> MCMCRun:
        r"""Draw exactly: many Hamiltonian chains in the space that the fit has straightened.

        .. math:: \pi(\varepsilon) \propto p(f(\varepsilon))\, |\det \partial f/\partial\varepsilon|

        for the flow f of the guide. What the fit got wrong in shape (k-hat, tails, correlations)
        chains correct, wherever they get to. They do not find modes that the fit has not seen: to
        tell of such, a quarter of the places where chains start come from noise twice as wide, and
        ``run.nested_rhat`` compares places. ``run.verdict`` says whether to trust the draws, and
        ``run.khat`` judges the fit from draws that are not its own.

        Works with every guide of one piece; ``NFVI(model, guide="gaussian")`` makes it a sampler
        through a Gaussian alone. Step size, scales and trajectory length are learnt by all chains
        together in the warm-up and fixed then, so that each transition leaves the posterior
        invariant. Parameters of the model stay at their fitted values.

        Args:
            num_samples: Draws of each chain.
            num_chains: Chains, two at least; four start at each place where that divides them. More
                of them cost little until the model fills the processor.
            warmup_steps: Transitions of the warm-up.
            max_seconds: Time for the call; draws that it leaves no time for are missing, and the
                verdict says so. None for no limit.
            seed: Same seed, same draws (without ``max_seconds``); None draws one.
            progress: Show a bar.

        Returns:
            The run, after Ctrl-C too where there are draws: a
            :class:`~pyro_nfvi.infer._mcmc_run.MCMCRun`.

        Cost:
            Some two gradients of model and flow for a transition, of all chains in one batch.

        Raises:
            NotSetUpError: The fit was loaded without its model.
            ModelError: The model subsamples its data, the fit is a mixture over modes, or the
                density is not finite at the fit's draws.
            OptionError: An option that cannot be used, or more draws than fit into memory.

        Source: Hoffman, Radul & Sountsov 2021, AISTATS (ChEES-HMC); Hoffman et al. 2019,
        arXiv:1903.03704 (NeuTra); Margossian et al. 2024, arXiv:2110.13017 (nested R-hat).

        Example:
            >>> import pyro, torch
            >>> import pyro.distributions as dist
            >>> from pyro_nfvi import NFVI
            >>> def model(y):
            ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
            ...     with pyro.plate("data", len(y)):
            ...         pyro.sample("y", dist.StudentT(3.0, mu, 1.0), obs=y)
            >>> y = torch.tensor([1.0, 2.0, 3.0])
            >>> fit = NFVI(model, "affine", max_steps=100, seed=0, progress=False).run(y)
            >>> run = fit.mcmc(num_samples=100, warmup_steps=100, seed=0, progress=False)
            >>> run.samples["mu"].shape, abs(run.samples["mu"].mean() - 2.0) < 0.2
            (torch.Size([64, 100]), tensor(True))
        """
        from pyro_nfvi.infer._mcmc import mcmc

        return mcmc(
            self,
            num_samples=num_samples,
            num_chains=num_chains,
            warmup_steps=warmup_steps,
            max_seconds=max_seconds,
            seed=seed,
            progress=progress,
        )

    @knows_options
    def to_nuts(
        self,
        *,
        num_samples: int = 500,
        warmup_steps: int = 300,
        num_chains: int = 2,
        seed: int | None = None,
        progress: bool = True,
    ) -> MCMCRun:
        """Hand over to Pyro's NUTS, which runs in the space that the flow has made nearly Gaussian.

        What the flow got wrong, NUTS corrects, where chains get to; the flow spares it narrow
        necks and correlations. ``run.khat`` judges the fit from draws that are not its own.

        Args:
            num_samples: Draws of each chain.
            warmup_steps: Steps in which step size and mass are adapted.
            num_chains: Chains, one after the other, each from a draw of the fit.
            seed: Same seed, same draws; None draws one.
            progress: Show a bar for each chain.

        Cost:
            Some ten to hundred gradients of model and flow per draw.

        Raises:
            NotSetUpError: The fit was loaded without its model.
            ModelError: The model subsamples its data, or gives density 0 to the fit's draws.

        Source: Hoffman et al. 2019, arXiv:1903.03704 (NeuTra).
        """
        from pyro_nfvi.infer._nuts import to_nuts

        return to_nuts(
            self,
            num_samples=num_samples,
            warmup_steps=warmup_steps,
            num_chains=num_chains,
            seed=seed,
            progress=progress,
        )

    def plot_loss(self, **options: Any) -> Any:
        """Plot the bound against the steps; see :mod:`pyro_nfvi.plots`."""
        from pyro_nfvi.plots._loss import plot_loss

        return plot_loss(self, **options)

    def plot_marginals(self, reference: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Plot each site's marginal, beside a reference's; see :mod:`pyro_nfvi.plots`."""
        from pyro_nfvi.plots._marginals import plot_marginals

        return plot_marginals(self, reference, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fit to a file, without the data and without the model.

        All of it or nothing: an earlier file of that name survives any failure. Read it with
        :func:`pyro_nfvi.load`, in any process that can import this library.

        Raises:
            FileError: The folder is missing or read-only, or the disk is full.
        """
        from pyro_nfvi.infer._saving import save

        save(self, path)

    # --------------------------------------------------------------------------- in between

    @contextmanager
    def model_scope(self) -> Iterator[None]:
        """Let the model see its trained parameters, and the user's store nothing of it."""
        guard = self.guide.param_guard
        opened = nullcontext() if guard is None else guard.opened()
        with turn(), self._params.scope(), opened:
            yield

    def _sites(self, z: Tensor, others: TensorDict) -> TensorDict:
        """Constrained values of the latents, beside others."""
        with torch.no_grad():
            values, _ = self.latent.constrain(z)
        return {**values, **others}

    def _chosen(self, fixed: TensorDict, *, deterministic: bool) -> TensorDict:
        """Of computed sites all, or those that a reparameteriser replaced."""
        return fixed if deterministic else {n: fixed[n] for n in self.replaced if n in fixed}

    @staticmethod
    def _tell_missing(names: tuple[str, ...]) -> None:
        if names:
            warn(
                f"The draws are without {', '.join(map(repr, names))}, which a reparameteriser "
                "replaced and the model computes from others. Load the fit with its model: "
                "load(path, model=model, args=...).",
                ConversionWarning,
            )

    def _deterministic(self, z: Tensor, noise: torch.Generator | None) -> TensorDict:
        """Compute the deterministic sites at draws."""
        log_joint = self.require_model()
        with self.model_scope(), torch.random.fork_rng(devices=[]):
            return log_joint.evaluate(z, generator=noise).deterministic

    def _no_weights(self) -> str:
        if not self.draws.exact:
            return (
                "the model subsamples its data and draws saw one mini-batch, so importance weights "
                "are noise. Save the fit and load it with the model at subsample_size=None."
            )
        return "the model gives density 0 to every draw, or cannot score them."

    def require_model(self) -> LogJoint:
        """Return the log joint.

        Raises:
            NotSetUpError: The fit was loaded without its model.
        """
        if self.log_joint is None:
            raise NotSetUpError(
                "This fit was loaded without its model: load(path, model=model, args=...)."
            )
        return self.log_joint


def add_finding(fit: Fit, finding: Finding) -> Fit:
    """Return a fit with one more finding, in place of an earlier one of its kind."""
    findings = with_finding(fit.training.findings, finding)
    return replace(fit, training=replace(fit.training, findings=findings))
