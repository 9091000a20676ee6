"""The numbers of densities: bounds of bases, dequantization, and when data are announced."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BaseRecipe:
    """Trained base distributions."""

    #: Bound of a log-scale, in nats: no component can shrink onto one data point, where densities
    #: diverge.
    log_scale: float = 6.0


@dataclass(frozen=True)
class DataRecipe:
    """Data that are announced before a density is fitted."""

    #: Rows below which nothing is said about ties.
    least_rows: int = 100
    #: Rows per distinct value from which a column is taken for a rounded one.
    ties: int = 2
    #: Mean of a column, in units of the base, beyond which it is announced.
    far: float = 20.0
    #: Standard deviation of a column, in units of the base, above which it is announced.
    wide: float = 20.0
    #: The same below which it is.
    narrow: float = 0.05
    #: Share of a column's range that a dtype has to tell apart.
    resolved: float = 0.01


@dataclass(frozen=True)
class DequantizationRecipe:
    """Integers as points of a continuous space."""

    #: Distance that is kept from the ends of the unit interval before the logit.
    margin: float = 1e-6
    #: Levels above which the map is computed in float64: a cell is a millionth of the range or so.
    fine: int = 4096
    #: Share of a level that a dtype may lose.
    resolved: float = 0.05


BASES, DATA, DEQUANTIZATION = BaseRecipe(), DataRecipe(), DequantizationRecipe()
