"""The numbers of the guides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GuideRecipe:
    """Sizes of guides, and how much of a model's calls is looked at."""

    #: Largest dimension at which a whitened outer map, and the Gaussian before a fit, has a full
    #: matrix: D^2 numbers and O(D^3) for its factor.
    full_dim: int = 256
    #: Pairs of base points for quantiles and means; with the centre 2 * 2048 + 1 points.
    pairs: int = 2048
    #: Seed of the base points, the same in every call.
    seed: int = 20150521
    #: Rows that go through the flow at once, ...
    rows: int = 2048
    #: ... and the most numbers in them (64 MiB in float64).
    numbers: int = 2**23
    #: Nesting up to which arguments of a model are looked into.
    depth: int = 4
    #: Items of a collection that are looked at: data given as a long list cost no time.
    items: int = 100
    #: Numbers in which a plate's rows may differ beside location and scale.
    code_dim: int = 4
    #: Least share of the learning rate that a flow shared by many rows has.
    least_share: float = 0.01
    #: Forms of arguments after which the structure of the model is no longer checked.
    most_forms: int = 16
    #: Calls of one form after which it is no longer checked.
    most_calls: int = 4096


GUIDES = GuideRecipe()
