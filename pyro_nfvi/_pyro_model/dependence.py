"""Dependence of the data on the latents: a site that no observation looks at has its prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyro
import torch
from pyro.distributions import Unit
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.model_run import ModelRun, is_observed
from pyro_nfvi._pyro_model.recipe import MODELS
from pyro_nfvi._random import seeded, stream
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import ModelError, ModelWarning

#: Names of the parameters of a guide's distribution, as Pyro's modules give them.
_MOMENTS = ("_loc", "_scale_tril", "_scale", "_map")


def check_own_guide(
    run: ModelRun, latent: LatentSpace, subsample: Mapping[str, Tensor], prototype: Trace
) -> None:
    """Refuse a model that is scored with the moments of its own guide instead of its latent.

    That of ``VariationalGP`` and ``VariationalSparseGP`` of ``pyro.contrib.gp`` is: the site ``f``
    is drawn, and the likelihood reads the parameters ``f_loc`` and ``f_scale_tril``. It is right
    beside the guide that holds them, and no density of ``f``.

    Raises:
        ModelError: Names the site, the parameters and the cure.
    """
    read = {name for name, site in prototype.nodes.items() if site["type"] == "param"}
    for name in latent.sites:
        params = [name + ending for ending in _MOMENTS if name + ending in read]
        if not params:
            continue
        values, _ = latent.constrain(latent.init_loc)
        moved, _ = latent.constrain(_far(latent)[0])
        with pyro.validation_enabled(False):
            first = _trace(run, values, subsample)
            second = _trace(run, {**values, name: moved[name]}, subsample)
        if any(_differ(first, second, site) for site in first.nodes if site != name):
            continue
        raise ModelError(
            f"Nothing in the model depends on its latent site {name!r}: its likelihood reads "
            f"{', '.join(params)}, parameters of the guide that belongs to it, as the models of "
            "pyro.contrib.gp's VariationalGP and VariationalSparseGP do. That is no posterior. "
            f"Train that pair with Pyro's SVI, or write a model whose likelihood takes {name!r}: "
            "for a Gaussian process f = pyro.sample('f', MultivariateNormal(0, covariance)), then "
            "the data given f; GPRegression and SparseGPRegression with priors fit as they are."
        )


def check_dependence(
    run: ModelRun, latent: LatentSpace, traces: Sequence[Trace], subsample: Mapping[str, Tensor]
) -> None:
    """Warn where no observed site depends on any latent, so that the posterior is the prior.

    Args:
        run: The model.
        latent: Its latent space.
        traces: Runs at different latent values; points far away are looked at where these agree.
        subsample: Indices of plates that subsample.
    """
    first, *others = traces
    observed = [name for name, site in first.nodes.items() if is_observed(site, latent.sites)]
    # A factor says that the density is meant as it stands.
    if not observed or any(_is_factor(first, name) for name in observed):
        return
    # Data may look at a latent through a discrete site that is summed out.
    looked_at = [*observed, *run.enumerated]
    if any(_differ(first, other, name) for other in others for name in looked_at):
        return
    for z in _far(latent):
        values, _ = latent.constrain(z)
        try:
            with pyro.validation_enabled(False):
                other = _trace(run, values, subsample)
        except Exception:  # a model may fail in any way out there: then it depends on something
            return
        if any(_differ(first, other, name) for name in looked_at):
            return
    warn(
        f"No observed site ({', '.join(map(repr, observed))}) depends on a latent site "
        f"({', '.join(map(repr, latent.sites))}), so the posterior is the prior. Use the latents "
        "in the arguments of the observed sites. If that is meant, "
        "pyro.factor('no_data', torch.zeros(())) says so.",
        ModelWarning,
    )


def _trace(run: ModelRun, values: TensorDict, subsample: Mapping[str, Tensor]) -> Trace:
    """Run the model with the same random numbers each time, if it draws any of its own.

    Here and for the points the seed is a constant: what is said of a model is not said by chance.
    """
    with seeded(0, "dependence"):
        return run.trace(values, subsample)


def _far(latent: LatentSpace) -> Tensor:
    noise = torch.rand(MODELS.far_points, latent.dim, generator=stream(0, "dependence", "points"))
    return MODELS.far * (2 * noise.to(latent.init_loc) - 1)


def _is_factor(trace: Trace, name: str) -> bool:
    fn = trace.nodes[name]["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Unit)


def _differ(one: Trace, other: Trace, name: str) -> bool:
    """Tell whether a site is scored differently, or is not in both runs."""
    first = one.nodes[name]
    if first["type"] != "sample":
        return False
    second = other.nodes.get(name)
    if second is None or first["log_prob"].shape != second["log_prob"].shape:
        return True
    pair = (torch.nan_to_num(site["log_prob"]) for site in (first, second))
    return not torch.equal(*pair)
