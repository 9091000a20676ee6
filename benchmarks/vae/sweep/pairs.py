"""Differences between flows on the same images, with paired standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyro_nfvi.vae._nll_summary import NLLSummary

if TYPE_CHECKING:
    from benchmarks.vae.sweep.table import Row


#: Quantities by their names in ``per_image.npz`` and in words.
_QUANTITIES = (("negative_elbo", "-ELBO"), ("nll", "NLL"))


@dataclass(frozen=True)
class Difference:
    """Difference of one flow's number from another's, over the same images and seeds.

    Attributes:
        quantity: ``"-ELBO"`` or ``"NLL"``.
        flow: The flow.
        other: The flow that is taken away.
        mean: Mean difference in nats per image; positive where ``flow`` is worse.
        se: Its paired standard error over images (seeds averaged); NaN for one image.
        sd_seeds: Standard deviation between seeds; NaN for one seed.
        images: Number of images.
        reliable: Whether k-hat lets both numbers be trusted; always so for -ELBO.
    """

    quantity: str
    flow: str
    other: str
    mean: float
    se: float
    sd_seeds: float
    images: int
    reliable: bool

    def sentence(self) -> str:
        """Say the difference and what follows from it."""
        seeds = "" if math.isnan(self.sd_seeds) else f", sd between seeds {self.sd_seeds:.2f}"
        text = (
            f"{self.quantity} of `{self.flow}` minus `{self.other}`: {self.mean:+.2f} ± "
            f"{self.se:.2f} nats (paired standard error over the same {self.images} images{seeds})"
        )
        if self.reliable:
            return f"{text}."
        return f"{text}; k-hat is too large for either number: no order follows from it."


def differences(rows: Sequence[Row], place: Callable[[str, int], Path]) -> list[Difference]:
    """Compare every flow with the first one, image by image.

    Args:
        rows: Runs of each flow.
        place: Folder of the run of a flow and seed.

    Returns:
        Differences; none where runs kept no numbers of single images, or of other ones.
    """
    found = []
    first, *others = rows
    for row in others:
        pairs = [_pair(place(first.flow, seed), place(row.flow, seed)) for seed in first.seeds]
        told = [NLLSummary.from_record(result) for result in (*first.results, *row.results)]
        if any(pair is None for pair in pairs) or not told:
            continue
        for key, name in _QUANTITIES:
            each = np.stack([pair[key] for pair in pairs if pair is not None])  # (seeds, images)
            images, means = each.mean(0), each.mean(1)
            spread = float(images.std(ddof=1)) if len(images) > 1 else math.nan
            found.append(
                Difference(
                    name, first.flow, row.flow, float(images.mean()),
                    spread / math.sqrt(len(images)),
                    float(means.std(ddof=1)) if len(means) > 1 else math.nan,
                    len(images),
                    key != "nll" or all(one is not None and one.trusted for one in told),
                )
            )  # fmt: skip
    return found


def _pair(one: Path, two: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(one / "per_image.npz") as ours, np.load(two / "per_image.npz") as theirs:
            if not np.array_equal(ours["index"], theirs["index"]):
                return None
            return {key: ours[key] - theirs[key] for key, _ in _QUANTITIES}
    except (OSError, ValueError, KeyError):
        return None
