"""Pictures of many runs: one point for each flow, and how numbers fall with the depth K."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyro_nfvi.plots._style import FIT, REFERENCE, STYLE, pyplot
from pyro_nfvi.vae._nll_summary import doubt_of

if TYPE_CHECKING:
    from benchmarks.vae.sweep.table import Row


_MARKS = "os^Dv*"


def depths(rows: Sequence[Row]) -> dict[str, list[tuple[int, Row]]]:
    """Group rows that differ in their depth alone; leave out kinds with a single depth.

    ``"planar*4:hidden_dim=9"`` has the kind ``"planar:hidden_dim=9"`` and the depth 4.
    """
    found: dict[str, list[tuple[int, Row]]] = {}
    for row in rows:
        formula, colon, options = row.flow.partition(":")
        name, _, count = formula.partition("*")
        if "|" in formula or name == "none":
            continue
        found.setdefault(name + colon + options, []).append((int(count or 1), row))
    return {
        kind: sorted(group, key=lambda one: one[0])
        for kind, group in found.items()
        if len({depth for depth, _ in group}) > 1
    }


def _keys(rows: Sequence[Row]) -> list[tuple[str, str, float]]:
    """Return what can be drawn on the same images: -ELBO of all beside an NLL of some misleads."""
    if all(row.summaries for row in rows):
        return [("nll_negative_elbo", REFERENCE, 1.0), ("nll", FIT, 1.0)]
    return [("elbo", REFERENCE, -1.0)]


def _name(row: Row, key: str) -> str:
    if key == "elbo":
        return f"-ELBO, {row.results[0]['images']} images"
    told = row.summaries[0]
    return f"{told.label if key == 'nll' else '-ELBO'}, {told.which}"


def _doubtful(rows: Sequence[Row], key: str) -> bool:
    return key == "nll" and not all(one.trusted for row in rows for one in row.summaries)


def _say_doubt(figure: Any, rows: Sequence[Row]) -> None:
    """Write above a picture what the weights of its NLLs say."""
    told = [one for row in rows for one in row.summaries]
    if told:
        figure.suptitle(f"NLL: {doubt_of(told)}", fontsize=8)


def draw_points(rows: Sequence[Row]) -> Any:
    """Draw -ELBO and NLL of each flow, mean and sd over seeds; return the figure."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 0.4 * len(rows) + 1.2), layout="constrained")
        for place, row in enumerate(rows):
            for key, colour, sign in _keys(rows):
                mean, sd = row.mean_sd(key, sign)
                axes.errorbar(
                    mean, place, xerr=None if math.isnan(sd) else sd, fmt="o", color=colour,
                    markerfacecolor="none" if _doubtful([row], key) else colour,
                    capsize=3, label=_name(row, key) if place == 0 else None,
                )  # fmt: skip
        axes.set_yticks(range(len(rows)), [row.flow for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("nats per test image")
        axes.legend(loc="best")
        _say_doubt(figure, rows)
    return figure


def draw_curve(rows: Sequence[Row]) -> Any:
    """Draw -ELBO and NLL against the number of layers K; None where no depth varies.

    A run without a flow is the point at K = 0 of every line.
    """
    groups = depths(rows)
    if not groups:
        return None
    plain = next((row for row in rows if row.flow == "none"), None)
    keys = _keys(rows)
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, len(keys), figsize=(3.6 * len(keys), 3.0), layout="constrained", squeeze=False
        )
        for axes, (key, _, sign) in zip(panels[0], keys, strict=True):
            for place, (kind, group) in enumerate(groups.items()):
                points = [*([(0, plain)] if plain else []), *group]
                numbers = [row.mean_sd(key, sign) for _, row in points]
                axes.errorbar(
                    [depth for depth, _ in points],
                    [mean for mean, _ in numbers],
                    yerr=[0.0 if math.isnan(sd) else sd for _, sd in numbers],
                    marker=_MARKS[place % len(_MARKS)], capsize=3, label=kind,
                )  # fmt: skip
            axes.set_xlabel("layers K")
            axes.set_ylabel("nats per test image")
            doubt = ", not reliable" if _doubtful(rows, key) else ""
            axes.set_title(_name(rows[0], key) + doubt, fontsize=8)
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0][0].legend(loc="best")
        _say_doubt(figure, rows)
    return figure
