"""``amortise``: a posterior for all data sets of a model, from simulations of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from pyro_nfvi._option_names import knows_options
from pyro_nfvi._pyro_model.model_checks import check_model
from pyro_nfvi._random import fresh_seed
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.amortised._recipe import SIMULATIONS
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._registry import check_formula

if TYPE_CHECKING:
    from pyro_nfvi.amortised._amortised_likelihood import AmortisedLikelihood
    from pyro_nfvi.amortised._amortised_posterior import AmortisedPosterior


@knows_options
def amortise(
    model: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    observed: str | Sequence[str] | Mapping[str, str] | None = None,
    sites: str | Sequence[str] | None = None,
    method: str = "posterior",
    num_simulations: int = 10_000,
    rounds: int = 1,
    data: Any = None,
    flow: str = "nsf*5",
    flow_options: Mapping[str, Any] | None = None,
    summary: str | nn.Module | None = None,
    training: Mapping[str, Any] | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> AmortisedPosterior | AmortisedLikelihood:
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
        method: ``"posterior"`` trains :math:`q(\theta \mid x)`. ``"likelihood"`` trains
            :math:`q(x \mid \theta)`, and each call with data fits the posterior under the model's
            own prior by :class:`NFVI`: for a single data set, and few simulations. Data are
            continuous then, and there is no summary.
        num_simulations: Runs of the model, in all rounds together.
        rounds: More than one spend the simulations near the posterior of one data set: the
            posterior's are of the prior, cut to the region of highest density of the posterior of
            the round before (truncated proposals), the likelihood's are draws of that posterior.
        data: That data set.
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
    if method not in ("posterior", "likelihood"):
        raise OptionError(f"method is 'posterior' or 'likelihood'; got {method!r}.")
    check_formula(flow, flow_options or {})
    chosen = seed_number(seed)
    base = fresh_seed() if chosen is None else chosen
    _check_rounds(rounds, data, num_simulations)
    # Simulator, training and judgement, which only a run needs.
    from pyro_nfvi.amortised._model_simulations import ModelSimulations
    from pyro_nfvi.amortised._training_plan import TrainingPlan

    simulations = ModelSimulations(model, args, kwargs or {}, observed, sites)
    plan = TrainingPlan(
        simulations, num_simulations, rounds, data, flow, dict(flow_options or {}), summary,
        dict(training or {}), base, progress, begin,
    )  # fmt: skip
    return plan.posterior() if method == "posterior" else plan.likelihood()


def _check_rounds(rounds: int, data: Any, num_simulations: int) -> None:
    """Check the rounds, and that there is a data set for those after the first."""
    rounds = whole("rounds", rounds)
    if rounds > 1 and data is None:
        raise OptionError(
            f"rounds={rounds} spend simulations near the posterior of one data set: pass data=."
        )
    if rounds == 1 and data is not None:
        raise OptionError(
            "data are for rounds=2 and more; one round is for all data sets: call the result with "
            "them."
        )
    if num_simulations // rounds < SIMULATIONS.fewest:
        raise OptionError(
            f"{num_simulations} simulations in {rounds} rounds are fewer than "
            f"{SIMULATIONS.fewest} in each: raise num_simulations."
        )
