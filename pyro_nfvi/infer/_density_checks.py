"""The look at a log density of the user's own, before anything is fitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._error_text import describe_error, place_of
from pyro_nfvi._pyro_model.external_density import ExternalDensity
from pyro_nfvi._random import stream
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.errors import ModelError
from pyro_nfvi.infer._recipe import DENSITY_CHECK


def check_density(density: ExternalDensity, init: Tensor, name: Callable[[int], str]) -> None:
    """Examine a log density near the start: result, rows, repeats, and gradient.

    Args:
        density: The density.
        init: Where the search for points begins, ``(D,)``, in the dtype of the fit.
        name: Name of a coordinate, in words.

    Raises:
        ModelError: It raises, is nowhere finite, changes between evaluations, mixes rows, or its
            gradient is not that of its values; the message says what came and what to do.

    Cost:
        Some hundred evaluations of a row.
    """
    z = _points(density, init)
    value, gradient = _evaluated(density, z)
    _check_repeats(density, z, value, gradient)
    _check_rows(density, z, value, gradient)
    _check_finite_gradient(gradient, name)
    _check_slopes(density, z, gradient, name)


def _points(density: ExternalDensity, init: Tensor) -> Tensor:
    """Points near the start, and near each other, at which the density is finite."""
    recipe, noise = DENSITY_CHECK, stream(0, "density check")
    count = recipe.points
    _try_alone(density, init)
    around = torch.randn(count, len(init), generator=noise, dtype=torch.float64).to(init)
    near = init + recipe.radius * around
    wide = 4 * torch.rand(recipe.tries, len(init), generator=noise, dtype=torch.float64).to(init)
    found = init.new_zeros(0, len(init))
    top = -torch.inf
    for rows in (init[None], near, init + wide - 2):
        log_p, _ = _evaluated(density, rows)
        if bool((log_p == torch.inf).any()):
            raise ModelError(
                "log_density is +inf near the start, which no density of a posterior is. Look for "
                "an overflow, or for a sign that is wrong."
            )
        found = torch.cat([found, rows[log_p.isfinite()]])
        top = max(top, float(log_p.nan_to_num(nan=-torch.inf).max()))
        if len(found) >= count:
            return found[:count]
    if not len(found):
        last = "" if density.fault is None else f" (the last error there: {density.fault})"
        raise ModelError(
            f"log_density is not finite at the start, nor at {count + recipe.tries} points around "
            f"it{last}. Give a point where it is: Target(..., init=...)."
        )
    # A narrow place: points as near to one that works as it takes.
    for _ in range(recipe.tries):
        around = around / 2
        rows = found[:1] + recipe.radius * around
        if bool(_evaluated(density, rows)[0].isfinite().all()):
            return rows
    return found[:1].expand(count, -1)


def _try_alone(density: ExternalDensity, init: Tensor) -> None:
    """Call the function as it is, and say of an error what was tried."""
    rows = init.expand(2, -1).clone()
    shape: tuple[int, ...] = tuple(rows.shape)
    argument: Any = rows.requires_grad_()
    if density.returns == "value_and_grad":
        argument = rows.detach().double().cpu().numpy()
    if not density.batched:
        argument, shape = argument[0], shape[1:]
    try:
        density.function(argument)
    except Exception as error:
        kind = f"a tensor of {rows.dtype}" if density.returns == "value" else "a NumPy array"
        cure = "Mend what it says"
        if density.batched and density.returns == "value_and_grad":
            cure += "; a function of one vector (D,) takes batched=False"
        elif density.returns == "value":
            cure += (
                "; a function of NumPy arrays that returns value and gradient takes "
                "returns='value_and_grad'"
            )
        if isinstance(error, (ArithmeticError, RuntimeError)):
            cure += "; if it is the point, give one that works: Target(..., init=...)"
        raise ModelError(
            f"log_density raised {describe_error(error)}{place_of(error)}, for {kind} of shape "
            f"{shape}. {cure}."
        ) from error


def _evaluated(density: ExternalDensity, z: Tensor) -> TensorPair:
    """Value and gradient of rows, by autograd where the density brings none."""
    if density.returns == "value":
        with torch.enable_grad():
            rows = z.detach().clone().requires_grad_()
            value = density(rows)
            if not value.requires_grad:
                raise ModelError(
                    "log_density returned values without a gradient: they do not depend on its "
                    "argument, or were computed under torch.no_grad(), by .detach(), .item() or "
                    "NumPy. Compute with torch operations, or return value and gradient and pass "
                    "returns='value_and_grad'."
                )
    value, gradient = density.value_and_grad(z)
    return value.detach(), gradient.detach()


def _check_repeats(density: ExternalDensity, z: Tensor, value: Tensor, gradient: Tensor) -> None:
    again = _evaluated(density, z)
    if _apart(value, again[0]) or _apart(gradient, again[1]):
        row = int((value - again[0]).abs().nan_to_num(nan=torch.inf).argmax())
        raise ModelError(
            "log_density changes between evaluations: at the same point it is "
            f"{float(value[row]):.8g}, then {float(again[0][row]):.8g} (or its gradient differs). "
            "Draw random numbers once, outside of it; keep no state in it; switch modules with "
            "dropout to eval()."
        )


def _check_rows(density: ExternalDensity, z: Tensor, value: Tensor, gradient: Tensor) -> None:
    """Compare rows in a batch with rows alone."""
    if not density.batched:
        return
    parts = [_evaluated(density, row[None]) for row in z]
    alone, slopes = (torch.cat([part[place] for part in parts]) for place in (0, 1))
    if _apart(value, alone) or _apart(gradient, slopes):
        row = int((value - alone).abs().nan_to_num(nan=torch.inf).argmax())
        raise ModelError(
            f"log_density mixes rows: one of {len(z)} rows has {float(value[row]):.8g}, and "
            f"{float(alone[row]):.8g} when it is evaluated alone (or its gradient differs). Each "
            "row (D,) is a point of its own: reduce the last axis alone, as in .sum(-1), and give "
            "what stands beside the rows no axis of their number."
        )


def _apart(one: Tensor, other: Tensor) -> bool:
    """Tell whether two results differ by more than rounding."""
    slack = DENSITY_CHECK.repeated * torch.finfo(one.dtype).eps ** 0.5
    size = 1 + one[one.isfinite()].abs().max().item() if bool(one.isfinite().any()) else 1.0
    close = torch.isclose(one, other, rtol=slack, atol=slack * size, equal_nan=True)
    return not bool(close.all())


def _check_finite_gradient(gradient: Tensor, name: Callable[[int], str]) -> None:
    bad = ~gradient.isfinite()
    if not bool(bad.any()):
        return
    row, column = bad.nonzero()[0].tolist()
    raise ModelError(
        f"The gradient of log_density is {float(gradient[row, column]):g} for {name(column)}, at a "
        "point where log_density is finite. Look for a root or a logarithm at 0, for torch.where "
        "around one, or for 0 times infinity."
    )


def _check_slopes(
    density: ExternalDensity, z: Tensor, gradient: Tensor, name: Callable[[int], str]
) -> None:
    """Compare the gradient with central differences of the values, of two steps each."""
    recipe, dim = DENSITY_CHECK, z.shape[1]
    each = dim <= recipe.directions
    if each:
        ways = torch.eye(dim, dtype=torch.float64)
    else:
        noise = stream(0, "density check", "directions")
        ways = torch.randn(recipe.directions, dim, generator=noise, dtype=torch.float64)
        ways = ways / ways.norm(dim=-1, keepdim=True)
    unit = torch.finfo(z.dtype).eps
    slopes, errors = [], []
    for point in z:
        size = 1 + float(point.abs().max())
        step = unit**recipe.step_power * size
        slope = [_difference(density, point, ways.to(point), h) for h in (step, 2 * step)]
        top = float(density.value_and_grad(point[None])[0].abs().max())
        slopes.append(slope[0])
        errors.append((slope[0] - slope[1]).abs() + unit * (1 + top) / step)
    found, error = torch.stack(slopes), torch.stack(errors)
    claimed = gradient.double().cpu() @ ways.T
    scale = found.abs() + claimed.abs()
    off = (found - claimed).abs() > recipe.slope * scale + recipe.errors * error
    off &= found.isfinite() & error.isfinite()
    few = off.sum(0) < recipe.off_points
    off[:, few] = False
    if not bool(off.any()):
        return
    rows, columns = off.nonzero().T
    row, column = int(rows[0]), int(columns[0])
    one, other = found[rows, columns], claimed[rows, columns]
    cure = "Check it, such as terms that are in one and not in the other"
    if bool(((one + other).abs() <= recipe.slope * scale[rows, columns]).all()):
        cure = "Its sign is wrong: return the gradient of log_density itself, not of its negative"
    where = f"for {name(column)}" if each else "along a random direction"
    raise ModelError(
        f"The gradient of log_density is {float(claimed[row, column]):.6g} {where}, and "
        f"differences of its values give {float(found[row, column]):.6g}. {cure}. Both are to be "
        "of the same log density, Jacobian terms of constraints included."
    )


def _difference(density: ExternalDensity, point: Tensor, ways: Tensor, step: float) -> Tensor:
    """Central differences ``(K,)`` at a point along ways ``(K, D)``."""
    rows = torch.cat([point + step * ways, point - step * ways])
    # The step that rounding left of it.
    taken = ((rows[: len(ways)] - rows[len(ways) :]).double() * ways.double()).sum(-1)
    with torch.no_grad():
        if density.returns == "value":
            value = density(rows)
        else:
            value, _ = density.value_and_grad(rows)
    value = value.double().cpu()
    return (value[: len(ways)] - value[len(ways) :]) / taken.cpu()
