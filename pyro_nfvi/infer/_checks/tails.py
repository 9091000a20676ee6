"""Tails: which marginals fall as a power, and whether a guide lacks the weight of its tails."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._gaussian_vi.tail_index import tail_indices, tail_moments
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.errors import NFVIError
from pyro_nfvi.infer._checks.reaching_draws import ReachingDraws, weighted_moments
from pyro_nfvi.infer._findings import HeavyTails, ShortTails
from pyro_nfvi.infer._fitted import FittedPosterior
from pyro_nfvi.infer._recipe import CALL_SIZES, TAIL_CHECK
from pyro_nfvi.infer._weighted_draws import WeighedDraws

#: The layer that is put at the output of a flow.
TAIL = "tail"
#: Rows of the model that following all tails takes, as a rule, by how particles are evaluated.
TAIL_ROWS = {"plate": TAIL_CHECK.rows, "vmap": TAIL_CHECK.rows, "loop": 0}


def follow_tails(
    latent: LatentSpace, log_joint: LogJoint, draws: WeighedDraws, budget: Budget = UNLIMITED
) -> HeavyTails:
    """Follow the marginal of each number outwards, and return which fall as a power.

    Numbers for which there is no time left count as unknown.

    Cost:
        Some tens of calls of the model, of up to 8000 rows.
    """
    if log_joint.in_parts:
        return HeavyTails(looked=False)
    indices = tail_indices(
        Target(log_joint, latent.init_loc, budget=budget),
        draws.z,
        lambda z: seen(latent, z),
        most_rows=max(100, min(TAIL_CHECK.most_rows, CALL_SIZES.ascent // max(1, log_joint.size))),
    )
    heaviest = indices.nan_to_num(torch.inf).amin(1)
    heavy = (heaviest < TAIL_CHECK.reported).nonzero().squeeze(-1)
    order = heavy[heaviest[heavy].argsort()].tolist()
    return HeavyTails(
        tuple(latent.at(i) for i in order),
        tuple(float(heaviest[i]) for i in order),
        int(indices.isnan().sum()),
    )


def short_tails(
    latent: LatentSpace,
    log_joint: LogJoint,
    draws: WeighedDraws,
    heavy: tuple[str, ...],
    budget: Budget = UNLIMITED,
    reaching: ReachingDraws | None = None,
) -> ShortTails:
    """Tell which numbers' draws stop short of where the density goes on, in up to 30 latents.

    The sd that a number has by the weights of draws that reach into the guide's tails, times the
    factor by which the tails of the density beyond these enlarge it, over the sd of the guide.

    Args:
        latent: The latent space.
        log_joint: The model.
        draws: Draws of the fit.
        heavy: Numbers without a variance, which are left out.
        budget: Time; numbers for which there is none left are left out.
        reaching: Draws that reach into the guide's tails, where there are any.

    Cost:
        Some tens of calls of the model, of up to 8000 rows.
    """
    if log_joint.in_parts or latent.dim > TAIL_CHECK.short_dim:
        return ShortTails()
    ratio = tail_moments(
        Target(log_joint, latent.init_loc, budget=budget),
        draws.z if reaching is None else reaching.resampled(),
        lambda z: seen(latent, z),
        most_rows=max(100, min(TAIL_CHECK.most_rows, CALL_SIZES.ascent // max(1, log_joint.size))),
    )
    whole, error = ratio, torch.zeros_like(ratio)
    if reaching is not None:
        x = seen(latent, reaching.z).double()
        _, sd, _, terms = weighted_moments(x, reaching.posterior)
        _, own, _, own_terms = weighted_moments(x, reaching.own)
        whole = ratio * sd / own
        error = (terms - own_terms).square().sum(0).sqrt()
    short = (ratio > TAIL_CHECK.beyond) & (whole - 2 * error > 1) & (whole > TAIL_CHECK.short)
    places = short.nonzero().squeeze(-1)
    order = places[whole[places].argsort(descending=True)].tolist()
    found = [(latent.at(i), float(whole[i])) for i in order if latent.at(i) not in heavy]
    return ShortTails(tuple(name for name, _ in found), tuple(size for _, size in found))


def seen(latent: LatentSpace, z: Tensor) -> Tensor:
    """Give points ``(N, D)`` with each number in its own space.

    Entries of a simplex and of a matrix, of which there are more than coordinates, are those that
    grow with theirs: all but the last, and those of the lower triangle.
    """
    points = z.clone()
    values, _ = latent.constrain(z)
    for site in latent.records:
        value = values[site.name]
        if site.shape != site.unconstrained_shape:
            value = _independent(value, len(site.shape), site.unconstrained_shape)
        if value.numel() == len(z) * (site.stop - site.start):
            points[:, site.start : site.stop] = value.reshape(len(z), -1)
    return points


def _independent(value: Tensor, dims: int, coordinates: Sequence[int]) -> Tensor:
    """The entries of a simplex, or of a matrix, that stand for coordinates of the given shape."""
    n = value.shape[-1]
    if len(coordinates) == dims:
        return value[..., :-1]
    offset = {n * (n + 1) // 2: 0, n * (n - 1) // 2: -1}.get(coordinates[-1])
    if offset is None or value.shape[-2] != n:
        return value
    rows, columns = torch.tril_indices(n, n, offset, device=value.device)
    return value[..., rows, columns]


def heavy_tails(fit: FittedPosterior) -> bool:
    r"""Tell whether the posterior has heavier tails than the guide.

    Its weighted draws are asked: they are taken back to the guide's base noise, and reweighted
    there. A coordinate with :math:`E[(\varepsilon-\mu)^4] > 4.2\,\sigma^4` is heavy. Draws have
    few of the far points that decide, so this errs towards not seeing; :func:`follow_tails` asks
    the density, and sees power laws alone.
    """
    smoothed = fit.draws.smoothed()
    if smoothed is None or not fit.draws.exact or fit.tail.close:
        return False
    try:
        with torch.no_grad(), scoring(fit.guide):
            eps, _ = fit.guide.transport().inverse(fit.draws.z)
    except (NFVIError, NotImplementedError, RuntimeError):
        return False
    ok = torch.isfinite(eps).all(-1)
    if int(ok.sum()) < len(ok) // 2:
        return False
    weights = smoothed.log_weights[ok].to(eps.device, torch.float64).softmax(0).unsqueeze(-1)
    eps = eps[ok].double()
    apart = eps - (weights * eps).sum(0)
    square = (weights * apart.square()).sum(0)
    fourth = (weights * apart.pow(4)).sum(0) / square.square().clamp_min(1e-300)
    return bool((fourth > TAIL_CHECK.kurtosis).any())


def with_tail(formula: str) -> str:
    """Put a tail layer at the output.

    Example:
        >>> with_tail("iaf*2")
        'iaf*2|tail'
    """
    return f"{formula}|{TAIL}"
