"""Several sources, each with groups of its own, as the chains of one result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyro_nfvi.arviz._tree import SAMPLED, Groups

#: Groups that do not depend on the draws: those of the first source stand for all.
_SHARED = (
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
    "predictions_constant_data",
)


def as_chains(parts: Sequence[Groups]) -> Groups:
    """Put the draws of all parts side by side; what not all of them have is dropped.

    Attributes become arrays, one entry per part, unless they are one text for all.

    Example:
        >>> import numpy as np
        >>> one, two = Groups(), Groups()
        >>> one.add("posterior", "mu", (), np.zeros((1, 5)))
        >>> two.add("posterior", "mu", (), np.ones((1, 5)))
        >>> as_chains([one, two]).variables["posterior"]["mu"][1].shape
        (2, 5)
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    merged = Groups(coords=dict(first.coords))
    for group, variables in first.variables.items():
        for name, (dims, array) in variables.items():
            if group in _SHARED:
                merged.add(group, name, dims, array)
            elif all(name in part.variables.get(group, {}) for part in parts):
                arrays = [part.variables[group][name][1] for part in parts]
                merged.add(group, name, dims, np.concatenate(arrays))
    for group in first.attrs:
        if group not in SAMPLED or group in _SHARED:
            merged.note(group, **first.attrs[group])
        else:
            merged.note(group, **_joined([part.attrs.get(group, {}) for part in parts]))
    return merged


def _joined(attrs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in [key for one in attrs for key in one]:
        values = [one[key] for one in attrs if key in one]
        if key.startswith("missing_"):
            found[key] = values[0]  # missing in one is missing in all
        elif len(values) == len(attrs):
            same = isinstance(values[0], str) and len(set(values)) == 1
            found[key] = values[0] if same else np.array(values)
    return found
