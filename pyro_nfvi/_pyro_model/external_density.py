"""``ExternalDensity``: a log density that is a function of the user's own, in rows."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_nfvi._chain_rule import score
from pyro_nfvi._compat import is_watched
from pyro_nfvi._error_text import MISTAKES, describe_error
from pyro_nfvi._pyro_model.recipe import WORK
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.errors import ModelError

Returns: TypeAlias = Literal["value", "value_and_grad"]


class ExternalDensity:
    """A log density of vectors: a batched function of tensors, or one of arrays with gradient.

    A row at which the function raises an error of arithmetic (a matrix without a factor, an
    integrator that fails) is NaN. What raises for a batch is called again in halves, so that its
    other rows count.

    Args:
        function: The user's function.
        dim: D, the size of a vector.
        returns: ``"value"``: ``(N, D) -> (N,)`` in tensors, differentiable; ``"value_and_grad"``:
            log density and gradient, in NumPy arrays of float64.
        batched: False where the function takes one vector ``(D,)``; for ``"value_and_grad"``.

    Raises:
        ModelError: A result is not of the shape or type that was declared; the message says what
            was expected and what came.
    """

    def __init__(
        self, function: Callable[..., Any], dim: int, *, returns: Returns, batched: bool
    ) -> None:
        self.function, self.dim = function, dim
        self.returns, self.batched = returns, batched
        #: The last error of the function that was taken for one of the point, in words.
        self.fault: str | None = None
        self._key: int | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Evaluate rows ``(N, D)``: ``(N,)`` in nats, differentiable."""
        if self.returns == "value":
            return self._value(z)
        log_p: Tensor = _WithGradient.apply(z, self.key)
        return log_p

    def value_and_grad(self, z: Tensor) -> TensorPair:
        """Evaluate rows ``(N, D)``: log density ``(N,)`` and gradient ``(N, D)``, no graph."""
        if self.returns == "value":
            log_p, gradient, _ = score(self, z)
            return log_p, gradient
        return self._arrays(z)

    @property
    def key(self) -> int:
        """Number under which the operation of a recorded graph finds this density."""
        if self._key is None:
            self._key = next(_COUNTER)
            _DENSITIES[self._key] = self
        return self._key

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the number, which belongs to the process."""
        return {**self.__dict__, "_key": None}

    # ------------------------------------------------------------------- of tensors, by autograd

    def _value(self, rows: Tensor) -> Tensor:
        try:
            return self._checked_value(self.function(rows), rows)
        except (ModelError, *MISTAKES):
            raise
        except Exception as error:
            # Within a mode that records there are no rows to choose.
            if is_watched():
                raise
            self.fault = describe_error(error)
            if len(rows) <= 1:
                return rows[:, 0] * torch.nan
            return torch.cat([self._value(half) for half in rows.chunk(2)])

    def _checked_value(self, found: Any, rows: Tensor) -> Tensor:
        wanted = f"the log density of each row, a tensor of shape ({len(rows)},)"
        if not torch.is_tensor(found):
            cure = "Return torch.as_tensor of it only if it is computed by torch operations"
            if isinstance(found, (tuple, list)):
                cure = "Where it returns value and gradient, pass returns='value_and_grad'"
            elif isinstance(found, (np.ndarray, np.generic, float)):
                cure = (
                    "A function of NumPy brings its gradient: pass returns='value_and_grad', or "
                    "write it with torch operations"
                )
            raise ModelError(
                f"log_density needs to return {wanted}; got {_described(found)}. {cure}."
            )
        if found.shape != (len(rows),):
            cure = "Reduce the last axis alone, as in .sum(-1)"
            if found.shape == (len(rows), 1):
                cure = "Take away the last axis, as in .squeeze(-1)"
            elif found.shape == ():
                cure = (
                    "It sums over the rows: reduce the last axis alone, as in .sum(-1). A function "
                    "of one vector becomes one of rows by torch.vmap"
                )
            raise ModelError(
                f"log_density needs to return {wanted}, for rows of shape {tuple(rows.shape)}; got "
                f"{_described(found)}. {cure}."
            )
        if not found.is_floating_point():
            raise ModelError(
                f"log_density needs to return real numbers, as {rows.dtype}; got {found.dtype}. "
                "Compute in the dtype of its argument."
            )
        return found.to(rows.dtype)

    # ------------------------------------------------------------------------ of arrays, in NumPy

    def _arrays(self, rows: Tensor) -> TensorPair:
        z = rows.detach().to("cpu", torch.float64).numpy()
        # The function may use autograd itself.
        with torch.inference_mode(mode=False), torch.enable_grad():
            if self.batched:
                value, gradient = self._batch(z)
            else:
                value, gradient = np.empty(len(z)), np.empty(z.shape)
                for place, row in enumerate(z):
                    value[place], gradient[place] = self._row(row.copy())
        return (
            torch.from_numpy(value).to(rows),
            torch.from_numpy(gradient).to(rows),
        )

    def _batch(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            found = self.function(z.copy())
        except MISTAKES:
            raise
        except Exception as error:
            self.fault = describe_error(error)
            if len(z) <= 1:
                return np.full(len(z), np.nan), np.full(z.shape, np.nan)
            parts = [self._batch(half) for half in np.array_split(z, 2)]
            return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        value, gradient = self._pair(found)
        return self._array("value", value, (len(z),)), self._array("gradient", gradient, z.shape)

    def _row(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            found = self.function(row)
        except MISTAKES:
            raise
        except Exception as error:
            self.fault = describe_error(error)
            return np.full((), np.nan), np.full(row.shape, np.nan)
        value, gradient = self._pair(found)
        return self._array("value", value, ()), self._array("gradient", gradient, row.shape)

    def _pair(self, found: Any) -> tuple[Any, Any]:
        if isinstance(found, (tuple, list)) and len(found) == 2:
            return found[0], found[1]
        cure = "Return both, as in `return value, gradient`"
        if torch.is_tensor(found):
            cure = "A function of tensors that autograd differentiates takes returns='value'"
        raise ModelError(
            "log_density needs to return a pair, the log density and its gradient; got "
            f"{_described(found)}. {cure}."
        )

    def _array(self, name: str, found: Any, shape: tuple[int, ...]) -> np.ndarray:
        if torch.is_tensor(found):
            found = found.detach().cpu()
        array = np.asarray(found)
        if array.dtype.kind not in "fiu":
            raise ModelError(
                f"log_density needs to return its {name} as real numbers; got {array.dtype}. "
                "Convert it by np.asarray(..., dtype=float)."
            )
        if array.shape != shape:
            cure = "Check the order of value and gradient, and their shapes"
            if not self.batched and array.shape[:1] != shape[:1] and name == "value":
                cure = "A function of rows takes batched=True"
            elif self.batched and name == "value" and array.shape == ():
                cure = "A function of one vector takes batched=False"
            raise ModelError(
                f"log_density needs to return its {name} of shape {shape}; got {array.shape}. "
                f"{cure}."
            )
        return array.astype(np.float64)


def _described(found: Any) -> str:
    """Describe what came, with its shape where it has one."""
    shape = getattr(found, "shape", None)
    kind = type(found).__name__
    if isinstance(found, (tuple, list)):
        return f"a {kind} of {len(found)}"
    return kind if shape is None else f"a {kind} of shape {tuple(shape)}"


# ------------------------------------------------------------- an operation of a recorded graph

#: Densities by the number that an operation of a graph holds. Numbers count from 0 in each process,
#: so that code compiled for the first density of a script serves the next run of the script.
_DENSITIES: weakref.WeakValueDictionary[int, ExternalDensity] = weakref.WeakValueDictionary()
_COUNTER = itertools.count()
_LIBRARY = torch.library.Library("pyro_nfvi", "FRAGMENT")


def _evaluate(z: Tensor, key: int) -> TensorPair:
    return _DENSITIES[key]._arrays(z)


def _shapes(z: Tensor, key: int) -> TensorPair:
    del key
    return z.new_empty(z.shape[:1]), torch.empty_like(z)


try:
    _LIBRARY.define("value_and_grad(Tensor z, int key) -> (Tensor, Tensor)")
    _LIBRARY.impl("value_and_grad", _evaluate, "CPU")
    _LIBRARY.impl("value_and_grad", _evaluate, "CUDA")
    _LIBRARY.impl("value_and_grad", _shapes, "Meta")
except RuntimeError:  # this module is imported a second time; the first one's are the same
    if not hasattr(torch.ops.pyro_nfvi, "value_and_grad"):
        raise


#: The operation that evaluates a density of arrays: ``(z, key) -> (log_p, gradient)``.
EXTERNAL = torch.ops.pyro_nfvi.value_and_grad.default


def external_work(z: Tensor, key: int) -> int:
    """Count the work of one evaluation of a density of arrays, by its rows."""
    row = WORK.external_row if _DENSITIES[key].batched else WORK.external_call
    return len(z) * row + WORK.call


class _WithGradient(torch.autograd.Function):
    """A log density that brings its gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, key: int) -> Tensor:
        log_p, gradient = EXTERNAL(rows, key)
        ctx.save_for_backward(gradient)
        return log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0].unsqueeze(-1) * gradient, None
