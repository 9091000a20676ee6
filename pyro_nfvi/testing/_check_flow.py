"""``check_flow``: all laws, on all sizes and dtypes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch

from pyro_nfvi._optional_import import process_kept
from pyro_nfvi.errors import OptionError
from pyro_nfvi.testing import (
    _calculus as calculus,
)
from pyro_nfvi.testing import (
    _contract as contract,
)
from pyro_nfvi.testing import (
    _gradients as gradients,
)
from pyro_nfvi.testing import (
    _purity as purity,
)
from pyro_nfvi.testing import (
    _tracing as tracing,
)
from pyro_nfvi.testing._case import FlowCase, FlowFactory, Law

#: All laws by name, in the order in which they are examined: the plain ones first, so that the
#: first broken law is the one to mend.
LAWS: dict[str, Law] = {
    one.name: one
    for group in (contract, calculus, gradients, purity, tracing)
    for one in group.LAWS
}


def check_flow(
    factory: FlowFactory,
    *,
    dims: Sequence[int] = (1, 2, 5),
    context_dims: Sequence[int] = (0, 3),
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    laws: Sequence[str] | None = None,
    exempt: Mapping[str, str] | None = None,
    slack: Mapping[str, float] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> None:
    """Examine a flow, your own too, under every law that flows of this library keep.

    The flow is built for each size, at initialisation and far from it. The first broken law
    raises, and says what was found and what was allowed. Each law can be examined alone:
    ``check_flow(MyFlow, laws=["ladj"])``.

    Args:
        factory: ``(dim, context_dim) -> Flow``; usually the class.
        dims: Event sizes D to examine.
        context_dims: Context sizes C; ``(0,)`` for a flow that takes no context.
        dtypes: Floating-point types.
        laws: Names of the laws to examine; all if None.
        exempt: Law -> the reason why this flow need not keep it.
        slack: Law -> factor on what it allows, for maps that are ill-conditioned by nature.
        seed: Fixes initialisation, far parameters and points. The global random number
            generators are left as they were.
        device: Where to build the flow.

    Raises:
        LawError: A law is broken: the law, the case, the number found, the number allowed,
            and a hint.
        OptionError: An unknown law, or an exemption without a reason.

    Cost:
        Some seconds for a flow of closed form; tracing laws and the density grid take most.

    Example:
        >>> from pyro_nfvi.flows import DiagonalAffine
        >>> check_flow(DiagonalAffine, dims=(2,), laws=["shapes", "round trip", "ladj"])
    """
    chosen = list(LAWS) if laws is None else list(laws)
    exempt, slack = dict(exempt or {}), dict(slack or {})
    unknown = [name for name in (*chosen, *exempt, *slack) if name not in LAWS]
    if unknown:
        raise OptionError(f"check_flow knows no law {unknown[0]!r}; the laws: {', '.join(LAWS)}.")
    for name, reason in exempt.items():
        if not isinstance(reason, str) or not reason.strip():
            raise OptionError(f"check_flow needs a reason for the exemption from {name!r}.")
    if not dims or not context_dims or not dtypes:
        raise OptionError("check_flow needs at least one dim, one context_dim and one dtype.")
    for name in chosen:
        if name in exempt:
            continue
        scope = LAWS[name].scope
        for dtype, dim, context_dim in itertools.product(dtypes, dims, context_dims):
            case = FlowCase(
                factory, dim, context_dim, dtype, seed, slack.get(name, 1.0), device=device
            )
            if scope.covers(case) and not (scope.once and dim != max(dims)):
                with process_kept():
                    LAWS[name](case)
