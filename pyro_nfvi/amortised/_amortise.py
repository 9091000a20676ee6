"""``amortise``: a posterior for all data sets of a model, from simulations of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pyro_nfvi._option_names import knows_options
from pyro_nfvi._pyro_model.model_checks import check_model
from pyro_nfvi._random import fold_in, fresh_seed, seeded, stream
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.amortised._amortised_posterior import (
    AmortisedPosterior,
    TrainingRecord,
    summarised,
)
from pyro_nfvi.amortised._model_simulations import ModelSimulations, Simulations
from pyro_nfvi.amortised._rank_calibration import rank
from pyro_nfvi.amortised._recipe import JUDGEMENT, NETWORKS, SIMULATIONS
from pyro_nfvi.amortised._summarised_flow import SummarisedFlow
from pyro_nfvi.amortised._summary_networks import Scaling, make_summary
from pyro_nfvi.amortised._typicality import Neighbourhood
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.distributions._maximum_likelihood import DensityFit
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Chain, Flow
from pyro_nfvi.flows._normalization import ActNorm
from pyro_nfvi.flows._registry import check_formula, make_flow


@knows_options
def amortise(
    model: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    observed: str | Sequence[str] | Mapping[str, str] | None = None,
    sites: str | Sequence[str] | None = None,
    num_simulations: int = 10_000,
    flow: str = "nsf*5",
    flow_options: Mapping[str, Any] | None = None,
    summary: str | nn.Module | None = None,
    training: Mapping[str, Any] | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> AmortisedPosterior:
    r"""Train one density for the posteriors of all data sets that a model simulates.

    .. math:: \max_\phi\; \mathbb{E}_{p(\theta)\,p(x \mid \theta)} \log q_\phi(\theta \mid x)

    (neural posterior estimation). The model is run forward only, so it needs no density of its
    data: an observed site may be a ``pyro.deterministic`` of sampled noise. Where it has one,
    importance weights judge the posterior of each data set, and ``posterior.refine(data)`` trains
    it further.

    Latents are inferred on the reals, by the transforms of their supports; latents and data are
    scaled by the simulations. A tenth of these is held out, ends the training, and is the first
    calibration. Simulations run together in a plate left of the model's, else by ``torch.vmap``,
    else one by one: each way is compared with the model run alone. ``posterior.report`` names it.

    Args:
        model: The Pyro model, with proper priors.
        args: Its positional arguments, as a tuple.
        kwargs: Its keyword arguments.
        observed: Which sites are data: all observed ones of the call (None), or names. With
            ``{site: argument}`` a draw is passed as that keyword argument too, which is None
            while drawing.
        sites: Latent sites to infer: all continuous ones (None), or names. Others, discrete ones
            among them, are drawn in each simulation, and so summed out.
        num_simulations: Runs of the model.
        flow: Formula of a flow (:func:`pyro_nfvi.flows.make_flow`) that takes a context. For one
            latent ``"nsf*5"``, which needs two, is ``"nsf-ar*2"``.
        flow_options: Options of the flow, such as ``{"hidden_dim": (50, 50)}``, the default.
        summary: None: the data as they are. ``"set"``: rows in any order (the first axis of the
            one observed site). ``"series"``: steps in time, likewise. Or a network of your own,
            from ``(n, *shape of the site)`` to ``(n, K)``; it is trained.
        training: Options of :meth:`FlowDensity.fit`: ``max_steps``, ``batch_size``, ``lr``, ...
        seed: Same seed, same result; None draws one. Torch's own random state is not touched.
        progress: Show a bar.

    Returns:
        The posterior; ``posterior(data)`` is that of a data set.

    Cost:
        ``num_simulations`` runs of the model, and minutes of training.

    Raises:
        ModelError: The model cannot be simulated: an improper prior, a ``pyro.factor``, trained
            parameters; or too many simulations are not finite.
        OptionError: An option that cannot be used; a site that the model does not have.

    Warns:
        DataWarning: Some simulations are not finite, and are left out.

    Source: Papamakarios & Murray 2016, arXiv:1605.06376; Greenberg et al. 2019, arXiv:1905.07488;
    neural spline flows of Durkan et al. 2019, arXiv:1906.04032.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> import pyro_nfvi as nfvi
        >>> def model():
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     noise = pyro.sample("noise", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        ...     pyro.deterministic("y", rate.unsqueeze(-1) + 0.1 * noise)
        >>> posterior = nfvi.amortise(
        ...     model, observed="y", sites="rate", num_simulations=1000, flow="affine", seed=0,
        ...     progress=False,
        ... )
        >>> fit = posterior(torch.tensor([2.0, 2.1, 1.9]))
        >>> round(fit.summary()["rate"].mean)
        2
    """
    begin = time.monotonic()
    check_model("amortise", model)
    if not isinstance(args, tuple):
        raise OptionError(
            f"args is a tuple of the model's arguments, as in (x,); got {type(args).__name__}."
        )
    num_simulations = whole("num_simulations", num_simulations)
    if num_simulations < SIMULATIONS.fewest:
        raise OptionError(
            f"num_simulations needs to be at least {SIMULATIONS.fewest}: a tenth is held out, and "
            f"ends the training; got {num_simulations}."
        )
    check_formula(flow, flow_options or {})
    chosen = seed_number(seed)
    base = fresh_seed() if chosen is None else chosen
    simulations = ModelSimulations(model, args, kwargs or {}, observed, sites)
    made = simulations.run(num_simulations, fold_in(base, "amortise"))
    train, held = _split(made, base)
    scaling, density, formula = _build(simulations, train, flow, flow_options or {}, summary, base)
    fitted = _fit(density, scaling, train, held, training or {}, base, progress=progress)
    density.requires_grad_(False)
    scaled = scaling(train.x)
    homes = [Neighbourhood.of(scaled, base)]
    if summary is not None:
        with torch.no_grad():
            homes.append(Neighbourhood.of(summarised(density.flow, scaled), base))
    ranks = rank(
        density, simulations.latent, held.z, scaling(held.x),
        num_draws=JUDGEMENT.rank_draws, level=0.01, seed=base,
    )  # fmt: skip
    record = TrainingRecord(
        formula,
        summary if isinstance(summary, str) else type(summary).__name__ if summary else "",
        num_simulations,
        made.left_out,
        simulations.how,
        fitted.steps,
        -fitted.best,
        fitted.reason,
        time.monotonic() - begin,
        base,
    )
    ranges = torch.stack([train.x.amin(0), train.x.amax(0)])
    return AmortisedPosterior(simulations, density, scaling, homes, ranges, ranks, record)


def _split(made: Simulations, seed: int) -> tuple[Simulations, Simulations]:
    """Divide simulations into those to train on and those to hold out."""
    order = torch.randperm(len(made.z), generator=stream(seed, "held out"))
    order, count = order.to(made.z.device), round(SIMULATIONS.held_share * len(made.z))
    held, train = order[:count], order[count:]
    return (
        Simulations(made.z[train], made.x[train], made.left_out),
        Simulations(made.z[held], made.x[held], 0),
    )


def _build(
    simulations: ModelSimulations,
    train: Simulations,
    formula: str,
    options: Mapping[str, Any],
    summary: str | nn.Module | None,
    seed: int,
) -> tuple[Scaling, FlowDensity, str]:
    """Make the conditional density, at its start, and the scaling of its data."""
    latent = simulations.latent
    with seeded(seed, "amortise: networks"):
        scaling, network, size = make_summary(summary, simulations.layout, latent.dim)
        if latent.dim == 1 and formula == "nsf*5":
            formula = "nsf-ar*2"
        inner = conditional_flow(formula, latent.dim, size, options)
    flow: Flow = inner
    if network is not None:
        flow = SummarisedFlow(inner, network, simulations.layout.dim)
    density = FlowDensity(Chain(flow, ActNorm(latent.dim))).to(latent.init_loc)
    scaling = scaling.to(latent.init_loc.device)
    scaling.to(latent.init_loc.dtype)
    scaling.set_from(train.x)
    return scaling, density, formula


def conditional_flow(formula: str, dim: int, size: int, options: Mapping[str, Any]) -> Flow:
    """Build a flow of a context, with networks as wide as ``NETWORKS`` says.

    Raises:
        OptionError: The flow takes no context.
    """
    # Families differ in what they take: several widths, one, or none.
    widths = (NETWORKS.hidden_dim, max(NETWORKS.hidden_dim))
    made: Flow | None = None
    for width in () if "hidden_dim" in options else widths:
        try:
            made = make_flow(formula, dim, size, **{"hidden_dim": width, **options})
            break
        except OptionError:
            continue
    made = make_flow(formula, dim, size, **options) if made is None else made
    if not made.context_dim:
        raise OptionError(
            f"The flow {formula!r} takes no context, so it could not depend on the data. Take "
            "'nsf*5', 'maf*5' or another."
        )
    return made


def _fit(
    density: FlowDensity,
    scaling: Scaling,
    train: Simulations,
    held: Simulations,
    options: Mapping[str, Any],
    seed: int,
    *,
    progress: bool,
) -> DensityFit:
    """Fit the conditional density to simulations."""
    own = {"seed": fold_in(seed, "amortise: training"), "progress": progress}
    valid = (held.z, scaling(held.x))
    return density.fit(train.z, scaling(train.x), valid=valid, **{**own, **options})
