"""``MCMCRun``: draws of Markov chains that ran through a fit, with what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_nfvi._mcmc.chains import Ending
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import seeded
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._validation import seed_number
from pyro_nfvi.diagnostics._bridge import bridge_evidence, disagree, harmonic_evidence
from pyro_nfvi.diagnostics._convergence import (
    bulk_ess,
    nested_rhat,
    normal_scores,
    rank_rhat,
    tail_ess,
)
from pyro_nfvi.diagnostics._importance import log_evidence
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.diagnostics._recipe import EVIDENCE
from pyro_nfvi.diagnostics._verdict import Verdict
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import ModelError, OptionError, WeightError
from pyro_nfvi.infer._chain_findings import (
    ChainFinding,
    ChainsDisagree,
    CutShort,
    Divergent,
    EvidenceDisagrees,
    FewEffective,
    ReachedOutside,
    Rounded,
    StuckChains,
    judge_chains,
)
from pyro_nfvi.infer._findings import Finding, Level, MassOutside, find
from pyro_nfvi.infer._fitted import FittedPosterior
from pyro_nfvi.infer._predict import Predictions, predict_from
from pyro_nfvi.infer._recipe import CHAINS
from pyro_nfvi.infer._summary import Summary


@dataclass(frozen=True)
class Kernel:
    """The part of a kernel that ``to_arviz`` reads: the sampler's name, and the model."""

    name: str
    model: Callable[..., Any]


@dataclass(frozen=True)
class Sampling:
    """Account of how the chains of a run were made.

    Attributes:
        method: Name of the sampler.
        num_samples: Draws of each chain that were asked for.
        warmup_steps: Steps of adaptation that were asked for.
        warmup: Steps of adaptation that were made.
        superchains: Places where chains started, those of a place side by side.
        wide: How many of these places, the last ones, come from a law wider than the fit.
        step_size: Size of a leapfrog step, in sds of the fit's noise; NaN if chains differ.
        length: Mean length of a trajectory, in the same unit; NaN where it is not fixed.
        gradients: Gradients that each chain took, warm-up included; None where not counted.
        ending: Reason for which the run ended.
        seconds: Time that it took.
    """

    method: str
    num_samples: int
    warmup_steps: int
    warmup: int
    superchains: int
    wide: int
    step_size: float
    length: float
    gradients: int | None
    ending: Ending
    seconds: float


