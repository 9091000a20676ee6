"""Numbers of simulation-based calibration, each with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CalibrationRecipe:
    """Conditions of a verdict of simulation-based calibration."""

    #: Fewest fits: with fewer, the tests see gross errors only.
    fewest_fits: int = 20
    #: Largest share of failed fits: those left over are no fair sample of the prior.
    failed_share: float = 0.05


CALIBRATION = CalibrationRecipe()
