"""Results as HTML for notebooks: tables, a verdict in colour and words, small histograms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Page:
    """Sizes of what is shown."""

    #: Numbers that have a histogram, and rows of a table; more would push the notebook apart.
    numbers: int = 8
    #: Bars of a histogram.
    bars: int = 24
    #: Width and height of a histogram, in pixels.
    width: int = 120
    height: int = 36
    #: Share of the draws beyond each end of a histogram, where a heavy tail would flatten it.
    tail: float = 0.005


_PAGE = _Page()
#: Colours of the verdicts, dark enough for white letters on them.
_COLOURS = {"good": "#1a7f37", "usable with reweighting": "#9a6700", "do not trust": "#cf222e"}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; every cell is escaped.

    Example:
        >>> table(["site"], [["a<b"]])
        '<table><tr><th>site</th></tr><tr><td>a&lt;b</td></tr></table>'
    """
    lines = [_row("th", head)] if head else []
    lines += [_row("td", row) for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _row(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def text(words: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(words)}</p>"


def verdict(word: str, reasons: Sequence[str] = (), next_step: str = "") -> str:
    """Return a verdict: its word on its colour, the reasons, and the next step."""
    colour = _COLOURS.get(word, "#57606a")
    badge = (
        f'<span style="background:{colour};color:#fff;border-radius:4px;padding:2px 8px">'
        f"{escape(word)}</span>"
    )
    told = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    end = text(next_step) if next_step else ""
    return f"<div>{badge}{f'<ul>{told}</ul>' if told else ''}{end}</div>"


def marginals(draws: Mapping[str, Tensor]) -> str:
    """Return histograms of the first numbers of draws ``site -> (S, *shape)``, as inline SVG."""
    made: list[str] = []
    count = 0
    for name, value in draws.items():
        flat = value.detach().reshape(len(value), -1).double().cpu()
        for index in range(flat.shape[1]):
            count += 1
            if len(made) < _PAGE.numbers:
                label = name if value.dim() == 1 else f"{name}[{_index(index, value.shape[1:])}]"
                made.append(_histogram(label, flat[:, index]))
    rest = f"<p>and {count - len(made)} more numbers</p>" if count > len(made) else ""
    return f"<div>{''.join(made)}</div>{rest}" if made else ""


def _index(flat: int, shape: Sequence[int]) -> str:
    found: list[str] = []
    for size in reversed(shape):
        found.insert(0, str(flat % size))
        flat //= size
    return ", ".join(found)


def _histogram(label: str, values: Tensor) -> str:
    """One histogram with its ends below; a number that does not vary is a line."""
    values = values[values.isfinite()]
    if not len(values):
        return ""
    low, high = (float(values.quantile(level)) for level in (_PAGE.tail, 1 - _PAGE.tail))
    counts = values.histc(_PAGE.bars, low, high) if high > low else values.new_ones(1)
    width = _PAGE.width / len(counts)
    bars = "".join(
        f'<rect x="{i * width:.1f}" y="{_PAGE.height * (1 - share):.1f}" width="{width:.1f}" '
        f'height="{_PAGE.height * share:.1f}"/>'
        for i, share in enumerate((counts / counts.max()).tolist())
    )
    return (
        '<span style="display:inline-block;margin:4px 8px;font-size:80%">'
        f'<svg width="{_PAGE.width}" height="{_PAGE.height}" fill="currentColor" opacity="0.7" '
        f'role="img" aria-label="{escape(label)}: 99 % of the draws between {low:.3g} and '
        f'{high:.3g}">{bars}</svg><br/>{escape(label)} <small>{low:.3g} … {high:.3g}</small></span>'
    )


def card(title: str, *parts: str) -> str:
    """Return a title with parts below it, which are HTML already."""
    return f"<div><b>{escape(title)}</b>{''.join(parts)}</div>"


def shortened(rows: Sequence[Sequence[object]]) -> list[Sequence[object]]:
    """Return the first rows of a long table, with a line that counts the others."""
    if len(rows) <= 2 * _PAGE.numbers:
        return list(rows)
    return [*rows[: 2 * _PAGE.numbers], [f"and {len(rows) - 2 * _PAGE.numbers} more"]]
