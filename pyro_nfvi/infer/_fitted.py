"""``FittedPosterior``: the parts of a fit that its verdict, its report and its file read."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._timing import Timing
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.diagnostics._khat import TailReading
from pyro_nfvi.diagnostics._verdict import Verdict
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.guides._pyro_guide import PyroGuide
from pyro_nfvi.infer._training import Training
from pyro_nfvi.infer._weighted_draws import WeighedDraws


class FittedPosterior(Protocol):
    """A guide, draws from it with both densities, and the record of its training.

    :class:`pyro_nfvi.Fit` is one; modules that ``Fit`` itself calls know it by this alone.
    """

    @property
    def guide(self) -> AutoFlow | AutoMixture | PyroGuide:
        """The trained guide."""

    @property
    def draws(self) -> WeighedDraws:
        """Draws with both densities."""

    @property
    def training(self) -> Training:
        """Record of the training."""

    @property
    def latent(self) -> LatentSpace:
        """The latent sites as one vector."""

    @property
    def log_joint(self) -> LogJoint | None:
        """The model's log joint; None without the model."""

    @property
    def params(self) -> TensorDict:
        """Values of the model's own parameters."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments of the model."""

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the model."""

    @property
    def replaced(self) -> tuple[str, ...]:
        """Sites that a reparameteriser replaced by others."""

    @property
    def why_stopped(self) -> StopReason:
        """Reason for which training ended."""

    @property
    def timing(self) -> Timing:
        """Seconds of the call that made the fit."""

    @property
    def tail(self) -> TailReading:
        """Reading of k-hat."""

    @property
    def elbo(self) -> float:
        """Evidence lower bound, in nats."""

    @property
    def elbo_se(self) -> float:
        """Its standard error, in nats."""

    @property
    def khat(self) -> float:
        """Shape of the tail of the importance weights."""

    @property
    def ess(self) -> float:
        """Effective number of the reweighted draws."""

    @property
    def verdict(self) -> Verdict:
        """Trust in the fit, with reasons."""

    def log_evidence(self) -> tuple[float, float]:
        """Estimate the log evidence, with its standard error, in nats."""

    def model_scope(self) -> AbstractContextManager[None]:
        """Let the model see its trained parameters."""

    def require_model(self) -> LogJoint:
        """Return the log joint, or raise where there is no model."""

    def _no_weights(self) -> str:
        """Say why the draws have no importance weights."""
