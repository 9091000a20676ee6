"""A fit's file, examined: its parts belong together, and nothing in it is larger than the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyro_nfvi._compat import DispatchMode
from pyro_nfvi._files.archives import Malformed
from pyro_nfvi._optional_import import process_kept
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi.distributions._density import NoiseDensity
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.infer._recipe import FILES
from pyro_nfvi.infer._weighted_draws import WeighedDraws

# ------------------------------------------------------------------------------- descriptions


def check_latent(latent: LatentSpace, spec: Mapping[str, Any]) -> None:
    """Compare the described sites with the vector of their first values.

    Raises:
        Malformed: Names, shapes or sizes are none, or do not belong together.
    """
    loc = latent.init_loc
    if not isinstance(loc, Tensor) or loc.dim() != 1 or not loc.is_floating_point():
        raise Malformed("its first values are no vector of numbers")
    if spec["dtype"] != str(loc.dtype).removeprefix("torch."):
        raise Malformed(f"its first values are {loc.dtype}, not {spec['dtype']}")
    if not bool(torch.isfinite(loc).all()):
        raise Malformed("its first values are not finite")
    names = [site.name for site in latent.records]
    if not names or not all(isinstance(name, str) for name in names):
        raise Malformed("its sites have no names")
    if len(set(names)) < len(names):
        raise Malformed("two of its sites have one name")
    for site in latent.records:
        numbers = [*site.shape, *site.unconstrained_shape, site.event_dim]
        if not all(map(_is_count, numbers)) or site.event_dim > len(site.shape):
            raise Malformed(f"the shape of the site {site.name[:80]!r} is none")
        for frame in site.cond_indep_stack:
            # A loop over a plate has no dimension.
            place = 0 if frame.dim is None else len(site.batch_shape) + frame.dim
            outside = frame.dim is not None and not 0 <= place < len(site.batch_shape)
            if outside or (frame.dim is not None and site.batch_shape[place] != frame.size):
                raise Malformed(f"the plates of the site {site.name[:80]!r} are not in its shape")
    if latent.dim != len(loc):
        raise Malformed(f"its sites take {latent.dim} numbers, and there are {len(loc)}")
    with torch.no_grad():
        values, _ = latent.constrain(loc)
    for site in latent.records:
        if tuple(values[site.name].shape) != site.shape:
            raise Malformed(f"the site {site.name[:80]!r} is not of the shape {site.shape}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_draws(draws: WeighedDraws, losses: Any, params: Any, latent: LatentSpace) -> None:
    """Compare shapes and types of a fit's tensors.

    Raises:
        Malformed: They are not those of draws of this latent space.
    """
    dtype, count = latent.init_loc.dtype, 0
    if isinstance(draws.z, Tensor) and draws.z.dim() == 2:
        count = len(draws.z)
    if not count or draws.z.shape[1] != latent.dim:
        raise Malformed(f"its draws are not of shape (S, {latent.dim})")
    for name, value in (("draws", draws.z), ("log q", draws.log_q), ("log p", draws.log_p)):
        if not isinstance(value, Tensor) or value.dtype != dtype:
            raise Malformed(f"its {name} are not of {dtype}")
        if name != "draws" and value.shape != (count,):
            raise Malformed(f"its {name} are not {count} numbers")
        if name != "log p" and not bool(torch.isfinite(value).all()):
            raise Malformed(f"its {name} are not finite")
    if not isinstance(draws.exact, bool):
        raise Malformed("it does not say whether its draws saw all data")
    for part, least in ((draws.deterministic, 1), (params, 0)):
        if not isinstance(part, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) and value.dim() >= least
            for name, value in part.items()
        ):
            raise Malformed("its values are no tensors by name")
    if any(len(value) != count for value in draws.deterministic.values()):
        raise Malformed("its deterministic values are not as many as its draws")
    if not isinstance(losses, Tensor) or losses.dim() != 1 or not losses.is_floating_point():
        raise Malformed("its losses are no list of numbers")
    if not all(bool(torch.isfinite(v).all()) for v in params.values() if v.is_floating_point()):
        raise Malformed("its parameters of the model are not finite")


def check_state(expected: Mapping[str, Tensor], state: Any) -> None:
    """Compare parameters in a file with those of the guide that was built for them.

    Names and shapes are compared where they are loaded.

    Raises:
        Malformed: One is of another type than the guide's, or not finite.
    """
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise Malformed("its guide is no tensors by name")
    for name, value in state.items():
        if name in expected and value.dtype != expected[name].dtype:
            raise Malformed(f"{name!r} of its guide is {value.dtype}, not {expected[name].dtype}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise Malformed(f"{name!r} of its guide is not finite")


# ------------------------------------------------------------------------------ what is built


@contextmanager
def bounded(tensors: Any) -> Iterator[None]:
    """Build a flow from a description, of no more than the file's own tensors can fill.

    Raises:
        Malformed: The description asks for more, by one number of many digits.
    """
    leaves = list(_leaves(tensors))
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    most = max(FILES.bytes, FILES.bytes_per_byte * size)
    operations = FILES.operations + FILES.operations_per_tensor * len(leaves)
    # Operations on the meta device import PyTorch's compiler.
    with process_kept(), _Bounded(most, operations):
        yield


def _leaves(tensors: Any) -> Iterator[Tensor]:
    if isinstance(tensors, Tensor):
        yield tensors
    elif isinstance(tensors, dict):
        for value in tensors.values():
            yield from _leaves(value)


class _Bounded(DispatchMode):
    """Learns the size of a result without its numbers before it is computed."""

    def __init__(self, most: int, operations: int) -> None:
        super().__init__()
        self.most, self.left = most, operations

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        self.left -= 1
        if self.left < 0:
            raise Malformed("its guide would be built of more layers than it has numbers for")
        try:
            shown = tree_map_only(Tensor, _without_numbers, (args, kwargs))
            if "device" in kwargs:
                shown[1]["device"] = torch.device("meta")
            made = func(*shown[0], **shown[1])
        except Exception:  # it needs the numbers, or has no such form; the real one tells
            made = None
        sizes: list[int] = []
        tree_map_only(Tensor, lambda x: sizes.append(x.numel() * x.element_size()), made)
        if max(sizes, default=0) > self.most:
            raise Malformed(f"its guide would take {max(sizes)} bytes in one tensor")
        return func(*args, **kwargs)


def _without_numbers(tensor: Tensor) -> Tensor:
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=torch.device("meta")
    )


# ------------------------------------------------------------------------------------- the tie


def tie(density: FlowDensity | NoiseDensity, draws: WeighedDraws) -> dict[str, Any]:
    """Score some of a fit's draws once more, by the inverse, for the file.

    The pass back differs from the pass forth by rounding alone, but in a map of badly conditioned
    numbers that can be much: the two are both kept.

    Returns:
        ``rows``, the number of draws; ``inverse``, their log densities; ``apart``, the largest
        difference from those of the pass forth; ``elbo``, the mean weight of all draws.
    """
    index = _some(draws.z)
    with torch.no_grad():
        inverse = density.log_prob(draws.z[index]).double()
    apart = _largest(inverse - draws.log_q[index].double())
    return {
        "rows": len(index),
        "inverse": [_number(value) for value in inverse.tolist()],
        "apart": _number(apart),
        "elbo": _number(draws.elbo()[0]),
    }


def check_tie(
    density: FlowDensity | NoiseDensity, draws: WeighedDraws, recorded: Mapping[str, Any] | None
) -> None:
    """Compare a guide with the draws beside it, by one pass of some of them through its inverse.

    Args:
        density: The guide's.
        draws: The draws.
        recorded: What :func:`tie` returned; None for a file of version 0.1.

    Raises:
        Malformed: The draws are not the guide's, or their densities are not the ones of the file.
    """
    index = _some(draws.z)
    with torch.no_grad():
        found = density.log_prob(draws.z[index]).double()
    log_q = draws.log_q[index].double()
    apart = _largest(found - log_q)
    if recorded is None:
        if not apart <= FILES.tie_unknown * (1 + float(log_q.abs().max())):
            raise Malformed("its guide is not the one of its draws")
        return
    expected = torch.tensor([float(one) for one in recorded["inverse"]], dtype=torch.float64)
    if recorded["rows"] != len(index) or len(expected) != len(index):
        raise Malformed("its draws are not as many as it says")
    expected = expected.to(found.device)
    slack = FILES.tie_rounding * torch.finfo(draws.z.dtype).eps * (1 + expected.abs())
    slack = slack + 0.1 * (expected - log_q).abs()
    same = (found - expected).abs() <= slack
    if not bool((same | (found.isnan() & expected.isnan()) | (found == expected)).all()):
        raise Malformed("its guide is not the one of its draws")
    for what, was, now in (
        ("log q", recorded["apart"], _largest(expected - log_q)),
        ("weights", recorded["elbo"], draws.elbo()[0]),
    ):
        was = float(was)
        near = was == now or abs(was - now) <= 1e-9 * (1 + abs(was))
        if not near and not (math.isnan(was) and math.isnan(now)):
            raise Malformed(f"its {what} are not the ones of its draws")


def _some(z: Tensor) -> Tensor:
    count, dim = z.shape
    rows = min(count, FILES.tie_rows, max(FILES.tie_fewest_rows, FILES.tie_numbers // max(1, dim)))
    return torch.linspace(0, count - 1, rows, device=z.device).long()


def _largest(apart: Tensor) -> float:
    finite = apart[torch.isfinite(apart)].abs()
    return float(finite.max()) if len(finite) else math.inf


def _number(value: float) -> float | str:
    """Return a number as strict JSON can hold it."""
    return value if math.isfinite(value) else str(value)
