"""Rows of data that a density is fitted to: what is wrong with them, and which are held out."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._user_warning import warn
from pyro_nfvi.distributions._recipe import DATA
from pyro_nfvi.distributions._tables import rows_of
from pyro_nfvi.errors import DataError, DataWarning, OptionError, ShapeError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.flows._normalization import ActNorm, BatchNorm

#: Data and their context.
Rows = tuple[Tensor, Tensor | None]


def split_rows(
    x: Tensor,
    context: Tensor | None,
    valid: float | Tensor | tuple[Tensor, Tensor],
    *,
    flow: Flow,
    like: Tensor,
    generator: torch.Generator,
    whole: bool = False,
) -> tuple[Rows, Rows | None]:
    """Check data and divide them into rows to train on and rows to hold out.

    Args:
        x: Data ``(n, D)``.
        context: Context ``(n, C)``, or None.
        valid: Share of the rows to hold out, or the rows themselves (with a context: a pair).
        flow: What will be fitted: it knows the widths.
        like: A tensor whose dtype and device the rows take.
        generator: Draws which rows are held out.
        whole: Whether the data are integers, for a dequantiser.

    Raises:
        DataError, ShapeError: Data that cannot be fitted; the message says why.
        OptionError: ``valid`` is no share.
    """
    rows = _check(x, context, flow, like, whole=whole)
    held: Rows | None
    if isinstance(valid, (Tensor, tuple)) or hasattr(valid, "__array__"):
        if isinstance(valid, tuple) and len(valid) != 2:
            raise OptionError(f"valid is rows, or a pair (rows, context); got {len(valid)} parts.")
        held_x, seen = valid if isinstance(valid, tuple) else (valid, None)
        train, held = rows, _check(held_x, seen, flow, like, whole=whole)
    elif isinstance(valid, bool) or not isinstance(valid, numbers.Real) or not 0 <= valid < 1:
        raise OptionError(f"valid is a share from 0 up to 1, or the rows held out; got {valid!r}.")
    else:
        num = len(rows[0])
        count = 0 if valid == 0 else max(1, round(float(valid) * num))
        order = torch.randperm(num, generator=generator, device=like.device)
        train, held = _take(rows, order[count:]), _take(rows, order[:count]) if count else None
    if len(train[0]) < 2:
        raise DataError(
            f"fit needs at least 2 rows beside those held out; got {len(train[0])}. valid=0 holds "
            "none out."
        )
    if not whole:
        _check_columns(train[0], flow)
    if train[1] is not None:
        _check_context(train[1])
    return train, held


def _take(rows: Rows, index: Tensor) -> Rows:
    x, context = rows
    return x[index], None if context is None else context[index]


def _check(x: Any, context: Any, flow: Flow, like: Tensor, *, whole: bool) -> Rows:
    dim, context_dim = flow.dim, flow.context_dim
    x = rows_of(x)
    if x.dim() != 2 or x.shape[-1] != dim:
        raise DataError(f"fit needs data of shape (n, {dim}); got {tuple(x.shape)}.")
    if len(x) == 0:
        raise DataError("fit needs data; got no row.")
    if not whole:
        if not x.is_floating_point():
            raise DataError(
                f"fit needs floating-point data; got {x.dtype}. A density of integers grows "
                "without bound: pass dequantize=UniformDequantize(levels, dim), or, where the "
                "numbers are really continuous, x.float()."
            )
        if x.dtype in (torch.float16, torch.bfloat16):
            raise DataError(
                f"fit needs float32 or float64; got {x.dtype}, in which distinct values fall "
                "together. Convert with x.float()."
            )
    x = x.detach().to(like.device)  # what made the data is not trained
    _check_finite(x, "the data")
    x = x if whole else _convert(x, like, "the data")
    if (context is None) != (context_dim == 0):
        shape = tuple(getattr(context, "shape", ()))
        came = "None" if context is None else f"one of shape {shape}"
        raise ShapeError(f"The flow has context_dim={context_dim}; got the context {came}.")
    if context is not None:
        context = rows_of(context, "the context")
        if context.shape != (len(x), context_dim):
            raise ShapeError(
                f"fit needs a context of shape ({len(x)}, {context_dim}), a row for each row of "
                f"the data; got {tuple(context.shape)}."
            )
        if context.is_complex():
            raise ShapeError(f"fit needs a context of real numbers; got {context.dtype}.")
        context = context.detach().to(like.device)
        _check_finite(context, "the context")
        context = _convert(context, like, "the context")
    return x, context


def _convert(x: Tensor, like: Tensor, what: str) -> Tensor:
    """Take numbers to the density's dtype; raise where it does not hold them apart."""
    found = x.to(like.dtype)
    if found.dtype == x.dtype or not x.is_floating_point():
        return found.clone() if found.is_inference() else found
    limits = torch.finfo(found.dtype)
    spread, size = x.amax(0) - x.amin(0), x.abs().amax(0)
    lost = size > limits.max
    # Numbers of a wider dtype may differ by less than what this one resolves beside them.
    lost |= (spread > 0) & (limits.eps * size + limits.tiny > DATA.resolved * spread)
    if bool(lost.any()):
        column = int(lost.nonzero()[0])
        raise DataError(
            f"Column {column} of {what}, from {x[:, column].min():.17g} to "
            f"{x[:, column].max():.17g} in {x.dtype}, does not fit into {like.dtype}, in which the "
            "density is. Take density.double(), or standardise the data."
        )
    return found


