"""Numbers of the pictures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlotRecipe:
    """Sizes of pictures."""

    #: Panels at most, unless sites are named: more are too small to read.
    max_panels: int = 24
    #: Draws that a fit is asked for: the error of a quantile is then below a line's width.
    draws: int = 5000
    #: Probability with which the height of a single bar lies within the band of chance.
    band: float = 0.95
    #: Cells of the grid on which contours are drawn, in each direction.
    contour_cells: int = 110


RECIPE = PlotRecipe()
