"""The log joint as a sum over the rows of a plate, and the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_nfvi._pyro_model.constraints import bijection
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.errors import ModelError


def row_terms(
    log_joint: LogJoint, z: Tensor, subsample: Mapping[str, Tensor], plate: str
) -> TensorPair:
    r"""Split the log joint at ``z (S, D)`` into terms of the rows of a plate and all others.

    .. math:: \log p(x, z) = t_0(z) + \sum_r w\, t_r(z), \qquad w = N / B

    A row's term :math:`t_r` is the sum of all sites inside of the plate, latents with their
    Jacobian, at that row: those of plates nested in it count with their own weights.

    Args:
        log_joint: The model.
        z: The vectors.
        subsample: Rows of the plates that subsample.
        plate: Name of the plate.

    Returns:
        The terms ``(S, B)`` of its rows, and the rest ``(S,)``, in nats, float64.

    Cost:
        One run of the model, and one of its log joint.

    Raises:
        ModelError: The terms do not add up to the log joint: a scale of the user's own around a
            likelihood, or discrete sites that rows share, are no part of a row.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi._pyro_model.latent_space import LatentSpace
        >>> def model():
        ...     mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 1.0))
        ...     with pyro.plate("rows", 3):
        ...         pyro.sample("x", dist.Normal(mean, 1.0))
        ...         pyro.factor("data", torch.zeros(3))
        >>> space = LatentSpace.from_trace(pyro.poutine.trace(model).get_trace())
        >>> log_joint = LogJoint(model, (), {}, space)
        >>> z = torch.zeros(2, 4)
        >>> terms, rest = row_terms(log_joint, z, {}, "rows")
        >>> terms.shape, bool(torch.allclose(terms.sum(-1) + rest, log_joint(z).double()))
        (torch.Size([2, 3]), True)
    """
    with torch.no_grad():
        found = log_joint.evaluate(
            z, subsample, log_likelihood=True, log_prior=True, deterministic=False
        )
        latent, total = log_joint.latent, found.log_p.double()
        size = next(
            (int(f.size) for stack in log_joint.plates.values() for f in stack if f.name == plate),
            0,
        )
        terms, rest = z.new_zeros(len(z), size).double(), torch.zeros_like(total)
        # The prior counts in a mini-batch's weights, the likelihood does not.
        parts = [(n, v, 1.0) for n, v in found.log_prior.items()]
        parts += [(n, v, _weight(log_joint.plates[n])) for n, v in found.log_likelihood.items()]
        for site, u in zip(latent.records, latent.unpack(z).values()):
            transform = bijection(site.support)
            ladj = transform.log_abs_det_jacobian(u, transform(u))
            inner = ladj.dim() - 1 - len(site.batch_shape)
            ladj = ladj.sum(tuple(range(-inner, 0))) if inner > 0 else ladj
            parts.append((site.name, ladj, site.weight))
        own = 1.0
        for name, value, weight in parts:
            value = weight * value.double()
            frame = _frame(log_joint, name, plate)
            if frame is None:
                rest = rest + value.reshape(len(z), -1).sum(1)
                continue
            own = _weight([frame])
            terms = terms + _by_row(value, frame, size) / own
    gap = (own * terms.sum(-1) + rest - total).abs()
    scale = 1 + own * terms.abs().sum(-1) + rest.abs()
    tolerance = 1e-4 if z.dtype == torch.float32 else 1e-8
    if bool((gap > tolerance * scale).any()):
        raise ModelError(
            f"The log joint is not a sum over the rows of the plate {plate!r}: its terms add up "
            f"to {float((own * terms.sum(-1) + rest)[0]):.6g} instead of {float(total[0]):.6g} "
            "nats. A scale handler around a likelihood inside, or a discrete site that rows "
            "share, is in no row. Give the scale to the data, or judge the fit by its globals."
        )
    return terms, rest


def row_likelihoods(
    log_joint: LogJoint, z: Tensor, subsample: Mapping[str, Tensor], plate: str
) -> Tensor:
    """Sum the log densities of what is observed in each row of a plate: ``(S, B)``, in nats.

    Args:
        log_joint: The model.
        z: The vectors ``(S, D)``.
        subsample: Rows of the plates that subsample.
        plate: Name of the plate. Plates nested in it count with their own weights.

    Raises:
        ModelError: Nothing is observed there, or rows share a discrete site that is summed out.
    """
    with torch.no_grad():
        found = log_joint.evaluate(z, subsample, log_likelihood=True, deterministic=False)
    total = None
    for name, value in found.log_likelihood.items():
        frame = _frame(log_joint, name, plate)
        if frame is None:
            continue
        inner = [f for f in log_joint.plates[name] if f.name != plate]
        own = _weight(inner) * _by_row(value.double(), frame, int(frame.size))
        total = own if total is None else total + own
    if total is None:
        raise ModelError(
            f"Nothing is observed in the plate {plate!r}, so that its rows have no density. Name "
            "the plate that the data stand in, or pass the data."
        )
    return total


def _frame(log_joint: LogJoint, name: str, plate: str) -> CondIndepStackFrame | None:
    return next((f for f in log_joint.plates[name] if f.name == plate), None)


def _by_row(value: Tensor, frame: CondIndepStackFrame, size: int) -> Tensor:
    """Sum ``(S, *batch)`` over all but the rows of a plate: ``(S, B)``."""
    moved = value.movedim(value.dim() + frame.dim, 1)
    return moved.reshape(len(value), size, -1).sum(-1)


def _weight(stack: Iterable[CondIndepStackFrame]) -> float:
    """Return how often a density counts in these plates: N / B each."""
    return math.prod(int(frame.full_size or frame.size) / int(frame.size) for frame in stack)
