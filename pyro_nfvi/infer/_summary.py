"""A table of marginals that needs no ArviZ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pyro_nfvi.diagnostics._importance import weighted_mean, weighted_quantile, weighted_sd
from pyro_nfvi.infer._recipe import WORDS

_HEAD = ("mean", "sd", "5%", "50%", "95%")


def _listed(names: Sequence[str]) -> str:
    """Join names, leaving out the middle of a long list."""
    if len(names) > WORDS.listed:
        names = [*names[: WORDS.listed - 2], "...", names[-1]]
    return ", ".join(names)


@dataclass(frozen=True)
class Row:
    """Moments and quantiles of one number."""

    name: str
    mean: float
    sd: float
    q5: float
    q50: float
    q95: float

    def numbers(self) -> tuple[float, ...]:
        """The numbers, in the order of the table's head."""
        return self.mean, self.sd, self.q5, self.q50, self.q95


@dataclass(frozen=True)
class Summary(Mapping[str, Row]):
    """Mean, sd and the 5, 50 and 95 % quantiles of every number, by name.

    ``summary["theta[3]"].mean`` is a number; ``print(summary)`` shows the table.

    Attributes:
        rows: One for each number, sites in the model's order.
        note: A line below the table.
    """

    rows: tuple[Row, ...]
    note: str = ""

    @classmethod
    def of(cls, draws: Mapping[str, Tensor], log_weights: Tensor, note: str = "") -> Summary:
        """Summarise draws ``(S, *shape)`` under log weights ``(S,)``."""
        rows = []
        for name, value in draws.items():
            value = value.detach().double()
            mean, sd = weighted_mean(value, log_weights), weighted_sd(value, log_weights)
            quantiles = weighted_quantile(value, log_weights, WORDS.levels)
            for index in itertools.product(*map(range, value.shape[1:])):
                label = f"{name}[{', '.join(map(str, index))}]" if index else name
                levels = [float(level[index]) for level in quantiles]
                rows.append(Row(label, float(mean[index]), float(sd[index]), *levels))
        return cls(tuple(rows), note)

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(self._unknown(name))

    def _unknown(self, name: str) -> str:
        """Say which rows there are: those of the site that was meant, or all in short."""
        parts = [row.name for row in self.rows if row.name.startswith(f"{name}[")]
        if parts:
            return (
                f"{name!r} has {len(parts)} rows, one for each number: {_listed(parts)}; take one "
                f"of them, or all draws by fit.sample(deterministic=True)[{name!r}]"
            )
        return f"no row is called {name!r}; there are {_listed([row.name for row in self.rows])}"

    def __iter__(self) -> Iterator[str]:
        return (row.name for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        width = max([len(row.name) for row in self.rows], default=4)
        lines = [" " * width + "".join(f"{head:>11}" for head in _HEAD)]
        for row in self.rows:
            lines.append(f"{row.name:<{width}}" + "".join(f"{x:>11.4g}" for x in row.numbers()))
        return "\n".join([*lines, self.note] if self.note else lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from pyro_nfvi import _html

        rows = [(row.name, *(f"{x:.4g}" for x in row.numbers())) for row in self.rows]
        return f"{_html.table(('', *_HEAD), rows)}{_html.text(self.note)}"
