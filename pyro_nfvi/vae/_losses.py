"""Losses of a VAE's training step: ELBO and IWAE, with their gradient estimators."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_nfvi._eval_mode import recorded
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.objectives._importance_weights import (
    doubly_reparametrised,
    normalised_weights,
    renyi_bound,
)
from pyro_nfvi.objectives._schedules import Constant, Schedule, schedule_from_spec
from pyro_nfvi.vae._elbo_terms import ELBO, Joint, joint_terms, terms_of
from pyro_nfvi.vae._generative_model import GenerativeModel

_ESTIMATORS = ("total", "path")
_IWAE_ESTIMATORS = ("total", "dreg")


@dataclass(frozen=True)
class Loss:
    """The surrogate that a step differentiates, and the bound that it reports.

    Attributes:
        surrogate: To be minimised, ``(B,)``: its gradient counts, its value need not mean anything.
        bound: To be reported, ``(B,)``, in nats, without a graph: ELBO or IWAE bound, whatever
            the weights of the schedules are.
        terms: The plain ELBO of the same draws, in parts.
        weight: Weight of the KL divergence in this step.
    """

    surrogate: Tensor
    bound: Tensor
    terms: ELBO
    weight: float


class VAELoss(ABC):
    """The loss of a training step; one of your own defines ``__call__`` and ``spec``.

    Modules keep their modes in it: the trainer calls it inside of
    :func:`pyro_nfvi.vae.training_pass`. Where you call one of your own elsewhere, open that.
    """

    num_samples: int

    @abstractmethod
    def __call__(
        self,
        vae: GenerativeModel,
        x: Tensor,
        y: Tensor | None = None,
        *,
        eps: Tensor | None = None,
        step: int = 0,
        mean: Callable[[Tensor], Tensor] = torch.mean,
    ) -> Loss:
        """Return the loss of a batch.

        Args:
            vae: The VAE.
            x: Images ``(B, *shape)``.
            y: Labels of a conditional VAE.
            eps: Base noise ``(S, B, D)``; drawn from torch's global state if None.
            step: Steps taken so far, for the schedules.
            mean: How a mean over the batch is taken; with several processes, over all of them.
        """

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Describe the loss with what JSON can hold."""

    @property
    def settled(self) -> int:
        """Step from which the weights stay as they are."""
        return 0

    def weights(self, step: int) -> dict[str, float]:
        """Return the scheduled weights of a step by name; none where there is no schedule."""
        return {}

    def unfinished(self, steps: int) -> str:
        """Say which schedules do not end within so many steps; empty if all do.

        Example:
            >>> from pyro_nfvi.objectives import Linear
            >>> from pyro_nfvi.vae import ELBOLoss
            >>> ELBOLoss(beta=Linear(100)).unfinished(100)
            ''
            >>> ELBOLoss(beta=Linear(100)).unfinished(21)[:46]
            'the warm-up needs 100 steps and the run has 21'
        """
        if steps >= self.settled:
            return ""
        last, end = self.weights(steps - 1), self.weights(self.settled)
        short = [
            f"the weight of {name} ends at {last[name]:.3g} instead of {end[name]:.3g}"
            for name in last
            if last[name] != end[name]
        ]
        return (
            f"the warm-up needs {self.settled} steps and the run has {steps}: "
            f"{'; '.join(short) or 'the weights still change'}. What was trained is another "
            "objective than the one reported. Train for longer, or warm up over a smaller share "
            "(--warmup; --tempered for the joint)."
        )


def _check_common(name: str, num_samples: Any, estimator: str, known: tuple[str, ...]) -> None:
    whole(f"{name}: num_samples", num_samples)
    if estimator not in known:
        raise OptionError(f"{name}'s estimator is {' or '.join(known)}; got {estimator!r}.")