@dataclass(frozen=True, eq=False, repr=False)
class MCMCRun:
    """Draws of chains that ran through a fit; ``to_arviz`` takes it as any MCMC.

    Made by :meth:`Fit.mcmc` and :meth:`Fit.to_nuts`.

    Attributes:
        samples: Draws of each latent site, ``(chains, draws, *shape)``.
        log_p: Log joint of the constrained sites at each draw, ``(chains, draws)``, in nats.
        sample_stats: Statistics of each transition, ``(chains, draws)``, by ArviZ' names:
            ``diverging``, and of :meth:`Fit.mcmc` ``acceptance_rate`` and ``n_steps``.
        sampling: How the chains were made: a
            :class:`~pyro_nfvi.infer._mcmc_run.Sampling`.
    """

    samples: TensorDict
    log_p: Tensor
    sample_stats: TensorDict
    sampling: Sampling
    log_joint: LogJoint
    model_scope: Callable[[], AbstractContextManager[None]]
    latent: LatentSpace
    _z: Tensor
    _log_w: Tensor
    _fit_findings: tuple[Finding, ...] = ()
    _args: tuple[Any, ...] = ()
    _kwargs: dict[str, Any] = field(default_factory=dict)
    _fit_log_w: Tensor | None = None
    _log_ratio: Tensor | None = None

    # ------------------------------------------------------------------------- what it says

    @property
    def seconds(self) -> float:
        """Time that sampling took."""
        return self.sampling.seconds

    @property
    def divergences(self) -> tuple[tuple[int, ...], ...]:
        """Places of the divergent transitions, for each chain."""
        diverging = self.sample_stats["diverging"]
        return tuple(tuple(row.nonzero().squeeze(-1).tolist()) for row in diverging)

    @cached_property
    def rhat(self) -> float:
        """Largest R-hat over all numbers, rank-normalised and split; NaN below four draws."""
        return float(rank_rhat(self._z).max())

    @cached_property
    def nested_rhat(self) -> float:
        """Largest nested R-hat over all numbers, of ranks; NaN where all started at one place."""
        return float(self._nested.max())

    @cached_property
    def ess(self) -> float:
        """Smallest effective sample size (bulk) over all numbers."""
        return float(self._bulk.min())

    @cached_property
    def ess_tail(self) -> float:
        """Smallest effective sample size of the 5 % and 95 % quantiles over all numbers."""
        return float(self._tail.min())

    @cached_property
    def khat(self) -> float:
        """Shape of the tail of the fit's importance weights, seen from the posterior.

        The k-hat that the fit's own draws should have shown: a mode that the fit misses and a
        chain visits makes it large, while ``fit.khat`` cannot know of it.
        """
        return _khat(self._log_w.flatten())

    @cached_property
    def findings(self) -> tuple[ChainFinding, ...]:
        """Faults of the chains, as typed values; the verdict gives their sentences."""
        chains, draws = self.log_p.shape
        how, found = self.sampling, list[ChainFinding]()
        if draws < how.num_samples or how.warmup < how.warmup_steps:
            found.append(CutShort(how.num_samples, draws, how.warmup, how.warmup_steps, how.ending))
        moved = (self._z[:, 1:] != self._z[:, :-1]).flatten(1).any(-1)
        if draws > 1 and not bool(moved.all()):
            found.append(StuckChains(int((~moved).sum()), chains))
        if disagree := self._disagreement():
            found.append(disagree)
        elif reached := self._reached():
            found.append(reached)
        if lost := int(self.sample_stats["diverging"].sum()):
            found.append(Divergent(lost, chains * draws))
        if apart := self._evidence():
            found.append(apart)
        least = torch.minimum(self._bulk, self._tail)
        if bool((least < CHAINS.effective).any()):
            worst = int(least.nan_to_num(torch.inf).argmin())
            name = self.latent.at(worst)
            found.append(FewEffective(name, float(self._bulk[worst]), float(self._tail[worst])))
        rounding = float(self.log_p.abs().median()) * torch.finfo(self.log_p.dtype).eps
        if rounding > CHAINS.rounding:
            found.append(Rounded(rounding, str(self.log_p.dtype).removeprefix("torch.")))
        return tuple(found)

    @cached_property
    def verdict(self) -> Verdict:
        """Trust in the draws: ``"good"``, ``"usable"`` or ``"do not trust"``.

        With ``.reasons`` and ``.next_step``, from ``findings`` and from those of the fit about
        mass that it does not reach, which chains do not find either.
        """
        numbers = (
            f"R-hat up to {self.rhat:.3f}, nested R-hat up to {self.nested_rhat:.3f}, effective "
            f"draws from {self.ess:.0f}, in the tails from {self.ess_tail:.0f}"
        )
        reached = any(isinstance(one, ReachedOutside) for one in self.findings)
        kept = [one for one in self._fit_findings if not (reached and isinstance(one, MassOutside))]
        return judge_chains(self.findings, kept, numbers)

    def log_evidence(
        self, *, method: Literal["bridge", "harmonic", "importance"] = "bridge"
    ) -> tuple[float, float]:
        r"""Estimate the log evidence from the draws: ``(value, standard error)``, in nats.

        - ``"bridge"`` sets draws of the chains beside those of the fit (Meng & Wong 1996). Where
          the fit's tails are too light for importance sampling, it is the one to take.
        - ``"harmonic"`` needs the chains alone: the mean of :math:`\varphi / p(x, z)`, where
          :math:`\varphi` is the fit with base noise of variance 0.8, so that its tails are lighter
          than the posterior's (the learned harmonic mean, Polanska et al. 2024).
        - ``"importance"`` is :meth:`Fit.log_evidence`, from the fit's draws alone.

        Modes that neither fit nor chains have seen are missing from all of them. Estimates that
        differ by more than 0.1 nats and four standard errors are a finding of ``verdict``.

        Raises:
            OptionError: Another method.
            ModelError: The fit's draws have no weights (importance and bridge).

        Source: Meng & Wong 1996, Statistica Sinica 6, 831; Polanska et al. 2024, arXiv:2405.05969.
        """
        if method not in ("bridge", "harmonic", "importance"):
            raise OptionError(f"method is 'bridge', 'harmonic' or 'importance'; got {method!r}.")
        if method == "harmonic" and self._log_ratio is not None:
            return harmonic_evidence(self._log_ratio)
        if self._fit_log_w is None:
            raise ModelError(
                "The fit that the chains ran through has no importance weights: its data were "
                "scored in subsamples, or the model gives density 0 to its draws."
            )
        if method == "importance":
            return log_evidence(self._fit_log_w)
        return bridge_evidence(self._fit_log_w, self._log_w)

    def _evidence(self) -> EvidenceDisagrees | None:
        """Compare the estimates of the evidence with that by bridge sampling."""
        if self._fit_log_w is None:
            return None
        try:
            value, error = self.log_evidence()
            others = {name: self.log_evidence(method=name) for name in ("importance", "harmonic")}
        except WeightError:
            return None
        apart = {
            name: (other, spread)
            for name, (other, spread) in others.items()
            if disagree(value, error, other, spread)
        }
        if not apart:
            return None
        return EvidenceDisagrees(value, error, tuple(apart), tuple(v for v, _ in apart.values()))

    def _disagreement(self) -> ChainsDisagree | None:
        """Compare superchains, and chains by themselves where they are long enough."""
        long = self.log_p.shape[1] >= CHAINS.rhat_draws
        single = rank_rhat(self._z) if long else torch.full_like(self._nested, math.nan)
        nested, rhat = self._nested.nan_to_num(1.0), single.nan_to_num(1.0)
        excess = torch.maximum(
            (nested - 1) / (CHAINS.nested_rhat - 1), (rhat - 1) / (CHAINS.rhat - 1)
        )
        worst = int(excess.argmax())
        if excess[worst] <= 1:
            return None
        means = self._z[..., worst].double().mean(1).unflatten(0, (self.sampling.superchains, -1))
        away = (means.mean(1) - means.mean()).square()
        first_wide = self.sampling.superchains - self.sampling.wide
        share = float(away[first_wide:].sum() / away.sum().clamp_min(1e-300))
        return ChainsDisagree(
            self.latent.at(worst), float(self._nested[worst]), float(single[worst]), share
        )

    def _reached(self) -> ReachedOutside | None:
        """Look whether the chains went where the search found mass that the fit has not."""
        outside = find(self._fit_findings, MassOutside)
        if outside is None or outside.share is None or outside.level is Level.REMARK:
            return None
        log_w = self._log_w.flatten().double()
        # The mean of q / p under p is 1 over the evidence; q is the lighter one here.
        evidence = math.log(len(log_w)) - float(torch.logsumexp(-log_w, 0))
        visited = float((log_w - evidence > CHAINS.outside).double().mean())
        least = max(CHAINS.visited * outside.share, outside.share - 2 * outside.error)
        return ReachedOutside(outside.share, visited) if visited >= least else None

    @cached_property
    def _nested(self) -> Tensor:
        # Of ranks, since the posterior may have no variance.
        return nested_rhat(normal_scores(self._z.double()), self.sampling.superchains)

    @cached_property
    def _bulk(self) -> Tensor:
        return bulk_ess(self._z)

    @cached_property
    def _tail(self) -> Tensor:
        return tail_ess(self._z)

    # ------------------------------------------------------------------------ what it gives

    @property
    def kernel(self) -> Kernel:
        """The model, as Pyro's kernels hold it."""
        return Kernel(self.sampling.method, self.log_joint.model)

    @cached_property
    def deterministic(self) -> TensorDict:
        """Values of the deterministic sites at the draws, ``(chains, draws, *shape)``.

        Computed when first asked for, by a run of the model for each chunk of draws.
        """
        shape, parts = self.log_p.shape, list[TensorDict]()
        with self.model_scope():
            for rows in self._z.flatten(0, 1).split(CHAINS.rows):
                parts.append(self.log_joint.evaluate(rows, {}).deterministic)
                if not parts[-1]:
                    return {}
        return {
            name: torch.cat([part[name] for part in parts]).unflatten(0, shape) for name in parts[0]
        }

    def get_samples(
        self, *, group_by_chain: bool = False, deterministic: bool = False
    ) -> TensorDict:
        """Return draws of each latent, ``(chains * draws, *shape)``.

        Sites that a reparameteriser replaced are among them.

        Args:
            group_by_chain: Keep the axis of chains: ``(chains, draws, *shape)``.
            deterministic: Add the deterministic sites, at the data of the fit.
        """
        sites = dict(self.samples)
        if deterministic:
            sites |= self.deterministic
        elif self.log_joint.replaced:
            sites |= {name: self.deterministic[name] for name in self.log_joint.replaced}
        if group_by_chain:
            return sites
        return {name: value.flatten(0, 1) for name, value in sites.items()}

    def predict(
        self,
        *args: Any,
        sites: Sequence[str] | None = None,
        seed: int | None = None,
        from_prior: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Predictions:
        """Predict at all draws of the chains; see :meth:`Fit.predict`."""
        seed = seed_number(seed)
        with self.model_scope(), seeded(seed, "predict") if seed is not None else nullcontext():
            return predict_from(
                self.log_joint,
                self.get_samples(),
                args,
                kwargs,
                sites=sites,
                from_prior=from_prior,
            )

    def summary(self) -> Summary:
        """Return mean, sd and quantiles of every number."""
        draws = self.get_samples(deterministic=True)
        weights = torch.zeros(self.log_p.numel(), dtype=torch.float64, device=self.log_p.device)
        return Summary.of(draws, weights, self._note())

    def to_arviz(self, **options: Any) -> Any:
        """Convert for ArviZ; see :func:`pyro_nfvi.to_arviz` for the options."""
        from pyro_nfvi.arviz._to_arviz import to_arviz

        return to_arviz(self, **options)

    def _note(self) -> str:
        chains, draws = self.log_p.shape
        lost = int(self.sample_stats["diverging"].sum())
        return (
            f"{self.sampling.method} through the fit: {chains} chains of {draws} draws in "
            f"{self.seconds:.1f} s, {lost} divergent, R-hat up to {self.rhat:.3f}, ESS from "
            f"{self.ess:.0f}; k-hat of the fit seen from here {self.khat:.2f}"
        )

    def __repr__(self) -> str:
        return f"MCMCRun({self._note()}; verdict: {self.verdict})"

    def _repr_html_(self) -> str:
        from pyro_nfvi import _html

        verdict = self.verdict
        shown = _html.verdict(verdict, verdict.reasons, verdict.next_step)
        draws = {name: value.flatten(0, 1) for name, value in self.samples.items()}
        note = _html.table((), [("chains", self._note())])
        return _html.card("MCMCRun", shown, note, _html.marginals(draws))


def make_run(
    fit: FittedPosterior,
    density: FlowDensity,
    eps: Tensor,
    stats: TensorDict,
    sampling: Sampling,
    log_p: Tensor | None = None,
) -> MCMCRun:
    """Make a run of draws of base noise.

    Args:
        fit: The fit that the chains ran through, within its scope.
        density: The density of its guide.
        eps: Draws of noise ``(chains, draws, D)``.
        stats: Statistics of each transition.
        sampling: How the chains were made.
        log_p: Log density of the noise ``(chains, draws)``; without it the model is evaluated.
    """
    log_joint, shape = fit.require_model(), eps.shape[:2]
    points, ladjs = [], []
    with torch.no_grad():
        for rows in eps.flatten(0, 1).split(CHAINS.rows):
            z, ladj = density.flow(rows)
            points.append(z)
            ladjs.append(ladj)
        z, ladj = torch.cat(points), torch.cat(ladjs)
        log_q = density.base_log_prob(eps.flatten(0, 1)) - ladj
        values, inner = fit.latent.constrain(z)
        log_joint_z = log_joint(z, {}) if log_p is None else log_p.flatten() - ladj
    return MCMCRun(
        {name: value.unflatten(0, shape) for name, value in values.items()},
        (log_joint_z - inner).unflatten(0, shape),
        stats,
        sampling,
        log_joint,
        fit.model_scope,
        fit.latent,
        z.unflatten(0, shape),
        (log_joint_z - log_q).unflatten(0, shape),
        fit.training.findings,
        fit.args,
        fit.kwargs,
        fit.draws.log_w if fit.draws.smoothed() is not None else None,
        (_narrowed(density, eps.flatten(0, 1), log_q) - log_joint_z).unflatten(0, shape),
    )


def _narrowed(density: FlowDensity, eps: Tensor, log_q: Tensor) -> Tensor:
    """Log density of the guide with narrower base noise; of other noise than normal, its own."""
    if density.base is not None:
        return log_q
    variance = EVIDENCE.temperature
    square = eps.double().square().sum(-1)
    change = -0.5 * square * (1 / variance - 1) - 0.5 * eps.shape[-1] * math.log(variance)
    return log_q + change.to(log_q)


def _khat(log_w: Tensor) -> float:
    """k-hat as draws of the guide would have it, from weights at draws of the posterior.

    Weights with tail index k under q have k / (1 - k) under p, each draw of which comes up in
    proportion to its weight.
    """
    try:
        seen = psis(log_w.detach()).khat
    except WeightError:
        return math.inf
    if not math.isfinite(seen):
        return seen
    return seen / (1 + seen) if seen > 0 else seen
