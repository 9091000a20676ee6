"""Names and formulas of flows: ``"planar*16"``, ``"iaf*2"``, ``"iaf*2|planar*4"``."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pyro_nfvi._option_names import meant
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._affine import DiagonalAffine, LowerTriangular
from pyro_nfvi.flows._autoregressive import Autoregressive, iaf, maf
from pyro_nfvi.flows._base import Chain, Flow, Inverse, check_dim
from pyro_nfvi.flows._block_autoregressive import BlockAutoregressive
from pyro_nfvi.flows._continuous import Continuous
from pyro_nfvi.flows._coupling import Coupling
from pyro_nfvi.flows._coupling_masks import random_halves
from pyro_nfvi.flows._elementwise import Elementwise
from pyro_nfvi.flows._lu_linear import LULinear
from pyro_nfvi.flows._neural_autoregressive import MonotoneTransformer
from pyro_nfvi.flows._normalization import ActNorm
from pyro_nfvi.flows._planar import PlanarChain
from pyro_nfvi.flows._radial import Radial
from pyro_nfvi.flows._spline import SplineTransformer
from pyro_nfvi.flows._sylvester import Sylvester
from pyro_nfvi.flows._tail_transform import TailTransformer
from pyro_nfvi.flows._transformers import ReLUTransformer, ShiftTransformer, Transformer

#: Builds ``count`` layers of one family: ``(dim, context_dim, count, **options) -> flows``.
_Builder = Callable[..., list[Flow]]


def _repeat(make: Callable[..., Flow]) -> _Builder:
    def build(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
        return [make(dim, context_dim, **options) for _ in range(count)]

    return build


def _alternate(make: Callable[..., Flow]) -> _Builder:
    """Every second layer takes the coordinates in reverse, the first in the given order."""

    def build(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
        return [make(dim, context_dim, reverse=bool(i % 2), **options) for i in range(count)]

    return build


def _planar(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
    return [PlanarChain(dim, count, context_dim, **options)]


def _sylvester(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
    build = _alternate if options.get("kind") == "triangular" else _repeat
    return build(Sylvester)(dim, context_dim, count, **options)


def _couplings(
    dim: int, context_dim: int, count: int, transformer: Transformer | None, **options: Any
) -> list[Flow]:
    """Layers in complementary pairs: halves first, then halves of random orders."""
    chosen = options.pop("mask", None)
    flows: list[Flow] = []
    for i in range(count):
        mask = chosen
        if mask is None:
            mask = "halves" if i < 2 or dim < 2 else random_halves(dim, seed=i // 2)
        reverse = bool(i % 2)
        flows.append(
            Coupling(
                dim, context_dim, transformer=transformer, mask=mask, reverse=reverse, **options
            )
        )
    return flows


def _realnvp(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
    return _couplings(dim, context_dim, count, None, **options)


def _nice(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
    # Volume-preserving layers need NICE's diagonal scaling behind them.
    layers = _couplings(dim, context_dim, count, ShiftTransformer(), **options)
    return [*layers, DiagonalAffine(dim, context_dim)]


def _spline_transformer(options: dict[str, Any]) -> SplineTransformer:
    given = {key: options.pop(key) for key in ("bins", "bound") if key in options}
    return SplineTransformer(**given)


def _nsf(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
    transformer = _spline_transformer(options)
    return _couplings(dim, context_dim, count, transformer, **options)


def _nsf_ar(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
    transformer = _spline_transformer(options)
    return _alternate(Autoregressive)(dim, context_dim, count, transformer=transformer, **options)


def _angular(
    dim: int, context_dim: int, count: int, transformer: Transformer, **options: Any
) -> list[Flow]:
    """Couplings of angles; a single angle has none to look at, and moves by itself."""
    if dim > 1:
        return _couplings(dim, context_dim, count, transformer, **options)
    width = {key: options[key] for key in ("hidden_dim",) if key in options}
    build = _repeat(Elementwise)
    return build(dim, context_dim, count, transformer=transformer, **width)


def _ncsf(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
    from pyro_nfvi.flows._circular_spline import CircularSplineTransformer

    given = {"bins": options.pop("bins")} if "bins" in options else {}
    return _angular(dim, context_dim, count, CircularSplineTransformer(**given), **options)


def _moebius(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
    from pyro_nfvi.flows._moebius import MoebiusTransformer

    given = {"centres": options.pop("centres")} if "centres" in options else {}
    return _angular(dim, context_dim, count, MoebiusTransformer(**given), **options)


def _naf(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
    transformer = MonotoneTransformer(
        **({"units": options.pop("units")} if "units" in options else {})
    )
    return _alternate(Autoregressive)(dim, context_dim, count, transformer=transformer, **options)


def _glow(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
    flows: list[Flow] = []
    for coupling in _couplings(dim, context_dim, count, None, **options):
        flows += [ActNorm(dim), LULinear(dim), coupling]
    return flows


def _relu(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
    flows: list[Flow] = []
    for _ in range(count):
        # Random maps, each undone behind its kinks: the whole starts as the identity, and no two
        # layers bend along the same lines (equal ones would get equal gradients for ever).
        mix = LULinear(dim, context_dim, spread=1.0 / dim**0.5, **options)
        bend = Elementwise(dim, context_dim, transformer=ReLUTransformer(), **options)
        flows += [mix, bend, Inverse(copy.deepcopy(mix))]
    return [*flows, LULinear(dim, context_dim, **options)]


def _tail(dim: int, context_dim: int, count: int, **options: Any) -> list[Flow]:
    return _repeat(Elementwise)(dim, context_dim, count, transformer=TailTransformer(), **options)


@dataclass(frozen=True)
class _Family:
    build: _Builder
    #: Layers of a name without a count.
    count: int
    #: Options that the builder takes.
    options: frozenset[str]
    #: What was registered; None for the library's own.
    make: Callable[..., Flow] | None = None


def _family(build: _Builder, count: int, *options: str) -> _Family:
    return _Family(build, count, frozenset({"hidden_dim", *options}))


_NETS = ("activation", "skip_connections")
_COUPLING = ("mask", "conditioner", *_NETS)
_FAMILIES: dict[str, _Family] = {
    "planar": _family(_planar, 8),
    "radial": _family(_repeat(Radial), 4),
    "sylvester": _family(_sylvester, 1, "rank", "kind", "num_reflections"),
    "iaf": _family(_alternate(iaf), 2, "gate", *_NETS),
    "maf": _family(_alternate(maf), 2, "gate", *_NETS),
    "nice": _family(_nice, 4, *_COUPLING),
    "realnvp": _family(_realnvp, 6, *_COUPLING),
    "nsf": _family(_nsf, 2, "bins", "bound", *_COUPLING),
    "nsf-ar": _family(_nsf_ar, 2, "bins", "bound", *_NETS),
    "naf": _family(_naf, 1, "units", *_NETS),
    "ncsf": _family(_ncsf, 2, "bins", *_COUPLING),
    "moebius": _family(_moebius, 2, "centres", *_COUPLING),
    "bnaf": _Family(_alternate(BlockAutoregressive), 1, frozenset({"hidden_factor", "num_hidden"})),
    "glow": _family(_glow, 4, *_COUPLING),
    "relu": _family(_relu, 6),
    "ffjord": _family(_repeat(Continuous), 1, "solver", "steps", "tolerance", "trace"),
    "tail": _family(_tail, 1),
    "affine": _family(_repeat(DiagonalAffine), 1),
    "tril": _family(_repeat(LowerTriangular), 1),
}
#: The names of the library's own families.
FLOW_NAMES: tuple[str, ...] = tuple(_FAMILIES)

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_TERM = re.compile(rf"\s*({_NAME.pattern})\s*(?:\*\s*([0-9]+)\s*)?")


def register_flow(
    name: str,
    make: Callable[..., Flow],
    *,
    num_layers: int = 1,
    options: Sequence[str] = (),
    alternate: bool = False,
) -> None:
    """Give a flow of your own a name, known wherever a flow is named from then on.

    In formulas it is a family like all others, ``"name*3|affine"``. Names belong to a process:
    register where the class is defined, so that whoever imports it, a program that loads a saved
    fit for one, has the name too. The command of the VAE imports such modules by ``--modules``.

    Args:
        name: Small letters, digits and hyphens.
        make: ``(dim, context_dim, **options) -> Flow`` builds one layer; usually the class.
        num_layers: Layers of a name without a count.
        options: Names of the options that ``make`` takes.
        alternate: Pass ``reverse=True`` to every second layer.

    Raises:
        OptionError: A name that cannot stand in a formula or that is taken by another flow.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import ParamFlow, make_flow, register_flow
        >>> class Shift(ParamFlow):
        ...     def init_params(self):
        ...         return {"loc": torch.zeros(self.dim)}
        ...     def _forward(self, x, theta):
        ...         return x + theta["loc"], torch.zeros_like(x).sum(-1)
        ...     def _inverse(self, y, theta):
        ...         return y - theta["loc"], torch.zeros_like(y).sum(-1)
        >>> register_flow("my-shift", Shift)
        >>> len(make_flow("my-shift*2|affine", dim=3).layers())
        3
    """
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise OptionError(
            "register_flow needs a name of small letters, digits and hyphens, such as 'my-flow'; "
            f"got {name!r}."
        )
    if not callable(make):
        raise OptionError(
            f"register_flow needs a callable (dim, context_dim, **options) -> Flow; got {make!r}."
        )
    count = whole("register_flow: num_layers", num_layers)
    build = (_alternate if alternate else _repeat)(make)
    family = _Family(build, count, frozenset(options), make)
    taken = _FAMILIES.get(name)
    if taken is not None and not _same(taken.make, make):
        raise OptionError(f"The flow name {name!r} is taken; choose another.")
    _FAMILIES[name] = family


def _same(old: object, new: object) -> bool:
    """Tell whether two callables are one, perhaps of a module that was imported again."""
    if old is new:
        return True
    where = [(getattr(f, "__module__", f), getattr(f, "__qualname__", f)) for f in (old, new)]
    return where[0] == where[1]


def make_flow(
    formula: str, dim: int, context_dim: int = 0, *, reversible: bool = False, **options: Any
) -> Flow:
    """Build a flow from its name or formula.

    ``"name"`` takes the family's usual number of layers, ``"name*K"`` takes K with the right
    order between them, ``"a|b"`` runs a and then b, from the base to the posterior.

    Args:
        formula: Names: ``planar radial sylvester iaf maf nice realnvp nsf nsf-ar naf ncsf
            moebius bnaf glow relu ffjord tail affine tril``, and those of :func:`register_flow`.
        dim: Event size D.
        context_dim: Size of the context; 0 for none.
        reversible: Keep no activations for the backward pass, as :class:`Chain` says.
        **options: Passed to every family of the formula that knows them, such as
            ``hidden_dim`` or ``gate``; an option that none of them knows is an error.

    Raises:
        OptionError: An unknown name or option, or a formula that cannot be read.

    Example:
        >>> import torch
        >>> from pyro_nfvi.flows import make_flow
        >>> flow = make_flow("iaf*2|planar*4", dim=3, hidden_dim=16)
        >>> y, ladj = flow(torch.zeros(5, 3))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """
    terms = check_formula(formula, options)
    check_dim(f"The flow {formula!r}", dim)
    flows: list[Flow] = []
    for name, count in terms:
        family = _FAMILIES[name]
        chosen = {key: value for key, value in options.items() if key in family.options}
        layers = family.count if count is None else count
        built = family.build(dim, context_dim, layers, **chosen)
        _check_built(name, built, dim, context_dim)
        flows += built
    if len(flows) == 1 and not reversible:
        return flows[0]
    return Chain(*flows, reversible=reversible)


def _check_built(name: str, built: list[Flow], dim: int, context_dim: int) -> None:
    """Raise unless a family, a registered one perhaps, built flows of the sizes asked for."""
    for flow in built:
        if not isinstance(flow, Flow):
            raise OptionError(
                f"The flow {name!r} needs to build a Flow; its callable returned "
                f"{type(flow).__name__}. Wrap transforms of Pyro or Zuko with flows.adapt."
            )
        if flow.dim != dim or flow.context_dim not in (0, context_dim):
            raise OptionError(
                f"The flow {name!r} was asked for dim={dim}, context_dim={context_dim}; its "
                f"callable built dim={flow.dim}, context_dim={flow.context_dim}."
            )


def check_formula(formula: str, options: Mapping[str, Any]) -> list[tuple[str, int | None]]:
    """Read a formula into names and counts, and check that its options are known.

    Raises:
        OptionError: As :func:`make_flow`, which needs a dimension to build; this does not.
    """
    if not isinstance(formula, str):
        raise OptionError(
            f"make_flow needs a formula such as 'iaf*2'; got {type(formula).__name__}."
        )
    terms = [_parse(term, formula) for term in formula.split("|")]
    known = {name: _FAMILIES[name].options for name, _ in terms}
    stray = set(options) - set().union(*known.values())
    if stray:
        names = sorted(set().union(*known.values()))
        hint = "".join(meant(name, names) for name in sorted(stray))
        allowed = "; ".join(f"{name}: {', '.join(sorted(known[name]))}" for name in known)
        raise OptionError(
            f"The flow {formula!r} takes no option {', '.join(sorted(stray))}.{hint} It "
            f"takes {allowed}."
        )
    return terms


def _parse(term: str, formula: str) -> tuple[str, int | None]:
    match = _TERM.fullmatch(term)
    if match is None:
        raise OptionError(
            f"The flow formula {formula!r} cannot be read at {term!r}. Write names with an "
            "optional count, joined by '|': 'iaf*2', 'planar*16', 'iaf*2|planar*4'."
        )
    name, count = match.group(1), match.group(2)
    if name not in _FAMILIES:
        close = get_close_matches(name, _FAMILIES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise OptionError(
            f"Unknown flow {name!r} in {formula!r}; known are {', '.join(_FAMILIES)}.{hint}"
        )
    if count is not None and int(count) < 1:
        raise OptionError(f"The flow formula {formula!r} asks for no layer; the least is '*1'.")
    return name, None if count is None else int(count)