@dataclass(frozen=True)
class ELBOLoss(VAELoss):
    r"""The negative ELBO, with weights.

    .. math:: -\Bigl( b\,\mathbb{E}[\log p(x \mid z)] + \beta\,\mathbb{E}\bigl[b \log p(z)
        - \log q(z \mid x)\bigr] \Bigr)

    With the weights at 1 it is the plain ELBO. ``beta`` multiplies the KL divergence (warm-up,
    beta-VAE); ``joint`` multiplies the log joint (Rezende and Mohamed's tempering).

    Args:
        num_samples: Draws S per image.
        estimator: ``"total"``, the reparametrisation gradient; ``"path"``, without the term whose
            mean is zero ("sticking the landing"), through all parameters of encoder and flow: its
            noise vanishes where q is the posterior.
        beta: Weight of the KL divergence.
        joint: Weight of the log joint.
        free_bits: Nats of KL divergence, in the mean over the batch, below which it is not pushed
            down further. With a flow log q does not divide among coordinates, so this is one group.

    Cost:
        ``"path"`` pushes the score through the flow: cheap for planar, radial, Sylvester and
        affine layers, a (D, D) solve per draw for autoregressive ones.

    Source: Roeder et al. 2017, arXiv:1703.09194 (path); Kingma et al. 2016, arXiv:1606.04934,
    appendix C.8 (free bits); Rezende and Mohamed 2015, arXiv:1505.05770, equation 20 (joint).

    Example:
        >>> from pyro_nfvi.objectives import Linear
        >>> from pyro_nfvi.vae import ELBOLoss
        >>> loss = ELBOLoss(estimator="path", beta=Linear(steps=1000))
        >>> loss.settled
        1000
    """

    num_samples: int = 1
    estimator: str = "total"
    beta: Schedule = field(default_factory=Constant)
    joint: Schedule = field(default_factory=Constant)
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        _check_common("ELBOLoss", self.num_samples, self.estimator, _ESTIMATORS)
        if not 0 <= self.free_bits < math.inf:
            raise OptionError(f"free_bits is a number of nats from 0 up; got {self.free_bits!r}.")

    def __call__(
        self,
        vae: GenerativeModel,
        x: Tensor,
        y: Tensor | None = None,
        *,
        eps: Tensor | None = None,
        step: int = 0,
        mean: Callable[[Tensor], Tensor] = torch.mean,
    ) -> Loss:
        path = self.estimator == "path"
        joint = _joint(self.num_samples, vae, x, y, eps, score=path)
        terms = _reported(joint)
        log_q = joint.log_q
        if path:
            # Same value up to a constant in z, but only the path through z is differentiated.
            assert joint.draws.score is not None
            log_q = (joint.draws.score * joint.draws.z).sum(-1)
        b, beta = self.joint(step), self.beta(step)
        free = self.free_bits > 0 and float(mean(terms.kl)) < self.free_bits
        weight = 0.0 if free else beta
        objective = b * joint.log_likelihood.mean(0)
        if weight:
            objective = objective + weight * (b * joint.log_prior - log_q).mean(0)
        return Loss(-objective, terms.bound, terms, weight)

    @property
    def settled(self) -> int:
        return max(self.beta.settled, self.joint.settled)

    def weights(self, step: int) -> dict[str, float]:
        return {"the KL divergence": self.beta(step), "the log joint": self.joint(step)}

    def spec(self) -> dict[str, Any]:
        return {
            "kind": "ELBOLoss",
            "num_samples": self.num_samples,
            "estimator": self.estimator,
            "beta": self.beta.spec(),
            "joint": self.joint.spec(),
            "free_bits": self.free_bits,
        }