def _check_finite(x: Tensor, what: str) -> None:
    bad = ~x.isfinite()
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise DataError(
            f"{int(bad.sum())} of {x.numel()} numbers of {what} are not finite; the first stands "
            f"in row {row}, column {column}. Drop or impute those rows: "
            "x[x.isfinite().all(-1)]."
        )


def _check_columns(x: Tensor, flow: Flow) -> None:
    constant = (x == x[0]).all(0)
    if bool(constant.any()):
        raise DataError(
            f"Column {int(constant.nonzero()[0])} is constant in the rows to train on: no "
            "density describes it. Leave it out, or add noise of the size of its rounding error; "
            "integers, such as pixels, go in as they are with "
            "dequantize=UniformDequantize(levels, dim)."
        )
    _warn_of_ties(x)
    if any(isinstance(part, (ActNorm, BatchNorm)) for part in flow.modules()):
        return
    mean, std = x.mean(0), x.std(0)
    off = (mean.abs() > DATA.far) | (std > DATA.wide) | (std < DATA.narrow)
    if bool(off.any()):
        i = int(off.nonzero()[0])
        warn(
            f"Column {i} has mean {mean[i]:.3g} and standard deviation {std[i]:.3g}; a flow starts "
            "from numbers of order 1. Standardise the data, or end the flow with an ActNorm: "
            f"Chain(flow, ActNorm({x.shape[-1]})); fit sets it.",
            DataWarning,
        )


def _check_context(context: Tensor) -> None:
    """Announce columns of a context that a net cannot make much of."""
    mean, std = context.mean(0), context.std(0)
    # By their range: a rare class of a one-hot code has a small deviation, and is of order 1.
    narrow = context.amax(0) - context.amin(0) < DATA.narrow
    off = (mean.abs() > DATA.far) | (std > DATA.wide) | narrow
    if bool(off.any()):
        i = int(off.nonzero()[0])
        warn(
            f"Column {i} of the context has mean {mean[i]:.3g} and standard deviation "
            f"{std[i]:.3g}; the nets start from numbers of order 1, and learn little from others. "
            "Standardise the context; leave out what is constant.",
            DataWarning,
        )


def _warn_of_ties(x: Tensor) -> None:
    """Tell where a column holds few values many times: its density grows without bound."""
    if len(x) < DATA.least_rows:
        return
    values = torch.stack([(column[1:] != column[:-1]).sum() + 1 for column in x.sort(0)[0].T])
    tied = values * DATA.ties < len(x)
    if bool(tied.any()):
        i = int(tied.nonzero()[0])
        warn(
            f"Column {i} holds {int(values[i])} distinct values in {len(x)} rows: a density can "
            "grow without bound there, and its likelihood means nothing. Take "
            "dequantize=UniformDequantize(levels, dim) on the integers, or add noise of the size "
            "of the rounding.",
            DataWarning,
        )


def log_density_ceiling(x: Tensor) -> float:
    r"""Largest mean log density, in nats, that rounded data can have under any density of theirs.

    .. math:: \mathbb{E}[\log q(x)] \le -\sum_i \log \delta_i

    for the smallest distance :math:`\delta_i` of two values of column i: a cell of that size holds
    a probability of at most 1. A mean above it shows that the density grows at the points without
    bound. Infinite where some column is not rounded.

    Args:
        x: Data ``(n, D)``.

    Source: Theis et al. 2016, arXiv:1511.01844, section 3.1.

    Example:
        >>> import torch
        >>> from pyro_nfvi.distributions._data_checks import log_density_ceiling
        >>> bits = torch.tensor([0.0, 1.0]).repeat(100).unsqueeze(-1)
        >>> log_density_ceiling(bits / 2)  # -log(1/2)
        0.693...
    """
    total = 0.0
    for column in x.double().sort(0)[0].T:
        gaps = column.diff()
        gaps = gaps[gaps > 0]
        if len(x) < DATA.least_rows or len(gaps) == 0 or (len(gaps) + 1) * DATA.ties >= len(x):
            return math.inf
        total -= math.log(float(gaps.min()))
    return total
