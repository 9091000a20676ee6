"""Rows of the data of a model: which arguments hold them, and parts of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_nfvi._random import stream
from pyro_nfvi.errors import OptionError

#: Arguments of a call of a model.
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class RowSplit:
    """Arguments of a model of which some hold a row of data for each entry.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        places: The leaves of both that have rows, by number.
        count: Number of rows.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    places: tuple[int, ...]
    count: int

    def take(self, index: Tensor) -> Call:
        """Return the arguments with these rows."""
        leaves, structure = tree_flatten((self.args, self.kwargs))
        for place in self.places:
            value = leaves[place]
            inside = index.numpy() if isinstance(value, np.ndarray) else index.to(value.device)
            leaves[place] = value[inside]
        found: Call = tree_unflatten(leaves, structure)
        return found

    def without(self, index: Tensor) -> Call:
        """Return the arguments without these rows."""
        kept = torch.ones(self.count, dtype=torch.bool)
        kept[index] = False
        return self.take(kept.nonzero().squeeze(-1))

    def held_out(self, index: Tensor, from_prior: tuple[str, ...] | None) -> HeldOut:
        """Return these rows as what a fit is scored on."""
        args, kwargs = self.take(index)
        part = RowSplit(args, kwargs, self.places, len(index))
        return HeldOut(part, index, from_prior)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows that a fit did not see.

    Attributes:
        rows: The arguments of the model at these rows.
        index: Their numbers among all rows ``(n,)``.
        from_prior: Latents to draw from their prior given the others; None for those that lie in
            plates of the rows.
    """

    rows: RowSplit
    index: Tensor
    from_prior: tuple[str, ...] | None = None


def split_rows(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    rows: Sequence[int | str] | None,
) -> RowSplit:
    """Find the arguments that have rows.

    Args:
        model: The model, for the names of its parameters.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        rows: Positions or names of those with rows; None for all arrays.

    Raises:
        OptionError: There are none, they have different lengths, or a name is unknown.
    """
    call = (tuple(args), dict(kwargs))
    leaves, _ = tree_flatten(call)
    owners = [_owner(number, call) for number in range(len(leaves))]
    asked = None if rows is None else _asked(model, call, rows)
    lengths = {
        place: len(leaf)
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, (Tensor, np.ndarray))
        and leaf.ndim > 0
        and (asked is None or owners[place] in asked)
    }
    if not lengths:
        raise OptionError(
            "No argument holds rows of data: give tensors or arrays with the rows in their first "
            "dimension, and name them if need be, rows=['x', 'y']."
        )
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{owners[place]!r} has {length}" for place, length in lengths.items())
        raise OptionError(
            f"The arguments have different numbers of rows: {told}. Name those whose first "
            "dimension is the rows of the data: rows=[...]."
        )
    count = next(iter(lengths.values()))
    if count < 2:
        raise OptionError(f"Rows can be held out of two or more; there is {count}.")
    return RowSplit(*call, tuple(lengths), count)


def random_folds(num_folds: int, count: int, seed: int) -> list[Tensor]:
    """Return the rows of each of several random parts, sizes differing by one at most.

    Example:
        >>> [len(part) for part in random_folds(3, 8, seed=0)]
        [3, 3, 2]
    """
    if num_folds > count:
        raise OptionError(f"num_folds is at most the number of rows, {count}; got {num_folds}.")
    order = torch.randperm(count, generator=stream(seed, "folds"))
    return [part.sort().values for part in order.tensor_split(num_folds)]


def group_rows(groups: Any, count: int) -> dict[Any, Tensor]:
    """Return the rows of each group, by its label.

    Example:
        >>> {name: rows.tolist() for name, rows in group_rows(["a", "b", "a"], 3).items()}
        {'a': [0, 2], 'b': [1]}
    """
    listed = groups.tolist() if isinstance(groups, (Tensor, np.ndarray)) else groups
    if isinstance(listed, (str, bytes)) or not isinstance(listed, Sequence):
        raise OptionError(f"groups has a label for each row; got {groups!r}.")
    if len(listed) != count:
        raise OptionError(f"groups has {len(listed)} labels, and there are {count} rows.")
    found: dict[Any, list[int]] = {}
    for row, label in enumerate(listed):
        if not isinstance(label, (str, int, float, bool)):
            raise OptionError(f"Labels of groups are words or numbers; got {label!r} in row {row}.")
        found.setdefault(label, []).append(row)
    if len(found) < 2:
        raise OptionError("A group can be held out of two or more; all rows have the same label.")
    return {label: torch.tensor(rows) for label, rows in found.items()}


def _owner(number: int, call: Call) -> int | str:
    """Return the argument to which a leaf belongs: its position, or its keyword."""
    places: list[tuple[int | str, Any]] = [*enumerate(call[0]), *call[1].items()]
    for place, value in places:
        number -= len(tree_flatten(value)[0])
        if number < 0:
            return place
    raise IndexError(number)


def _asked(model: Callable[..., Any], call: Call, rows: Sequence[int | str]) -> set[int | str]:
    """Return positions and keywords of the named arguments."""
    if isinstance(rows, str) or not isinstance(rows, Sequence):
        raise OptionError(
            f"rows is a list of positions or names, such as ['x', 'y']; got {rows!r}."
        )
    args, kwargs = call
    forward = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        names = list(inspect.signature(forward).parameters)
    except (TypeError, ValueError):
        names = []
    known: dict[int | str, int | str] = dict(zip(names, range(len(args))))
    known |= {place: place for place in range(len(args))} | {name: name for name in kwargs}
    unknown = [name for name in rows if name not in known]
    if unknown:
        raise OptionError(f"rows names {unknown[0]!r}; the arguments given are {list(known)}.")
    return {known[name] for name in rows}