@dataclass(frozen=True)
class IWAELoss(VAELoss):
    r"""The negative importance-weighted bound.

    .. math:: -\mathbb{E}\Bigl[\log \tfrac1K \sum_k \tfrac{p(x, z_k)}{q(z_k \mid x)}\Bigr]

    Args:
        num_samples: K.
        estimator: ``"total"``, or ``"dreg"``: the doubly reparametrised gradient for encoder and
            flow, whose signal does not fade as K grows; decoder and prior get the usual one.

    Source: Burda et al. 2016, arXiv:1509.00519; Tucker et al. 2019, arXiv:1810.04152, equation 8.

    Example:
        >>> from pyro_nfvi.vae import IWAELoss
        >>> IWAELoss(num_samples=5, estimator="dreg").spec()["num_samples"]
        5
    """

    num_samples: int = 5
    estimator: str = "total"

    def __post_init__(self) -> None:
        _check_common("IWAELoss", self.num_samples, self.estimator, _IWAE_ESTIMATORS)

    def __call__(
        self,
        vae: GenerativeModel,
        x: Tensor,
        y: Tensor | None = None,
        *,
        eps: Tensor | None = None,
        step: int = 0,
        mean: Callable[[Tensor], Tensor] = torch.mean,
    ) -> Loss:
        if self.estimator == "total":
            joint = _joint(self.num_samples, vae, x, y, eps, score=False)
            bound = renyi_bound(joint.log_w.T, _all_of(joint.log_w).T)
            return Loss(-bound, bound.detach(), _reported(joint), 1.0)
        late: dict[str, Tensor] = {}
        joint = _joint(self.num_samples, vae, x, y, eps, score=True, late=late)
        log_w = joint.log_w.detach()
        share = normalised_weights(log_w.T, _all_of(log_w).T).T
        late["weights"] = doubly_reparametrised(share)
        assert joint.draws.score is not None
        log_q = (joint.draws.score * joint.draws.z).sum(-1)
        objective = (share * (joint.log_likelihood + joint.log_prior - log_q)).sum(0)
        bound = renyi_bound(log_w.T, _all_of(log_w).T)
        return Loss(-objective, bound, _reported(joint), 1.0)

    def spec(self) -> dict[str, Any]:
        return {
            "kind": "IWAELoss",
            "num_samples": self.num_samples,
            "estimator": self.estimator,
        }


def _joint(
    num_samples: int,
    vae: GenerativeModel,
    x: Tensor,
    y: Tensor | None,
    eps: Tensor | None,
    *,
    score: bool,
    late: dict[str, Tensor] | None = None,
) -> Joint:
    with recorded(cast(nn.Module, vae)):
        return _joint_in_mode(num_samples, vae, x, y, eps, score=score, late=late)


def _joint_in_mode(
    num_samples: int,
    vae: GenerativeModel,
    x: Tensor,
    y: Tensor | None,
    eps: Tensor | None,
    *,
    score: bool,
    late: dict[str, Tensor] | None,
) -> Joint:
    posterior = vae.encode(x, y)
    noise = posterior.noise(num_samples) if eps is None else eps
    draws = posterior.push(noise if noise.dim() == 3 else noise.unsqueeze(0), score=score)
    if late is not None and draws.z.requires_grad:
        # The gradient that comes back through z is multiplied by the weights once more: squared
        # for encoder and flow, single for decoder and prior. They are known after the decoder.
        z = draws.z.view_as(draws.z)
        z.register_hook(lambda grad: grad * late["weights"].unsqueeze(-1))
        draws = type(draws)(z, draws.log_q0, draws.log_det, draws.score)
    return joint_terms(vae, x, vae.condition(y, x), draws)


def _all_of(log_w: Tensor) -> Tensor:
    """Let every draw count: one that is not finite makes the step one that is skipped."""
    return torch.ones_like(log_w, dtype=torch.bool)


def _reported(joint: Joint) -> ELBO:
    """Terms of the plain ELBO, without a graph."""
    with torch.no_grad():
        return terms_of(joint)


def loss_from_spec(spec: Mapping[str, Any]) -> VAELoss:
    """Build a loss of this module from what ``loss.spec()`` returned.

    Raises:
        OptionError: The description is not one of a loss of this module.

    Example:
        >>> loss = ELBOLoss(free_bits=2.0)
        >>> loss_from_spec(loss.spec()) == loss
        True
    """
    options = dict(spec)
    try:
        if options.pop("kind") == "IWAELoss":
            return IWAELoss(**options)
        for name in ("beta", "joint"):
            options[name] = schedule_from_spec(options[name])
        return ELBOLoss(**options)
    except (KeyError, TypeError) as error:
        raise OptionError(f"No loss is described by {dict(spec)!r}.") from error
