"""Numbers of the conversion: sizes of its chunks and of its groups."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConversionRecipe:
    """Sizes by which a conversion keeps within memory."""

    #: Draws that go through a flow at once: 4096 rows of a wide flow take some 100 MB.
    rows_through_flow: int = 4096
    #: Numbers that the model runs of one chunk hold together: 80 MB of float64.
    numbers_in_chunk: int = 10_000_000
    #: Most numbers that one variable may hold unless its group is asked for: 400 MB of float64.
    largest_variable: int = 50_000_000
    #: Draws of the prior, the number that ArviZ and PyMC take.
    prior_draws: int = 500
    #: Draws that are weighted for each one that reweighting keeps: from a larger pool, fewer of
    #: the draws that are kept are copies of each other.
    pool_per_draw: int = 4
    #: Bytes that the draws of one part of the rows take, where they go into a file part by part.
    store_bytes: int = 1_000_000_000
    #: Bytes for each number of such a part, noise and what flows hold included.
    bytes_of_number: int = 500
    #: Most maps in a row of moment matching, of three that are tried each time: 30 runs of the
    #: model, as Paananen et al. 2021 have it.
    matching_rounds: int = 10
    #: k-hat above which moment matching moves draws. The paper has the threshold of good estimates,
    #: 0.7; terms of outliers a little below it are off by several tenths of a nat, or by nats.
    matched_khat: float = 0.5
    #: Draws for each latent that an estimate of a covariance needs, as there.
    draws_per_latent: int = 10
    #: Bytes of a chunk of an array that grows, at most: some hundred files for 1 GB.
    chunk_bytes: int = 16_000_000


RECIPE = ConversionRecipe()
