"""Numbers of tables of many fits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MapFitsRecipe:
    """Numbers by which fits are compared and scored."""

    #: Draws of a fit of globals and rows; a fit of one vector holds as many.
    draws: int = 2000


MAP_FITS = MapFitsRecipe()
