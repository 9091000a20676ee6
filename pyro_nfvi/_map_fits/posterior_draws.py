"""Draws of the latents of a fit, of one vector or of globals and rows."""

from __future__ import annotations

from collections.abc import Collection

from pyro_nfvi._map_fits.recipe import MAP_FITS
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._plate_fit import PlateFit


def posterior_draws(fit: Fit | PlateFit, names: Collection[str]) -> TensorDict:
    """Return draws ``(S, *shape)`` of at least these latents, the same ones in every call.

    Args:
        fit: The fit.
        names: The latents. Where all are globals of a fit of rows, no row is drawn.
    """
    if not isinstance(fit, PlateFit):
        return fit._sites(fit.draws.z, {})
    if names and set(names) <= set(fit.globals):
        return fit.sample(MAP_FITS.draws, rows={}, seed=fit.seed)
    return fit.sample(MAP_FITS.draws, seed=fit.seed)
