"""Options that count or measure something: checked once, in one voice."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

from pyro_nfvi.errors import OptionError


def whole(what: str, value: Any, least: int = 1) -> int:
    """Return a whole number, of Python or NumPy; raise for anything else, truth values too.

    Example:
        >>> from pyro_nfvi._validation import whole
        >>> whole("num_layers", 3)
        3
    """
    found: int | None = None
    if not isinstance(value, bool):
        try:
            found = operator.index(value)
        except (TypeError, ValueError, RuntimeError):
            found = None
    if found is None or found < least:
        raise OptionError(f"{what} needs to be a whole number of at least {least}; got {value!r}.")
    return found


def number(what: str, value: Any, *, above: float = -math.inf, least: float = -math.inf) -> float:
    """Return a finite number, of Python or NumPy, above or at least a bound; raise otherwise.

    Example:
        >>> from pyro_nfvi._validation import number
        >>> number("lr", 0.1, above=0)
        0.1
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (real and math.isfinite(value) and value > above and value >= least):
        bound = f" above {above:g}" if above > -math.inf else ""
        bound = f" of at least {least:g}" if least > -math.inf else bound
        raise OptionError(f"{what} needs to be a finite number{bound}; got {value!r}.")
    return float(value)


def sizes(shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return a sample shape, given as a number or several.

    Example:
        >>> from pyro_nfvi._validation import sizes
        >>> sizes(3), sizes((2, 3)), sizes(())
        ((3,), (2, 3), ())
    """
    listed = shape if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    return tuple(whole("A size of the sample shape", size, 0) for size in listed)


def seed_number(value: Any) -> int | None:
    """Return a seed, a whole number from 0 on, or None."""
    if value is None:
        return None
    found = whole("seed", value, 0)
    largest = 2**63 - 1  # generators take 64 bits; fold_in returns 63
    if found > largest:
        raise OptionError(f"seed needs to be at most {largest}; got {value!r}.")
    return found
