"""``Target``: a log density without a Pyro model, to be fitted as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_nfvi._compat import is_watched
from pyro_nfvi._pyro_model.external_density import ExternalDensity, Returns
from pyro_nfvi._pyro_model.flat_prior import FlatPrior
from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import ModelError, OptionError, ShapeError
from pyro_nfvi.infer._density_checks import check_density

#: Name of the factor that a target scores.
FACTOR = "log_density"


class Target:
    r"""A log density on :math:`\mathbb{R}^D` as a model: of BridgeStan, PyMC, JAX, or of your own.

    .. math:: z \mapsto \log p(z), \qquad z \in \mathbb{R}^D

    up to a constant, which the evidence then contains. A target stands wherever a Pyro model does:
    ``NFVI(target).run()``, ``AutoFlow(target)`` in ``SVI``, ``load(path, model=target)``. What
    needs more than a density (predictions, log likelihoods, draws from the prior) says so.

    The density is one of unconstrained numbers: constrained ones are mapped to the reals, and the
    log-Jacobian is part of it. That is what BridgeStan and PyMC compute.

    Args:
        log_density: The function, as ``returns`` and ``batched`` say.
        dim: D, the size of the vector.
        returns: ``"value"``: a function of tensors, ``(N, D) -> (N,)``, that autograd
            differentiates. ``"value_and_grad"``: a function of NumPy arrays of float64 that
            returns the log density and its gradient (arrays of JAX will do).
        batched: For ``"value_and_grad"``: True for ``(N, D) -> ((N,), (N, D))``, False for one
            vector at a time, ``(D,) -> (number, (D,))``.
        names: Names of the parts of the vector, in order, with their shapes:
            ``{"mu": (), "theta": (8,)}``. Without, there is one part ``"z"``.
        derived: A function from vectors to a dict of arrays that are to come with the draws, such
            as constrained values; in tensors or arrays, batched or not, as ``log_density``.
        init: Point ``(D,)`` to start from; the origin by default.
        dtype: Type of the fit's numbers: by default torch's own for ``"value"``, and float64 for
            ``"value_and_grad"``.

    Units:
        Nats.

    Cost:
        Some hundred evaluations, for the checks; a fit takes some ten thousand.

    Raises:
        OptionError: An option cannot be used.
        ModelError: The function raises, returns something of another shape or type, mixes rows,
            changes between evaluations, is finite nowhere near ``init``, or its gradient is not
            that of its values (by finite differences).

    Example:
        >>> import torch
        >>> import pyro_nfvi as nfvi
        >>> def log_density(z):  # Rosenbrock's
        ...     return -0.5 * z[:, 0] ** 2 - 2 * (z[:, 1] - z[:, 0] ** 2) ** 2
        >>> target = nfvi.Target(log_density, 2, names={"x": (), "y": ()})
        >>> fit = nfvi.NFVI(target, "affine", max_steps=50, seed=0, progress=False).run()
        >>> fit.sample(3)["x"].shape
        torch.Size([3])
    """

    def __init__(
        self,
        log_density: Callable[..., Any],
        dim: int,
        *,
        returns: Returns = "value",
        batched: bool = True,
        names: Mapping[str, int | Sequence[int]] | None = None,
        derived: Callable[..., Mapping[str, Any]] | None = None,
        init: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not callable(log_density):
            raise OptionError(
                f"Target needs a function of the vector; got {type(log_density).__name__}. Pass "
                "the function itself, Target(log_density, dim), and not what it returned."
            )
        if returns not in ("value", "value_and_grad"):
            raise OptionError(f"returns is 'value' or 'value_and_grad'; got {returns!r}.")
        if not isinstance(batched, bool):
            raise OptionError(f"batched is True or False; got {batched!r}.")
        if returns == "value" and not batched:
            raise OptionError(
                "A function of tensors takes rows (N, D): pass Target(torch.vmap(log_density), "
                "dim), or one that returns value and gradient with returns='value_and_grad'."
            )
        if derived is not None and not callable(derived):
            raise OptionError(f"derived is a function of the vector; got {derived!r}.")
        if dtype is None:
            dtype = torch.get_default_dtype() if returns == "value" else torch.float64
        if dtype not in (torch.float32, torch.float64):
            raise OptionError(f"dtype is torch.float32 or torch.float64; got {dtype!r}.")
        #: Size of the vector.
        self.dim = whole("dim", dim)
        #: Shapes of its parts, by name.
        self.shapes = _shapes(names, self.dim)
        #: Where a fit starts, ``(D,)``.
        self.init = _start(init, self.dim, dtype)
        self.derived = derived
        #: The function, evaluated in rows.
        self.density = ExternalDensity(log_density, self.dim, returns=returns, batched=batched)
        check_density(self.density, self.init, self._at)
        if derived is not None:
            self._check_derived()

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Run as a Pyro model: a flat site for each part, and a factor for the density.

        Raises:
            ModelError: There are arguments, for which a density has no use.
        """
        if args or kwargs:
            raise ModelError(
                "A Target takes no arguments: its data are in its log_density. Call run() without "
                "any; for other data make another Target."
            )
        parts, start = [], 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            site = pyro.sample(name, FlatPrior(self.init[start : start + size].reshape(shape)))
            parts.append(site.reshape((*site.shape[: site.dim() - len(shape)], size)))
            start += size
        z = torch.cat(parts, -1)
        pyro.factor(FACTOR, self.density(z.reshape(-1, self.dim)).reshape(z.shape[:-1]))
        # Wanted of draws alone: not where a gradient is asked for, nor where a step is recorded.
        if self.derived is not None and not (torch.is_grad_enabled() or is_watched()):
            for name, value in self._derive(z).items():
                pyro.deterministic(name, value, event_dim=value.dim() - z.dim() + 1)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}{list(shape) or ''}" for name, shape in self.shapes.items())
        return f"Target({parts}; {self.dim} numbers)"

    def _at(self, index: int) -> str:
        """Name a coordinate in words."""
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            if index < size:
                place = ", ".join(map(str, np.unravel_index(index, shape))) if shape else ""
                return f"{name}[{place}]" if place else name
            index -= size
        raise IndexError(index)

    def _derive(self, z: Tensor) -> TensorDict:
        """Evaluate ``derived`` at ``z (*b, D)``."""
        assert self.derived is not None
        rows, batch = z.reshape(-1, self.dim), z.shape[:-1]
        if self.density.returns == "value":
            found = [(self.derived(rows), len(rows))]
        else:
            arrays = rows.detach().cpu().double().numpy()
            with np.errstate(all="ignore"):  # checks look at points far out
                if self.density.batched:
                    found = [(self.derived(arrays.copy()), len(rows))]
                else:
                    found = [(self.derived(row.copy()), 0) for row in arrays]
        parts = [self._as_tensors(one, count, like=z) for one, count in found]
        return {
            name: torch.cat([part[name] for part in parts]).reshape(
                (*batch, *parts[0][name].shape[1:])
            )
            for name in parts[0]
        }

    def _as_tensors(self, found: Any, count: int, *, like: Tensor) -> TensorDict:
        """Check what ``derived`` returned; ``(count, ...)`` each, or one vector's for 0."""
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            raise ModelError(
                "derived needs to return a dict of arrays by name; got "
                f"{type(found).__name__}. Return such as {{'tau': np.exp(z[..., 0])}}."
            )
        made = {}
        for name, value in found.items():
            if name in self.shapes or name == FACTOR:
                raise ModelError(
                    f"derived returned {name!r}, which is a part of the vector. Call it otherwise."
                )
            one = value if torch.is_tensor(value) else torch.as_tensor(np.array(value))
            one = one.to(like) if one.is_floating_point() else one.to(like.device)
            if not count:
                one = one[None]
            elif one.shape[:1] != (count,):
                raise ModelError(
                    f"derived needs to return {name!r} with {count} rows, as it was given; got "
                    f"shape {tuple(one.shape)}. Keep the first axis."
                )
            made[name] = one
        return made

    def _check_derived(self) -> None:
        try:
            with torch.no_grad():
                self._derive(self.init.expand(2, -1).clone())
        except ModelError:
            raise
        except Exception as error:
            form = "rows (N, D)" if self.density.batched else "one vector (D,)"
            raise ModelError(
                f"derived raised {type(error).__name__}: {error}, for {form}. It takes what "
                "log_density takes."
            ) from error


