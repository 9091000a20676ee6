"""Adam for tables of which a step sees a few rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._optim.torch_optimizers import Adam

#: Names of the state of a table, which are those of Adam: counts of steps, and moments.
ROW_STATE = ("step", "exp_avg", "exp_avg_sq")


def row_state(state: dict[str, Any], table: Tensor) -> None:
    """Make the state of a table ``(N, k)`` that has none yet: each row's count and moments."""
    if not state:
        state["step"] = torch.zeros(len(table), device=table.device)
        state["exp_avg"], state["exp_avg_sq"] = (
            torch.zeros_like(table, memory_format=torch.preserve_format) for _ in range(2)
        )


class RowwiseAdam(Adam):
    r"""Adam whose sparse gradients move the rows that they hold, and nothing else.

    Row r of a table with sparse gradients (``torch.nn.functional.embedding(..., sparse=True)``) has
    moments and a count of steps of its own, :math:`t_r`, which go on where the row was drawn:

    .. math::
        m_r \leftarrow \beta_1 m_r + (1 - \beta_1) g_r, \quad
        v_r \leftarrow \beta_2 v_r + (1 - \beta_2) g_r^2, \quad
        x_r \leftarrow x_r - \eta\, \frac{m_r / (1 - \beta_1^{t_r})}
        {\sqrt{v_r / (1 - \beta_2^{t_r})} + \epsilon}

    so that a row which is drawn for the first time late moves as far as in the first step of all.
    Parameters with dense gradients are Adam's. Where every row is drawn in every step, the numbers
    are those of dense Adam.

    Args:
        params: Parameters or groups of them, as of ``torch.optim.Adam``.
        **options: As of ``torch.optim.Adam``: ``lr``, ``betas``, ``eps``, ``fused`` (of the dense
            ones); ``weight_decay`` and ``amsgrad`` are for dense parameters only.

    Cost:
        Of a step, in proportion to the rows drawn.

    Source: Kingma and Ba 2015; the sparse form is that of ``torch.optim.SparseAdam``, which counts
    steps for the whole table, so that the first steps of a row are too long or too short.

    Example:
        >>> import torch
        >>> table = torch.zeros(1_000, 2, requires_grad=True)
        >>> optimizer = RowwiseAdam([table], lr=0.1)
        >>> rows = torch.tensor([3, 7])
        >>> torch.nn.functional.embedding(rows, table, sparse=True).sum().backward()
        >>> optimizer.step()
        >>> sorted(set(table.detach().nonzero()[:, 0].tolist()))
        [3, 7]
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, without a graph of autograd's."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for param in group["params"]:
                gradient = param.grad
                if gradient is not None and (gradient.is_sparse or self._by_rows(param)):
                    self._move_rows(param, gradient, group)
                    held.append((param, gradient))
                    param.grad = None  # not for dense Adam
        super().step()
        for param, gradient in held:
            param.grad = gradient
        return loss

    def _by_rows(self, param: Tensor) -> bool:
        step = self.state.get(param, {}).get("step")
        return step is not None and bool(step.dim())

    @torch.no_grad()
    def _move_rows(self, param: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        row_state(state, param)
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, slope = gradient.indices()[0], gradient.values()
        else:
            rows, slope = torch.arange(len(param), device=param.device), gradient
        first, second = group["betas"]
        step = state["step"].index_select(0, rows) + 1
        mean = torch.lerp(state["exp_avg"].index_select(0, rows), slope, 1 - first)
        square = state["exp_avg_sq"].index_select(0, rows)
        square = square.mul_(second).addcmul_(slope, slope, value=1 - second)
        state["step"].index_copy_(0, rows, step)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        # In double precision, as Adam has them: 1 - 0.999 loses four digits in single.
        step = step.double().reshape(-1, *(1,) * (slope.dim() - 1))
        length = group["lr"] / (-torch.expm1(step * math.log(first)) if first else 1.0)
        shrink = (-torch.expm1(step * math.log(second))).sqrt()
        move = mean / (square.sqrt() / shrink.to(square)).add_(group["eps"])
        if torch.is_tensor(length):
            length = length.to(move)
        param.index_add_(0, rows, move * length, alpha=-1)
