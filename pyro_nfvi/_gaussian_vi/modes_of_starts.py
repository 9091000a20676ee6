"""Modes on which the starts of a Gaussian fit ended, besides that of the best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_nfvi._gaussian_vi.density_paths import valleys
from pyro_nfvi._gaussian_vi.multistart import GaussianFit
from pyro_nfvi._gaussian_vi.recipe import MODE_SEARCH
from pyro_nfvi._gaussian_vi.target import Target


def other_modes(
    target: Target,
    found: GaussianFit,
    *,
    align: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    r"""Find the starts whose Gaussian stands on another mode than the best.

    A start counts when its bound is at most 10 nats below the best and the log density dips by
    more than 3 nats below both ends on the straight line between them. Log-concave densities
    never count. One start stands for each mode: of two without a valley between them the better.

    Args:
        target: The density.
        found: The fit, with its starts.
        align: Moves points to their images nearest to another, as in :func:`search_modes`; modes
            that are images of each other are one.

    Returns:
        Indices into ``found.starts``, the highest bound first; empty where there is one mode.

    Cost:
        A few dozen rows of the density for each start.

    Example:
        >>> import torch
        >>> from pyro_nfvi._gaussian_vi.gaussians import Normals
        >>> from pyro_nfvi._gaussian_vi.modes_of_starts import other_modes
        >>> from pyro_nfvi._gaussian_vi.multistart import fit_gaussian
        >>> from pyro_nfvi._gaussian_vi.target import Target
        >>> x = torch.zeros(1, dtype=torch.float64)
        >>> def log_density(z):
        ...     return torch.logsumexp(-0.5 * (z - torch.tensor([-9.0, 9.0])) ** 2, -1)
        >>> target = Target(log_density, x)
        >>> starts = Normals.around(torch.tensor([[-8.0], [8.0]]), 1.0)
        >>> len(other_modes(target, fit_gaussian(target, starts)))
        1
    """
    kept: list[int] = []
    centres = [found.loc]
    order = found.start_bounds.argsort(descending=True).tolist()
    for index in order:
        if (
            float(found.start_bounds[index]) < found.bound - MODE_SEARCH.negligible
            or target.budget.over()
        ):
            break
        here = found.starts.loc[index]
        others = torch.stack(centres)
        if align is not None:
            others = align(here, others)
        if bool(valleys(target, here, others, MODE_SEARCH.valley).all()):
            kept.append(index)
            centres.append(here)
    return torch.tensor(kept, dtype=torch.long)
