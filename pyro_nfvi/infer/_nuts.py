"""NUTS in the space that a flow has straightened: the exact sampler that a fit hands over to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from pyro_nfvi._chain_rule import scored
from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._random import fresh_seed, seeded
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.errors import ModelError, WeightError
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.infer._fitted import FittedPosterior
from pyro_nfvi.infer._predict import Predictions, predict_from
from pyro_nfvi.infer._scopes import own_random_state
from pyro_nfvi.infer._summary import Summary


@dataclass(frozen=True)
class _Kernel:
    """The part of a kernel that ``to_arviz`` reads."""

    model: Callable[..., Any]


@dataclass(frozen=True, eq=False, repr=False)
class NutsRun:
    """Draws of NUTS that ran through a fitted flow; ``to_arviz`` takes it as any MCMC.

    Attributes:
        samples: Draws of each latent site, ``(chains, draws, *shape)``.
        deterministic: Values of the deterministic sites at them, ``(chains, draws, *shape)``.
        log_p: Log joint of the constrained sites at each draw, ``(chains, draws)``, in nats.
        khat: Shape of the tail of the fit's importance weights, seen from the posterior: the
            k-hat that the fit's own draws should have shown. A mode that the fit misses and a
            chain visits makes it large, while ``fit.khat`` cannot know of it.
        divergences: Places of the divergent transitions, a list for each chain.
        rhat: Largest split R-hat over all numbers; NaN for fewer than four draws.
        ess: Smallest effective sample size over all numbers.
        seconds: Time that sampling took.
    """

    samples: TensorDict
    deterministic: TensorDict
    log_p: Tensor
    khat: float
    divergences: tuple[tuple[int, ...], ...]
    rhat: float
    ess: float
    seconds: float
    kernel: _Kernel
    log_joint: LogJoint
    model_scope: Callable[[], AbstractContextManager[None]]
    _args: tuple[Any, ...] = ()
    _kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def _diagnostics(self) -> list[dict[str, Any]]:
        return [{"divergences": list(places)} for places in self.divergences]

    def get_samples(
        self, *, group_by_chain: bool = False, deterministic: bool = False
    ) -> TensorDict:
        """Return draws of each latent, ``(chains * draws, *shape)``.

        Sites that a reparameteriser replaced are among them.

        Args:
            group_by_chain: Keep the axis of chains: ``(chains, draws, *shape)``.
            deterministic: Add the deterministic sites, at the data of the fit.
        """
        fixed = self.deterministic
        if not deterministic:
            fixed = {name: fixed[name] for name in self.log_joint.replaced}
        sites = {**self.samples, **fixed}
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
        lost = sum(map(len, self.divergences))
        return (
            f"NUTS through the flow: {chains} chains of {draws} draws in {self.seconds:.1f} s, "
            f"{lost} divergent, R-hat up to {self.rhat:.3f}, ESS from {self.ess:.0f}; "
            f"k-hat of the fit seen from here {self.khat:.2f}"
        )

    def __repr__(self) -> str:
        return f"NutsRun({self._note()})"


def to_nuts(
    fit: FittedPosterior,
    *,
    num_samples: int = 500,
    warmup_steps: int = 300,
    num_chains: int = 2,
    seed: int | None = None,
    progress: bool = True,
) -> NutsRun:
    """Run NUTS through the flow; see :meth:`Fit.to_nuts`."""
    num_samples = whole("num_samples", num_samples)
    num_chains = whole("num_chains", num_chains)
    warmup_steps = whole("warmup_steps", warmup_steps, 0)
    log_joint = fit.require_model()
    if log_joint.subsampled:
        name = next(iter(log_joint.subsampled))
        raise ModelError(
            f"NUTS needs the whole density, and the plate {name!r} subsamples. Build the fit or "
            "load it with a model that has the whole plate."
        )
    if isinstance(fit.guide, AutoMixture):
        raise ModelError(
            f"NUTS runs through one flow, and this fit is a mixture over "
            f"{fit.guide.num_components} modes: a chain would stay in the mode where it starts, "
            "and chains would not tell the modes' masses. Use fit.resample(n); or fit one mode "
            "with guide='iaf*2' and run NUTS from that."
        )
    begin = time.monotonic()
    seed = fresh_seed() if seed is None else seed
    density = fit.guide.density()
    flow = density.flow
    frozen = [p for p in fit.guide.parameters() if p.requires_grad]

    def potential(point: TensorDict) -> Tensor:
        z, ladj = flow(point["eps"].unsqueeze(0))
        return -(scored(lambda point: log_joint(point, {}), z) + ladj).sum()

    parts, places = [], []
    with own_random_state(seed, "nuts"), fit.model_scope(), _Frozen(frozen), scoring(flow):
        for _ in range(num_chains):
            # Each chain starts at a draw of the guide, which is a typical point of the flow.
            start = _start(density.sample_base, potential)
            kernel = NUTS(potential_fn=potential)
            mcmc = MCMC(
                kernel,
                num_samples=num_samples,
                warmup_steps=warmup_steps,
                initial_params={"eps": start},
                disable_progbar=not progress,
            )
            with pyro.validation_enabled(False):
                mcmc.run()
            parts.append(mcmc.get_samples()["eps"])
            found = (mcmc._diagnostics[0] or {}).get("divergences", [])
            places.append(tuple(int(index) for index in found if 0 <= int(index) < num_samples))
        eps = torch.stack(parts)
        with torch.no_grad():
            z, log_q = density.push(eps.flatten(0, 1))
            values, ladj = fit.latent.constrain(z)
        evaluated = log_joint.evaluate(z, {})
    shape = eps.shape[:2]
    samples, fixed = (
        {name: value.unflatten(0, shape) for name, value in sites.items()}
        for sites in (values, evaluated.deterministic)
    )
    rhat, ess = _mixing(z.unflatten(0, shape))
    return NutsRun(
        samples,
        fixed,
        (evaluated.log_p - ladj).unflatten(0, shape),
        _khat(evaluated.log_p - log_q),
        tuple(places),
        rhat,
        ess,
        time.monotonic() - begin,
        _Kernel(log_joint.model),
        log_joint,
        fit.model_scope,
        fit.args,
        fit.kwargs,
    )


class _Frozen:
    """Freezes parameters for a while: only the point that moves needs a gradient."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._parameters = parameters

    def __enter__(self) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(False)

    def __exit__(self, *error: object) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(True)


def _start(draw: Callable[[int], Tensor], potential: Callable[[TensorDict], Tensor]) -> Tensor:
    """A draw of the base at which the model can be scored."""
    for eps in _rows(draw, 100):
        with torch.no_grad():
            if bool(torch.isfinite(potential({"eps": eps}))):
                return eps
    raise ModelError(
        "NUTS found no start: the model gives density 0 to 100 draws of the fit. The fit is far "
        "from the posterior; see fit.report."
    )


def _rows(draw: Callable[[int], Tensor], count: int) -> Iterator[Tensor]:
    for _ in range(count):
        yield draw(1)[0].detach()


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


def _mixing(z: Tensor) -> tuple[float, float]:
    """Largest split R-hat and smallest effective sample size of ``z (chains, draws, D)``."""
    if z.shape[1] < 4:
        return math.nan, math.nan
    z = z.double()
    return float(split_gelman_rubin(z).max()), float(effective_sample_size(z).min())
