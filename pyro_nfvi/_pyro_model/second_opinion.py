"""Second opinion on a log joint: Pyro's own trace of the same draws, with validation on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._engine.rounding import rounded_anew, slack_of
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.missing_data import Complete
from pyro_nfvi._pyro_model.model_run import SetSubsample
from pyro_nfvi._pyro_model.recipe import MODELS
from pyro_nfvi._typing import TensorDict

#: Largest difference between two sums of the same terms, as a share of the sum of their sizes. The
#: order of addition differs, which costs the square root of the number of terms in units of
#: rounding (1e-16, 6e-8); a mistake of scale or plate is a share of 1e-3 or more.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

#: Errors of a model that is right: those of its numbers at one draw.
_NUMERICAL = (
    torch.linalg.LinAlgError,
    np.linalg.LinAlgError,
    ArithmeticError,
    AssertionError,
)


@dataclass(frozen=True)
class Objection:
    """One draw that Pyro scores otherwise, or not at all.

    Attributes:
        site: The site at fault; empty where none can be named.
        reason: A sentence without its full stop.
        kind: ``"support"``: a value lies outside of the support of its distribution; ``"raised"``:
            Pyro raised for another reason, such as an argument that is not allowed, or the log
            joint did;
            ``"differs"``: the numbers are not equal.
    """

    site: str
    reason: str
    kind: Literal["support", "raised", "differs"]


@dataclass(frozen=True)
class Opinion:
    """Outcome of the comparison.

    Attributes:
        draws: Draws that were compared.
        objections: One for each draw on which the two do not agree.
        left_out: Draws for which there was no time.
    """

    draws: int
    objections: tuple[Objection, ...] = ()
    left_out: int = 0


def second_opinion(
    log_joint: LogJoint,
    z: Tensor,
    subsample: Mapping[str, Tensor] | None = None,
    *,
    budget: Budget = UNLIMITED,
) -> Opinion:
    r"""Score draws by Pyro itself, one at a time, and compare with :math:`\log p` of the log joint.

    The model runs under Pyro's ``condition`` with validation on, so that a value outside of the
    support of a distribution (of a base distribution, too) is an error; a distribution made with
    ``validate_args=False`` is not validated. Where discrete sites are summed out the number is
    that of ``TraceEnum_ELBO``. In float64 where the model takes it, else in its own precision.
    Draws at which the log joint is not finite, or its numbers fail (a matrix without a factor, an
    integrator whose steps vanish), are no draws of a posterior, and are left out. Whatever else
    the log joint raises is an objection.

    Args:
        log_joint: The log joint.
        z: Unconstrained draws ``(S, D)``.
        subsample: Indices of plates that subsample, for both sides; drawn without.
        budget: Time; where it is over no further draw is begun. One is always compared.

    Units:
        Nats; the tolerance is a share of the sum of the sizes of all terms, or the spread of the
        log joint under random rounding where that is larger.

    Cost:
        Two or three runs of the model per draw.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi._pyro_model.initial_values import prior_trace
        >>> from pyro_nfvi._pyro_model.latent_space import LatentSpace
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))
        >>> log_joint = LogJoint(model, (), {}, LatentSpace.from_trace(prior_trace(model, (), {})))
        >>> second_opinion(log_joint, torch.randn(3, 1))
        Opinion(draws=3, objections=(), left_out=0)
    """
    devices = [z.device.index] if z.is_cuda else []
    count = 0
    objections: list[Objection] = []
    with torch.no_grad(), torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's words about infinite terms; ours name the site
        subsample = log_joint.draw_subsample() if subsample is None else subsample
        together = _together(log_joint, z.double(), subsample)
        for index, row in enumerate(z):
            if index and budget.over():
                return Opinion(count, tuple(objections), len(z) - index)
            fine = row.double()
            ours = None if together is None else together[index]
            found = _compare(log_joint, fine, subsample, ours)
            if found is not True and fine.dtype != row.dtype:
                # Not every model takes float64: its own precision has the last word.
                found = _compare(log_joint, row, subsample)
            count += found is not None
            if isinstance(found, Objection):
                objections.append(found)
    return Opinion(count, tuple(objections))


def _together(log_joint: LogJoint, z: Tensor, subsample: Mapping[str, Tensor]) -> Tensor | None:
    """Score all rows in one run of the model; None where it takes several, or fails at a row."""
    if log_joint.how == "loop" or log_joint.in_parts:
        return None
    try:
        return _scored(log_joint, z, subsample)
    except Exception:  # of which row, and whether Pyro refuses it too, is asked row by row
        return None


def _scored(log_joint: LogJoint, rows: Tensor, subsample: Mapping[str, Tensor]) -> Tensor:
    """Log joint of rows ``(N, D)`` as every caller has it, and by the model: ``(N, 2)``."""
    ways = [log_joint(rows, subsample)]
    if not log_joint.enumerated:  # else the same again, with draws of the discrete sites
        ways.append(log_joint.evaluate(rows, subsample).log_p)
    return torch.stack(ways, -1)


def _compare(
    log_joint: LogJoint, row: Tensor, subsample: Mapping[str, Tensor], ours: Tensor | None = None
) -> Objection | bool | None:
    """True where both agree, None where there is no finite log joint."""
    values, ladj = log_joint.latent.constrain(row, weighted=True)
    rows = row.unsqueeze(0)
    try:
        ours = _scored(log_joint, rows, subsample)[0] if ours is None else ours
    except Exception as error:
        return None if _numerical(error) else _refused(log_joint, values, subsample, error)
    if not bool(torch.isfinite(ours).all()):
        return None
    found = _by_pyro(log_joint, values, subsample)
    if isinstance(found, Objection):
        return found
    theirs, size, worst = found
    difference = (ours.double() - ladj.double() - theirs).abs().max()
    dtype = torch.float32 if ours.dtype != torch.float64 else ours.dtype
    slack = _TOLERANCE[dtype] * (1 + size)
    if bool(difference <= slack):
        return True
    # Compiled code sums in another order, of which an ill-conditioned model makes more. Where
    # rounding alone makes the model fail, nothing is known of its size, and nothing is excused.
    eager = float(log_joint.eager(rows, subsample))
    anew = (float(x) - eager for x in rounded_anew(lambda: log_joint.eager(rows, subsample)))
    if bool(difference <= slack_of(slack, 1 + size, [x for x in anew if math.isfinite(x)])):
        return True
    mine = float(ours[0].double() - ladj.double())
    words = f"the log joint is {mine:.6g} here, and {theirs:.6g} by Pyro's trace"
    return Objection(worst, words, "differs")


def _refused(
    log_joint: LogJoint, values: TensorDict, subsample: Mapping[str, Tensor], error: Exception
) -> Objection:
    """Object to a draw at which the log joint raised: as Pyro does, or as it alone did."""
    found = _by_pyro(log_joint, values, subsample)
    if isinstance(found, Objection):
        return found
    words = f"the log joint raised {_words(error)}, and is {found[0]:.6g} by Pyro's trace"
    return Objection("", words, "raised")


def _numerical(error: BaseException | None) -> bool:
    """Tell whether rounding or an integrator may have led to an error, here or as its cause.

    A matrix without a factor, a division by zero or an overflow; torchdiffeq and the like assert
    that their steps do not vanish.
    """
    while error is not None:
        if isinstance(error, _NUMERICAL):
            return True
        error = error.__cause__
    return False


def _by_pyro(
    log_joint: LogJoint, values: TensorDict, subsample: Mapping[str, Tensor]
) -> Objection | tuple[float, float, str]:
    """Pyro's log joint of constrained values, the sum of the sizes of its terms, the largest."""
    last = _Last()

    def held(*args: Any, **kwargs: Any) -> Any:
        with SetSubsample(subsample), Complete(log_joint.missing):
            return poutine.condition(log_joint.model, data=values)(*args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(poutine.block())
        stack.enter_context(pyro.validation_enabled(is_validate=True))
        try:
            with last:
                trace = poutine.trace(held).get_trace(*log_joint.args, **log_joint.kwargs)
        except Exception as error:  # whatever the model raises under validation is the finding
            return Objection(last.name, _words(error), "raised")
        total, size, worst, most = 0.0, 0.0, "", -1.0
        for name, site in _samples(trace):
            try:
                trace.compute_log_prob(lambda other, _, name=name: other == name)
            except Exception as error:
                return Objection(name, _words(error), "support" if _outside(site) else "raised")
            term = site["log_prob"].double()
            total += float(term.sum())
            large = float(term.abs().sum())
            size += large
            if not large <= most:
                worst, most = name, large
        if log_joint.enumerated:
            nesting = log_joint.max_plate_nesting
            elbo = TraceEnum_ELBO(max_plate_nesting=nesting, strict_enumeration_warning=False)
            try:
                total = -float(elbo.loss(held, _no_guide, *log_joint.args, **log_joint.kwargs))
            except Exception as error:
                names = ", ".join(sorted(log_joint.enumerated))
                return Objection(names, _words(error), "raised")
            size += abs(total)
    return total, size, worst


def _no_guide(*args: Any, **kwargs: Any) -> None:
    """All latents are held, so that the bound of an empty guide is the log joint."""


class _Last(Messenger):
    """Remembers the sample statement that came last."""

    name = ""

    def _pyro_sample(self, msg: Message) -> None:
        self.name = str(msg["name"])


def _samples(trace: Trace) -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    ]


def _outside(site: Mapping[str, Any]) -> bool:
    """Tell whether a value lies outside of the support of its distribution, or of its base."""
    fn, value = site["fn"], site["value"]
    try:
        while isinstance(fn, Distribution):
            support = getattr(fn, "support", None)
            if support is not None and not bool(torch.as_tensor(support.check(value)).all()):
                return True
            if isinstance(fn, TransformedDistribution):
                for transform in reversed(fn.transforms):
                    value = transform.inv(value)
            fn = getattr(fn, "base_dist", None)
    except Exception:  # a support that cannot be looked at
        return False
    return False


def _words(error: Exception) -> str:
    """The text of an exception in one line, without values that differ from draw to draw."""
    # Pyro tells the site in an error of its own, around that of the distribution.
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0].split(", but found invalid values")[0] if lines else ""
    return f"{type(error).__name__}: {first}"[: MODELS.text].rstrip(": ")
