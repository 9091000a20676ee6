"""Labels of images: whether numbers in a file are labels, and what to do where they are not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pyro_nfvi.vae._recipe import DATA

_SAVE = "save np.unique(y, return_inverse=True)[1], made of all parts together"


def why_unusable(arrays: Mapping[str, np.ndarray | None]) -> str:
    """Say why the labels of a data set cannot be used; nothing if they can, or if there are none.

    Args:
        arrays: Images under the name of their part, labels as ``y_...`` (``y`` beside ``x``).
    """
    pairs = {
        ("y" if part == "x" else f"y_{part}"): (x, arrays.get("y" if part == "x" else f"y_{part}"))
        for part, x in arrays.items()
        if x is not None and not part.startswith("y")
    }
    missing = [name for name, (_, y) in pairs.items() if y is None]
    if len(missing) == len(pairs):
        return ""
    if missing:
        return f"there are labels, but no {' and no '.join(missing)}"
    problems = (_problem(y, x, name) for name, (x, y) in pairs.items() if y is not None)
    return next(filter(None, problems), "")


def _problem(y: np.ndarray, x: np.ndarray, name: str) -> str:
    """Say why an array is no labels of these images, and what to do."""
    if x.ndim == 0 or not len(x):
        return ""  # of the images there is more to say
    came = f"the labels {name} have shape {y.shape}"
    if y.size != len(x):
        if y.ndim == 2 and len(y) == len(x):
            return f"{came}; one per image is needed: save y.argmax(1) if they are one-hot"
        return f"{came} for {len(x)} images; one per image is needed"
    if y.dtype.kind not in "uib":
        return f"the labels {name} are of type {y.dtype} and not integers from 0; {_SAVE}"
    if y.min() < 0:
        return f"the labels {name} go down to {int(y.min())} and not to 0; {_SAVE}"
    if y.max() >= DATA.most_classes:
        most = DATA.most_classes
        return f"the labels {name} go up to {int(y.max())}, and classes are below {most}; {_SAVE}"
    return ""
