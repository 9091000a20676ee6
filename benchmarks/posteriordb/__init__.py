"""Sixteen posteriors of posteriordb with reference draws; see README.md in this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.posteriordb.entry import Entry, Reference, columns, locate
from benchmarks.posteriordb.models import MODELS
from benchmarks.posteriordb.score import Scores, score

__all__ = [
    "MODELS",
    "Entry",
    "Posterior",
    "Reference",
    "Scores",
    "columns",
    "load",
    "locate",
    "score",
]

DATA = Path(__file__).resolve().parent / "data"


@dataclass(frozen=True)
class Posterior:
    """One posterior, ready to be fitted and scored."""

    name: str
    model: Callable[..., None]
    #: Keyword arguments of ``model``.
    data: dict
    reference: Reference
    sites: tuple[str, ...]
    geometry: str


def load(name: str) -> Posterior:
    """Load the posterior ``name``, a key of ``MODELS``. Set float64 as default dtype first."""
    entry = MODELS[name]
    return Posterior(
        name=name,
        model=entry.model,
        data=entry.load(DATA / f"{name}.json"),
        reference=Reference.load(DATA / f"{name}.npz"),
        sites=entry.sites,
        geometry=entry.geometry,
    )
