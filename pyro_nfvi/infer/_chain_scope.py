"""Conditions of every sampler through a fit: one flow, a whole density, frozen parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._train.density_selection import choose_density
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import ModelError
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.guides._pyro_guide import PyroGuide
from pyro_nfvi.infer._fitted import FittedPosterior
from pyro_nfvi.infer._scopes import own_random_state


def require_chainable(fit: FittedPosterior) -> LogJoint:
    """Return the log joint of a fit that chains can run through.

    Raises:
        NotSetUpError: The fit was loaded without its model.
        ModelError: The model subsamples its data, or the fit is a mixture over modes.
    """
    log_joint = fit.require_model()
    if log_joint.subsampled:
        name = next(iter(log_joint.subsampled))
        raise ModelError(
            f"Chains need the whole density, and the plate {name!r} subsamples. Build the fit or "
            "load it with a model that has the whole plate."
        )
    if isinstance(fit.guide, AutoMixture):
        raise ModelError(
            f"Chains run through one flow, and this fit is a mixture over "
            f"{fit.guide.num_components} modes: a chain would stay in the mode where it starts, "
            "and chains would not tell the modes' masses. Use fit.resample(n); or fit one mode "
            "with guide='iaf*2' and run chains from that."
        )
    if isinstance(fit.guide, PyroGuide):
        raise ModelError(
            f"Chains run through a flow, and this fit is of {fit.guide.name}. Fit with "
            "guide='gaussian', or a flow, and run chains from that."
        )
    return log_joint


def compiled(
    log_joint: LogJoint, *, steps: int | None = None, budget: Budget = UNLIMITED
) -> LogJoint:
    """Return the log joint with compiled code in the model's place, where that works.

    A fit of few steps, and one that was loaded, have none yet. The fit's own log joint is left as
    it is.

    Args:
        log_joint: That of the fit.
        steps: Iterations of all chains, which say whether a compile is worth its time; None where
            it always is.
        budget: Time of the call.
    """
    if log_joint.compiled is not None:
        return log_joint
    engine = "compiled" if steps is None else "auto"
    alone = copy.copy(log_joint)
    alone.use(choose_density(engine, log_joint, steps or 0, budget=budget).compiled)
    return alone


@contextmanager
def sampling_scope(fit: FittedPosterior, seed: int, label: str) -> Iterator[FlowDensity]:
    """Hold all still but the point that moves; yield the density of the guide.

    The model sees its trained parameters, modules are in eval mode, the guide's parameters need no
    gradient, and the random state is a stream of its own.
    """
    density = fit.guide.density()
    assert isinstance(density, FlowDensity)
    frozen = [p for p in fit.guide.parameters() if p.requires_grad]
    with own_random_state(seed, label), fit.model_scope(), scoring(density.flow):
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield density
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
