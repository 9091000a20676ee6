"""Pictures of a fit: the loss, marginals, pairs, densities in two dimensions; calibration.

Every function returns a matplotlib figure and shows nothing, so it works without a display:
``plot_loss(fit).savefig("loss.png")``. matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

from pyro_nfvi.plots._calibration import plot_calibration
from pyro_nfvi.plots._density_2d import plot_density_2d
from pyro_nfvi.plots._loss import plot_loss
from pyro_nfvi.plots._marginals import plot_marginals
from pyro_nfvi.plots._pair import plot_pair

__all__ = [
    "plot_calibration",
    "plot_density_2d",
    "plot_loss",
    "plot_marginals",
    "plot_pair",
]
