"""Single precision: the density of a fit's draws in double precision beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.infer._checks.reaching_draws import moved_columns
from pyro_nfvi.infer._checks.tails import seen
from pyro_nfvi.infer._recipe import CALL_SIZES, MOMENTS, PRECISION
from pyro_nfvi.infer._weighted_draws import WeighedDraws

#: Draws that are scored again, by how particles are evaluated.
PRECISION_ROWS = {"plate": PRECISION.draws, "vmap": PRECISION.draws, "loop": 0}


@dataclass(frozen=True)
class Rounding:
    """Differences between the log densities of draws in single and in double precision.

    Attributes:
        draws: Draws that were compared; 0 where the model does not take double precision.
        spread: Standard deviation of the differences, in nats.
        names: Numbers whose mean or sd moves by the differences, the worst first.
        shifts: By how many sds the means move.
        stretches: The sds in single precision over those in double precision.
    """

    draws: int = 0
    spread: float = 0.0
    names: tuple[str, ...] = ()
    shifts: tuple[float, ...] = ()
    stretches: tuple[float, ...] = ()


def rounding(log_joint: LogJoint, draws: WeighedDraws) -> Rounding | None:
    r"""Weigh the draws of a fit in single precision by what rounding does to the density.

    .. math:: w_s \propto p_{64}(z_s) / p_{32}(z_s)

    Noise of rounding moves no mean and no sd; what depends on z does, such as a precision matrix
    whose small eigenvalues are lost beside the large ones. Neither the importance weights nor
    chains see it, since both use the density in single precision.

    Returns:
        The differences; None where the draws are in double precision already, or the model cannot
        be evaluated for all of them at once.

    Cost:
        2000 rows of the model, uncompiled, without gradients.
    """
    rows = min(PRECISION_ROWS[log_joint.how], CALL_SIZES.check // max(1, log_joint.size))
    z = draws.z[:rows]
    usable = draws.exact and not log_joint.in_parts and not log_joint.subsampled
    if not usable or z.dtype == torch.float64 or len(z) < MOMENTS.fewest_effective:
        return None
    fine = _in_double(log_joint, z)
    if fine is None:
        return Rounding()
    difference = fine - draws.log_p[:rows].double()
    ok = torch.isfinite(difference)
    if int(ok.sum()) < MOMENTS.fewest_effective:
        return Rounding()
    difference = difference[ok] - difference[ok].median()
    spread = float(difference.std())
    if spread < PRECISION.negligible:
        return Rounding(int(ok.sum()), spread)
    weight = difference.softmax(0)
    x = seen(log_joint.latent, z[ok]).double()
    shift, stretch, off = moved_columns(x, weight, torch.ones_like(weight))
    return Rounding(
        int(ok.sum()),
        spread,
        tuple(log_joint.latent.at(i) for i in off),
        tuple(float(shift[i]) for i in off),
        tuple(math.exp(float(stretch[i])) for i in off),
    )


def _in_double(log_joint: LogJoint, z: Tensor) -> Tensor | None:
    """The log joint in double precision, of data in double precision where it needs that."""
    fine = z.double()
    with torch.no_grad():
        try:
            return log_joint.eager(fine).double()
        except Exception:  # dtypes do not go together, in one of many ways
            pass
        try:
            args, kwargs = pytree.tree_map(_double, (log_joint.args, log_joint.kwargs))
            return log_joint.with_arguments(args, kwargs)(fine).double()
        except Exception:
            return None


def _double(value: Any) -> Any:
    """The same in double precision, if it is a tensor of floating point numbers."""
    return value.double() if torch.is_tensor(value) and value.is_floating_point() else value
