"""The numbers by which models are examined, started and evaluated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelRecipe:
    """Sizes and limits in the evaluation of Pyro's models."""

    #: Points at which data that looked at no latent near the start are scored again: a threshold
    #: far away is a dependence as well.
    far_points: int = 16
    #: Half the width of the box of these points, in unconstrained space.
    far: float = 10.0
    #: Draws of the first chunk that are compared with the model run alone; one of each later chunk.
    compared_draws: int = 3
    #: Points that are tried before a model is refused, as in Stan.
    most_starts: int = 100
    #: Half the width of uniform draws around the unconstrained origin, as in Stan.
    start_radius: float = 2.0
    #: Numbers that one run of the model should hold at most; draws are evaluated in such chunks.
    chunk: int = 20_000_000
    #: Times that a point of comparison is pulled towards the start, by a factor of 4 each.
    pulls: int = 8
    #: Most discrete sites whose dependents are looked at, a run of the model each.
    most_discrete: int = 50
    #: Most characters of an error's text in a reason.
    text: int = 200
    #: Share of the whole above which shuffling is cheaper than drawing without repeats.
    shuffled_share: float = 0.25


@dataclass(frozen=True)
class WorkRecipe:
    """Weights by which the work of a density is counted."""

    #: Numbers that could be computed in the time in which one operation is called.
    call: int = 5000
    #: Floating-point operations of a matrix product that take the time of one number elsewhere.
    product: int = 16
    #: The same for a row of a log density of arrays, evaluated in batches: about 1 µs.
    external_row: int = 2_000
    #: The same for one that is called for each row: about 20 µs.
    external_call: int = 40_000


@dataclass(frozen=True)
class RowsRecipe:
    """Numbers of the rows of a loader."""

    #: Bytes of rows that are kept in memory; of more, a temporary file holds them. A tenth of the
    #: memory of a small machine.
    memory: int = 400_000_000
    #: Rows by whose data processes tell whether they have the same loader, at least: of rows that
    #: were shuffled some are then in other places, and fetching them takes no time to speak of.
    compared: int = 256


MODELS = ModelRecipe()
ROWS = RowsRecipe()
WORK = WorkRecipe()
