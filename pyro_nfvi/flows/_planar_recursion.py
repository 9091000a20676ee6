r"""The recursion of a fused planar chain, over K scalars per row.

.. math:: t_k = S_k + \sum_{j<k} G_{kj} \tanh t_j

There are two ways to run it. The plain one is a composition of torch operations that any
transform (``vmap``, ``torch.compile``, forward mode, higher derivatives) can take apart. In
ordinary eager mode its many small operations and their recorded backward cost several times the
arithmetic, so there a hand-written backward takes over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pyro_nfvi._compat import is_transformed, is_watched
from pyro_nfvi._typing import TensorPair


def tanh_recursion(pre: Tensor, gram: Tensor) -> TensorPair:
    """Return ``(t, tanh t)``, both ``(*b, K)``, for ``pre (*b, K)`` and ``gram (*c, K, K)``.

    Only the part of ``gram`` below its diagonal is used.
    """
    if gram.dim() == 2 and _is_plain_eager():
        rows = pre.reshape(-1, pre.shape[-1])
        t, h = _Recursion.apply(rows, gram)
        return t.view(pre.shape), h.view(pre.shape)
    return _plain(pre, gram)


def _is_plain_eager() -> bool:
    """Tell whether nothing but autograd's backward looks at the operations."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_transformed(unknown=True)
        or is_watched(unknown=True)
        or getattr(forward_ad, "_current_level", 0) >= 0
    )


def _plain(pre: Tensor, gram: Tensor) -> TensorPair:
    """Split off one layer after the other and add it to all that follow."""
    columns = gram.unbind(-1)
    ts: list[Tensor] = []
    hs: list[Tensor] = []
    for j, column in enumerate(columns[:-1]):
        t, pre = pre.split([1, pre.shape[-1] - 1], -1)
        h = torch.tanh(t)
        ts.append(t)
        hs.append(h)
        pre = torch.addcmul(pre, h, column[..., j + 1 :])
    ts.append(pre)
    hs.append(torch.tanh(pre))
    return torch.cat(ts, -1), torch.cat(hs, -1)


class _Recursion(torch.autograd.Function):
    """The recursion on rows ``(P, K)``, layers as contiguous rows inside."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, gram: Tensor) -> TensorPair:
        t = pre.t().contiguous()
        h = torch.empty_like(t)
        # Views are made all at once where they can be: they cost as much as the arithmetic.
        so_far = h.t()
        for k, (t_k, h_k, g_k) in enumerate(zip(t.unbind(0), h.unbind(0), gram.unbind(0))):
            if k:
                torch.addmv(t_k, so_far.narrow(1, 0, k), g_k.narrow(0, 0, k), out=t_k)
            torch.tanh(t_k, out=h_k)
        ctx.save_for_backward(pre, gram, h)
        return t.t().contiguous(), h.t().contiguous()

    @staticmethod
    def backward(ctx: Any, dt: Tensor, dh: Tensor) -> tuple[Tensor | None, Tensor | None]:
        pre, gram, h = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A derivative of the derivative is wanted: take the plain form apart.
            outputs = _plain(pre, gram)
            dpre, dgram = torch.autograd.grad(outputs, (pre, gram), (dt, dh), create_graph=True)
            return dpre, dgram
        slope = torch.addcmul(torch.ones_like(h), h, h, value=-1)
        ds = dt.t().contiguous()
        rest = dh.t().contiguous()
        later, columns = ds.t(), gram.unbind(1)
        rows = zip(ds.unbind(0), rest.unbind(0), slope.unbind(0))
        size = len(ds)
        for k, (ds_k, rest_k, slope_k) in reversed(list(enumerate(rows))):
            after = size - k - 1
            if after:
                # ds_j of the later layers reaches tanh t_k through column k.
                column = columns[k].narrow(0, k + 1, after)
                torch.addmv(rest_k, later.narrow(1, k + 1, after), column, out=rest_k)
            ds_k.addcmul_(rest_k, slope_k)
        return ds.t(), (ds @ h.t()).tril_(-1) if ctx.needs_input_grad[1] else None
