"""Leave-one-out by importance sampling whose proposal is adapted to each hard observation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_nfvi._option_names import knows_options
from pyro_nfvi._pyro_model.pyro_state import takes_turn
from pyro_nfvi._random import seeded
from pyro_nfvi._user_warning import warn
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.arviz._elpd import Observations, elpd_data
from pyro_nfvi.arviz._labels import Labels
from pyro_nfvi.arviz._loo import leave_each_out
from pyro_nfvi.arviz._model_view import ModelView
from pyro_nfvi.arviz._recipe import RECIPE
from pyro_nfvi.diagnostics._psis import PSIS, khat_threshold, psis
from pyro_nfvi.errors import ConversionWarning, OptionError, WeightError
from pyro_nfvi.infer._fit import Fit

#: ``z (S, D)`` to log joint and log density of one observation, both ``(S,)``.
Densities = Callable[[Tensor], tuple[Tensor, Tensor]]


@knows_options
@takes_turn
def loo_moment_match(
    fit: Fit,
    *,
    var_name: str | None = None,
    num_samples: int = 4000,
    seed: int = 0,
) -> Any:
    r"""Leave-one-out predictive density, with draws moved to where an observation is left out.

    For each observation whose weights have a k-hat above 0.5, the draws
    :math:`z_s \sim q` are mapped by an affine :math:`T` to the weighted mean, or the weighted
    variances or covariance too, of

    .. math:: w_{is} \propto \frac{p(z_s, y)}{q_T(z_s)\, p(y_i \mid z_s)}, \qquad
        q_T(z) = \frac{q(T^{-1} z)}{|\det T|};

    again and again, by the one that makes k-hat smallest, until none makes it smaller. At the end
    half of the draws are mapped and half are not, with the density of that mixture,
    :math:`(q + q_T)/2`, in the weights, since the predictive density needs draws from the posterior
    with the observation too. The guide's density is exact, so the draws need not be those of the
    posterior.

    Args:
        fit: A fit of one vector, with its model.
        var_name: The observed site, if there are several.
        num_samples: Draws S from the guide.
        seed: Of the draws. Torch's own random state is neither read nor changed.

    Returns:
        ArviZ's ``ELPDData``, as of :func:`loo_approximate`. The ``pareto_k`` of a matched
        observation is the larger one of the two sets of weights behind it, with and without the
        observation.

    Units:
        Nats.

    Cost:
        One run of the model for S draws, and up to some thirty of them for each observation that is
        matched.

    Raises:
        OptionError: A fit of rows of plates (:func:`pyro_nfvi.map_fits` leaves rows out by
            refits), a model that observes nothing or subsamples, or an unknown site.
        ModelError: The fit was loaded without its model.

    Warns:
        ConversionWarning: Observations stay above 0.5, as where a posterior is ten times as wide
            without one. Refit without them: :func:`reloo`.

    Source: Paananen, Piironen, Bürkner & Vehtari 2021, Statistics and Computing 31(16),
    algorithms 1 and 2 (arXiv:1906.08850), which match above 0.7 alone and take the first map that
    makes k-hat smaller.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import NFVI
        >>> from pyro_nfvi.arviz import loo_moment_match
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 9.0])
        >>> fit = NFVI(model, "affine", max_steps=100, seed=0, progress=False).run(y)
        >>> bool((loo_moment_match(fit).pareto_k < 0.7).all())
        True
    """
    if not isinstance(fit, Fit):
        raise OptionError(
            f"loo_moment_match takes a fit of one vector; got {type(fit).__name__}. Leave rows out "
            "by refits instead: reloo(FitSpec(model, args))."
        )
    count = whole("num_samples", num_samples, least=2)
    log_joint, density = fit.require_model(), fit.guide.density()
    with fit.model_scope(), seeded(seed_number(seed) or 0, "loo_moment_match"), torch.no_grad():
        z, log_q = density.push(density.sample_base(count))
        first = {name: value[0] for name, value in fit.latent.constrain(z)[0].items()}
        view = ModelView(log_joint.model, log_joint.args, log_joint.kwargs, first)
        name = _site(view, var_name)
        scale = view.own_scale(name)
        if isinstance(scale, Tensor) and scale.dim():
            raise OptionError(
                f"The site {name!r} is under a poutine.scale with a weight for each row, so that "
                "its rows do not count alike. Give each row the weight 1."
            )
        log_p, each = _densities(view, name, z)
        shape = each.shape[1:]
        each, log_w = each.flatten(1), _finite(log_p - log_q)
        terms, khats = leave_each_out(log_w, each, float(scale))
        for index in np.flatnonzero(khats > RECIPE.matched_khat):
            start = _Draws(z.double(), log_p, log_q.double(), each[:, index], float(scale))

            def at(z: Tensor, index: int = int(index)) -> tuple[Tensor, Tensor]:
                log_p, each = _densities(view, name, z)
                return log_p, each.flatten(1)[:, index]

            found = _match(start, at, lambda points: density.log_prob(points.to(z)).double())
            if found is not None:
                terms[index], khats[index] = found
        whole_weights = psis(log_w).log_weights
        log_density = torch.logsumexp(whole_weights[:, None] + each, 0).numpy()
        labels = Labels(view.trace, view.subsample)
    bad = int((khats > min(RECIPE.matched_khat, khat_threshold(count))).sum())
    if bad:
        warn(
            f"{bad} of {len(khats)} observations keep a k-hat above {RECIPE.matched_khat} after "
            "moment matching, so that their terms may be off. Refit without them: "
            "reloo(FitSpec(model, args), loo).",
            ConversionWarning,
        )
    dims = labels.batch(name, tuple(shape))
    coords = {dim: values for dim, values in labels.coords().items() if dim in dims}
    terms, log_density, khats = (one.reshape(shape) for one in (terms, log_density, khats))
    return elpd_data(Observations(terms, log_density, khats, dims, coords), count)


@dataclass(frozen=True)
class _Draws:
    """Draws with the densities that weights are made of; all ``(S,)`` but ``z (S, D)``."""

    z: Tensor
    log_p: Tensor
    log_q: Tensor
    log_likelihood: Tensor
    scale: float

    def weights(self) -> PSIS:
        """Smoothed weights for the posterior without the observation."""
        return psis(_finite(self.log_p - self.log_q - self.scale * self.log_likelihood))


@dataclass(frozen=True)
class _Affine:
    """The map ``z -> loc + matrix (z - center)``."""

    center: Tensor
    loc: Tensor
    matrix: Tensor

    @property
    def log_det(self) -> Tensor:
        """Logarithm of the absolute value of its determinant."""
        return torch.linalg.slogdet(self.matrix).logabsdet

    def __call__(self, z: Tensor) -> Tensor:
        return self.loc + (z - self.center) @ self.matrix.T

    def inverse(self, z: Tensor) -> Tensor:
        """Map back."""
        return self.center + torch.linalg.solve(self.matrix, (z - self.loc).T).T


def _match(
    start: _Draws, densities: Densities, log_q: Callable[[Tensor], Tensor]
) -> tuple[float, float] | None:
    """Return predictive density and k-hat of one observation, or None where no map helps."""
    here, maps = start, []
    try:
        best = start.weights()
        for _ in range(RECIPE.matching_rounds):
            tried = []
            for one in _maps(here.z, best.log_weights.exp()):
                z = one(here.z)
                log_p, log_likelihood = densities(z)
                moved = _Draws(z, log_p, here.log_q - one.log_det, log_likelihood, start.scale)
                tried.append((moved.weights(), moved, one))
            weights, moved, one = min(tried, key=lambda found: found[0].khat)
            if weights.khat >= best.khat:
                break
            here, best = moved, weights
            maps.append(one)
        if not maps:
            return None
        half = len(start.z) // 2
        z = torch.cat([here.z[:half], start.z[half:]])
        back, log_det = z, torch.zeros(())
        for one in reversed(maps):
            back, log_det = one.inverse(back), log_det + one.log_det
        mixed = torch.logaddexp(log_q(z), log_q(back) - log_det) - math.log(2)
        log_p, log_likelihood = (
            torch.cat([a[:half], b[half:]])
            for a, b in (
                (here.log_p, start.log_p),
                (here.log_likelihood, start.log_likelihood),
            )
        )
        both = _Draws(z, log_p, mixed, log_likelihood, start.scale)
        without = both.weights()
        # Draws of the posterior that has the observation too carry the predictive density.
        khat = max(without.khat, psis(_finite(log_p - mixed)).khat)
    except (WeightError, torch.linalg.LinAlgError):
        return None  # no draw is possible under the model there
    return float(torch.logsumexp(without.log_weights + log_likelihood, 0)), khat


def _maps(z: Tensor, weights: Tensor) -> Iterator[_Affine]:
    """Maps to the weighted mean, with the variances too, and with the covariance too."""
    center, loc, eye = z.mean(0), weights @ z, torch.eye(z.shape[1]).to(z)
    yield _Affine(center, loc, eye)
    weighted, plain = (z - loc).square().T @ weights, z.var(0, correction=0)
    yield _Affine(center, loc, torch.diag((weighted / plain).sqrt()))
    if len(z) < RECIPE.draws_per_latent * z.shape[1]:
        return
    target = (z - loc).T @ ((z - loc) * weights[:, None])
    ahead, info = torch.linalg.cholesky_ex(target)
    behind, other = torch.linalg.cholesky_ex(torch.cov(z.T, correction=0).reshape(target.shape))
    if not bool(info) and not bool(other):
        yield _Affine(
            center, loc, torch.linalg.solve_triangular(behind, ahead, upper=False, left=False)
        )


def _densities(view: ModelView, name: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """Log joint of the vector ``(S,)`` and log densities of a site ``(S, *batch)``, in float64."""
    log_p, each = [], []
    for start in range(0, len(z), view.rows):
        rows = z[start : start + view.rows].to(view.latent.init_loc)
        values, ladj = view.latent.constrain(rows)
        for part in view.evaluate(values, deterministic=False, log_likelihood=[name]):
            log_p.append(part.log_p + ladj)
            each.append(part.log_likelihood[name])
    return torch.cat(log_p).double(), torch.cat(each).double()


def _finite(log_w: Tensor) -> Tensor:
    """Weights in float64; a draw that the model cannot score has none."""
    return torch.where(log_w < math.inf, log_w, -math.inf).double()


def _site(view: ModelView, asked: str | None) -> str:
    """Choose the observed site."""
    factors = [name for name, inside in view.factors().items() if inside]
    names = [*view.observed(), *factors]
    if view.mini_batch:
        raise OptionError(
            f"The model subsamples ({view.mini_batch}), and leaving one out needs all rows. Give "
            "a fit of the model with the whole plate."
        )
    if not names:
        raise OptionError("The model observes nothing that could be left out.")
    if asked is None and len(names) > 1:
        raise OptionError(f"Name the observed site: var_name is one of {', '.join(names)}.")
    name = names[0] if asked is None else asked
    if name not in names:
        raise OptionError(f"There is no log likelihood of {name!r}; there are {', '.join(names)}.")
    if name in view.log_joint.term_faults:
        raise OptionError(view.log_joint.term_faults[name])
    return name
