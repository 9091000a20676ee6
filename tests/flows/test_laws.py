"""Every law over every flow of the catalogue: one test per law and flow."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence

import pytest
import torch
from catalog import FLOWS

import pyro_nfvi.flows
from pyro_nfvi.errors import LawError
from pyro_nfvi.flows import Flow
from pyro_nfvi.flows._conditional_affine import ConditionalAffine
from pyro_nfvi.flows._interop import Adapted
from pyro_nfvi.flows._pair_flow import PairFlow
from pyro_nfvi.flows._plate_flow import PlateFlow
from pyro_nfvi.testing import check_flow
from pyro_nfvi.testing._case import FlowCase
from pyro_nfvi.testing._check_flow import LAWS
from pyro_nfvi.testing._tracing import check_compiled

#: Laws that trace the root finding of every layer: long, and inverses are rarely compiled.
SLOW = {"make_fx inverse", "compile inverse"}
#: Laws that take long, and do not depend on the size of a flow: the fast set examines the largest
#: size alone, with a context where the flow takes one, and the slow set all sizes.
ONE_SIZE = {"make_fx", "density", "copies", "vmap", "purity"}
#: Pairs of a law and a flow that take longest; other flows of the family are examined.
LONG = {
    ("make_fx", "continuous"),
    ("make_fx", "inverse_of_chain"),
    ("make_fx", "nsf*2"),
    ("make_fx", "nsf-ar*1"),
    ("make_fx", "relu*3"),
    ("make_fx", "block_deep_reverse"),
    ("make_fx", "coupling_spline"),
    ("make_fx", "iaf_affine_reverse"),
    ("make_fx", "iaf*2|planar*4"),
    ("make_fx", "naf*1"),
    ("make_fx", "sylvester_householder"),
    ("compile", "iaf*2|planar*4"),
    ("compile", "nsf-ar*1"),
    ("compile", "block_deep_reverse"),
    ("compile", "naf*1"),
    ("copies", "sylvester*2"),
    ("density", "glow*2"),
    ("density", "sylvester*2"),
    ("density", "block"),
    ("density", "iaf*2|planar*4"),
    ("density", "realnvp*4"),
    ("density", "nsf*2"),
}
COMPILE = {"compile", "compile inverse"}
#: Compositions of layers that are examined by themselves. In the fast set "chain" is
#: traced for all of them.
COMPOSED = {
    "planar*4", "radial*3", "sylvester*2", "iaf*2", "maf*2", "affine|tril", "chain_permuted",
    "inverse_of_chain", "realnvp*4", "nice*4", "nsf*2", "glow*2", "relu*3",
}  # fmt: skip


EITHER = [torch.float32, torch.float64]


def sizes(flow: str, law: str) -> list[int]:
    """Sizes at which a law is examined."""
    case, most = FLOWS[flow], LAWS[law].scope.max_dim
    return [dim for dim in case.dims if dim >= case.min_dim and (most is None or dim <= most)]


def examine(
    flow: str,
    law: str,
    context_dims=(0, 3),
    *,
    dims: Sequence[int] = (),
    dtypes: Sequence[torch.dtype] = EITHER,
) -> None:
    case = FLOWS[flow]
    check_flow(
        case.make,
        dims=dims or sizes(flow, law),
        dtypes=dtypes,
        context_dims=context_dims if case.context else (0,),
        laws=[law],
        slack={name: factor for name, (factor, _) in case.slack.items()},
        seed=case.seed,
    )


def law_by_flow():
    found = []
    for law in LAWS:
        for flow, case in FLOWS.items():
            if law in case.exempt or (LAWS[law].scope.context and not case.context):
                continue
            if not sizes(flow, law):
                continue
            slow = law in SLOW or case.slow or (law, flow) in LONG
            slow = slow or (law in ("make_fx", "compile") and flow in COMPOSED)
            marks = [pytest.mark.slow] * slow + [pytest.mark.compile] * (law in COMPILE)
            found.append(pytest.param(flow, law, id=f"{law.replace(' ', '_')}-{flow}", marks=marks))
    return found


@pytest.mark.parametrize(("flow", "law"), law_by_flow())
def test_flow_keeps_law(flow, law):
    # Compiling costs a second; with a context in the slow set.
    if law in COMPILE:
        examine(flow, law, (0,))
    elif law in ONE_SIZE or FLOWS[flow].slow or law in SLOW:
        examine(flow, law, (3,), dims=sizes(flow, law)[-1:])
    else:  # the ends: the smallest size without a context, and the largest with one
        single, double = ([one] for one in EITHER)
        if LAWS[law].scope.dtype is not None:
            single = double = EITHER
        examine(flow, law, (0,), dims=sizes(flow, law)[:1], dtypes=double)
        examine(flow, law, (3,), dims=sizes(flow, law)[-1:], dtypes=single)


@pytest.mark.slow
@pytest.mark.parametrize("law", sorted(set(LAWS) - COMPILE))
@pytest.mark.parametrize("flow", FLOWS)
def test_flow_keeps_law_at_every_size(flow, law):
    if law not in FLOWS[flow].exempt and sizes(flow, law):
        examine(flow, law)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("flow", [name for name, case in FLOWS.items() if case.context])
def test_conditional_flow_compiles(flow):
    examine(flow, "compile", (3,))


@pytest.mark.parametrize(
    ("flow", "law"),
    [pytest.param(flow, law, id=f"{law}-{flow}") for flow in FLOWS for law in FLOWS[flow].exempt],
)
def test_exemption_is_needed(flow, law):
    assert FLOWS[flow].exempt[law].strip()
    with pytest.raises(LawError):
        examine(flow, law)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("flow", FLOWS)
def test_inductor_equals_eager(flow, context_dim):
    if context_dim and not FLOWS[flow].context:
        pytest.skip("takes no context")
    case = FlowCase(FLOWS[flow].make, 5, context_dim, torch.float64)
    check_compiled(case, backend="inductor")


def test_every_flow_of_the_library_is_in_the_catalogue():
    family = set()
    for module in pkgutil.iter_modules(pyro_nfvi.flows.__path__):
        for one in vars(importlib.import_module(f"pyro_nfvi.flows.{module.name}")).values():
            if inspect.isclass(one) and issubclass(one, Flow) and not inspect.isabstract(one):
                family.add(one)
    # Adapted and PairFlow wrap other people's maps, which need not keep our laws:
    # tests/flows/test_interop.py, test_other_libraries.py. ConditionalAffine is made from a
    # posterior: test_conditional_affine.py.
    # The laws of PlateFlow need sizes with room for rows; tests/flows/test_plate_flow.py.
    family -= {Adapted, ConditionalAffine, PairFlow, PlateFlow}
    covered = {type(part) for case in FLOWS.values() for part in case.make(2, 0).modules()}
    assert {one.__name__ for one in family - covered} == set()
