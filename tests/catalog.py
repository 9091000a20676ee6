"""Every flow of the library, with what it may claim for itself: the laws run over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from pyro_nfvi.flows import (
    Affine,
    Chain,
    DiagonalAffine,
    Flow,
    Inverse,
    LowerTriangular,
    Permute,
    Planar,
    PlanarChain,
    Radial,
    Sylvester,
    iaf,
    maf,
    make_flow,
)

__all__ = ["FLOWS", "Case"]

_MOVES = "a permutation moves the coordinates from the start"


@dataclass(frozen=True)
class Case:
    """How to build a flow, and which laws it is excused from, with the reason.

    ``slack`` is law -> (factor on what the law allows, reason).
    """

    make: Callable[[int, int], Flow]
    min_dim: int = 1
    context: bool = True
    exempt: Mapping[str, str] = field(default_factory=dict)
    slack: Mapping[str, tuple[float, str]] = field(default_factory=dict)


def _formula(formula: str, **options: object) -> Case:
    return Case(lambda dim, context_dim: make_flow(formula, dim, context_dim, **options))


FLOWS: dict[str, Case] = {
    "planar": Case(Planar),
    "planar_chain": Case(lambda dim, context_dim: PlanarChain(dim, 4, context_dim)),
    "radial": Case(Radial),
    "sylvester_qr": Case(lambda d, c: Sylvester(d, c, rank=min(d, 3))),
    "sylvester_householder": Case(
        lambda d, c: Sylvester(d, c, rank=min(d, 3), kind="householder", num_reflections=2)
    ),
    "sylvester_triangular": Case(lambda d, c: Sylvester(d, c, kind="triangular")),
    "sylvester_triangular_reverse": Case(
        lambda d, c: Sylvester(d, c, kind="triangular", reverse=True)
    ),
    "iaf_affine": Case(lambda d, c: iaf(d, c, hidden_dim=16)),
    "iaf_affine_reverse": Case(lambda d, c: iaf(d, c, hidden_dim=(8, 8), reverse=True)),
    "iaf_sigmoid": Case(lambda d, c: iaf(d, c, hidden_dim=16, gate="sigmoid")),
    "maf": Case(lambda d, c: maf(d, c, hidden_dim=16)),
    "diagonal_affine": Case(DiagonalAffine),
    "lower_triangular": Case(LowerTriangular),
    "affine": Case(
        lambda d, c: Affine(torch.arange(d) / 2.0, 1 + torch.arange(d) / 3.0),
        context=False,
        exempt={"identity": "its numbers belong to whoever builds it"},
    ),
    "affine_full": Case(
        lambda d, c: Affine(torch.zeros(d), scale_tril=torch.eye(d) + torch.ones(d, d).tril()),
        context=False,
        exempt={"identity": "its numbers belong to whoever builds it"},
    ),
    "permute": Case(
        lambda d, c: Permute.random(d, seed=1),
        context=False,
        exempt={
            "identity": _MOVES,
        },
    ),
    "reversal": Case(lambda d, c: Permute.reversal(d), context=False, exempt={"identity": _MOVES}),
    "chain": Case(lambda d, c: Chain(Planar(d, c), Radial(d, c), DiagonalAffine(d, c))),
    "chain_permuted": Case(
        lambda d, c: Chain(iaf(d, c, hidden_dim=8), Permute.reversal(d), Planar(d, c)),
        exempt={"identity": _MOVES},
    ),
    "chain_part_context": Case(lambda d, c: Chain(Planar(d), LowerTriangular(d, c), Radial(d))),
    "inverse_of_chain": Case(lambda d, c: Inverse(Chain(Planar(d, c), Sylvester(d, c, rank=1)))),
    "planar*4": _formula("planar*4"),
    "radial*3": _formula("radial*3"),
    "sylvester*2": _formula("sylvester*2"),
    "iaf*2": _formula("iaf*2", hidden_dim=16),
    "maf*2": _formula("maf*2", hidden_dim=16),
    "iaf*2|planar*4": _formula("iaf*2|planar*4", hidden_dim=16),
    "affine|tril": _formula("affine|tril"),
}
