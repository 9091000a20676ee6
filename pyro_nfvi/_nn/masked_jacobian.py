r"""The triangular system behind the path score of an autoregressive layer.

With :math:`N` the Jacobian of a masked net, an autoregressive layer has the Jacobian
:math:`J = \mathrm{diag}(dx) + dp\,N`, triangular in the order of the masks. The score wants u from

.. math:: J^\top u = v - N^\top e

from the last input to the first; what the later ones pull through the net is summed up in its
last hidden layer. In plain PyTorch that goes block by block. When a step is captured for an engine,
a net of one hidden layer becomes a single operation instead, ``pyro_nfvi::solve_masked``, for which
native code has a loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_nfvi._compat import is_transformed, is_watched


def solve_transposed(
    weights: Sequence[Tensor],
    skip: Tensor,
    slopes: Sequence[Tensor],
    target: Tensor,
    dx: Tensor,
    dparams: Tensor,
    extra: Tensor,
    *,
    reverse: bool,
    block: int,
) -> Tensor:
    """Solve for u, without a gradient.

    Args:
        weights: Masked weights of all layers, the first one's context columns left out.
        skip: Masked weights of the skip, likewise.
        slopes: Derivatives of the activations in each hidden layer, ``(*b, H)``.
        target: v, ``(*b, D)``.
        dx: ``(*b, D)``.
        dparams: dp, ``(*b, D, num_outputs)``.
        extra: e, ``(*b, D, num_outputs)``.
        reverse: Whether the masks take the inputs from the last to the first.
        block: Inputs that are solved for at once, by their explicit Jacobian.

    Returns:
        ``u (*b, D)``.

    Cost:
        Of the full Jacobian, the share ``block / D``; with several hidden layers, one pass through
        them for each block.
    """
    if len(weights) == 2 and _is_captured():
        rows = [x.reshape(-1, *x.shape[target.dim() - 1 :]) for x in (target, dx, dparams, extra)]
        slope = slopes[0].expand(*target.shape[:-1], -1).reshape(-1, slopes[0].shape[-1])
        first, last = weights
        v, width, slopes_out, more = rows
        found = solve_masked(first, last, skip, slope, v, width, slopes_out, more, reverse, block)
        return found.reshape(target.shape)
    return _by_blocks(
        weights, skip, slopes, target, dx, dparams, extra, reverse=reverse, block=block
    )


def _is_captured() -> bool:
    """Tell whether operations are being recorded, and nothing takes them apart."""
    return is_watched() and not is_transformed(unknown=True) and not torch.compiler.is_compiling()


def solve_masked(
    first: Tensor,
    last: Tensor,
    skip: Tensor,
    slope: Tensor,
    target: Tensor,
    dx: Tensor,
    dparams: Tensor,
    extra: Tensor,
    reverse: bool,  # noqa: FBT001
    block: int,
) -> Tensor:
    """Solve for a net of one hidden layer, rows ``(P, D)``, as one operation."""
    found: Tensor = torch.ops.pyro_nfvi.solve_masked(
        first, last, skip, slope, target, dx, dparams, extra, reverse, block
    )
    return found


def _eager(*args: Tensor) -> Tensor:
    first, last, skip, slope, target, dx, dparams, extra, reverse, block = args
    return _by_blocks(
        (first, last),
        skip,
        (slope,),
        target,
        dx,
        dparams,
        extra,
        reverse=bool(reverse),
        block=int(block),
    )


# Not torch.library.custom_op, whose first call imports the whole compiler of torch.
_LIBRARY = torch.library.Library("pyro_nfvi", "FRAGMENT")
_LIBRARY.define(
    "solve_masked(Tensor first, Tensor last, Tensor skip, Tensor slope, Tensor target, Tensor dx, "
    "Tensor dparams, Tensor extra, bool reverse, int block) -> Tensor"
)
_LIBRARY.impl("solve_masked", _eager, "CPU")
_LIBRARY.impl("solve_masked", _eager, "CUDA")
_LIBRARY.impl("solve_masked", lambda *args: torch.empty_like(args[4]), "Meta")


def _by_blocks(
    weights: Sequence[Tensor],
    skip: Tensor,
    slopes: Sequence[Tensor],
    target: Tensor,
    dx: Tensor,
    dparams: Tensor,
    extra: Tensor,
    *,
    reverse: bool,
    block: int,
) -> Tensor:
    dim, count = dparams.shape[-2:]
    first, last = weights[0], weights[-1]
    batch = target.shape[:-1]
    pulled, beside = target.new_zeros(*batch, last.shape[-1]), torch.zeros_like(target)
    found: dict[int, Tensor] = {}

    def pull(rows: Tensor, columns: slice, *, spread: bool) -> Tensor:
        """Take gradients in the last hidden layer back to some inputs."""
        for k in range(len(slopes) - 1, -1, -1):
            slope = slopes[k].unsqueeze(-2) if spread else slopes[k]
            rows = (rows * slope) @ (weights[k] if k else first[:, columns])
        return rows

    for start in reversed(range(0, dim, block)):
        end = min(start + block, dim)
        here = slice(dim - end, dim - start) if reverse else slice(start, end)
        outputs = slice(here.start * count, here.stop * count)
        net = pull(last[outputs].expand(*batch, -1, -1), here, spread=True)
        net = (net + skip[outputs, here]).unflatten(-2, (-1, count))
        right = target[..., here] - pull(pulled, here, spread=False) - beside[..., here]
        right = right - torch.einsum("...ip,...ipj->...j", extra[..., here, :], net)
        jacobian = torch.einsum("...ip,...ipj->...ij", dparams[..., here, :], net)
        jacobian = jacobian + torch.diag_embed(dx[..., here])
        # Lower triangular in the order of the masks; reversed order makes it upper.
        u = torch.linalg.solve_triangular(jacobian.mT, right.unsqueeze(-1), upper=not reverse)
        found[here.start] = u.squeeze(-1)
        if end - start < dim:
            moved = (extra[..., here, :] + dparams[..., here, :] * u).flatten(-2)
            pulled = pulled + moved @ last[outputs]
            beside = beside + moved @ skip[outputs]
    return torch.cat([found[begin] for begin in sorted(found)], -1)