class Direct:
    """A target's density as what stands in for its log joint, without Pyro around it.

    Args:
        target: The target.
    """

    def __init__(self, target: Target) -> None:
        self._density = target.density

    def takes(self, z: Tensor, subsample: Mapping[str, Tensor]) -> bool:
        """Return True: a target subsamples nothing and takes rows of any dtype."""
        del z
        return not subsample

    def value_and_grad(self, z: Tensor, subsample: Mapping[str, Tensor]) -> TensorPair:
        """Evaluate rows ``(N, D)``: log density ``(N,)`` and gradient ``(N, D)``, no graph."""
        del subsample
        return self._density.value_and_grad(z)

    def difference(self) -> None:
        """Return None: it is the target's own function, at any time."""


def _shapes(
    names: Mapping[str, int | Sequence[int]] | None, dim: int
) -> dict[str, tuple[int, ...]]:
    if names is None:
        return {"z": (dim,)}
    if not isinstance(names, Mapping) or not names:
        raise OptionError(
            "names is a dict of the shapes of the vector's parts, such as {'mu': (), 'theta': "
            f"(8,)}}; got {names!r}."
        )
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in names.items():
        if not isinstance(name, str) or not name or name == FACTOR:
            raise OptionError(f"A part of the vector needs another name than {name!r}.")
        if not isinstance(shape, Sequence) or isinstance(shape, str):
            shape = () if shape == 1 else (whole(f"The size of {name!r}", shape),)
        found[name] = tuple(whole(f"A size of {name!r}", size) for size in shape)
    total = sum(map(math.prod, found.values()))
    if total != dim:
        raise ShapeError(
            f"names has {total} numbers ({', '.join(f'{n} {s}' for n, s in found.items())}), and "
            f"the vector {dim}. Give every part with its shape, in the order of the vector."
        )
    return found


def _start(init: Any, dim: int, dtype: torch.dtype) -> Tensor:
    if init is None:
        return torch.zeros(dim, dtype=dtype)
    start = init if torch.is_tensor(init) else torch.as_tensor(np.asarray(init, dtype=np.float64))
    if start.shape != (dim,):
        raise ShapeError(
            f"init is a point of the vector, of shape ({dim},); got {tuple(start.shape)}."
        )
    if not bool(start.isfinite().all()):
        raise OptionError("init needs finite numbers. Give a point where log_density is finite.")
    return start.detach().to(dtype).clone()
