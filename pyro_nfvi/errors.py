"""Errors that say what was expected, what came, and what to do.

Every error of the library is an :class:`NFVIError` and also the built-in error that a
caller would expect, so ``except ValueError`` goes on working.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ConversionWarning",
    "DataError",
    "DataWarning",
    "DivergedError",
    "EngineWarning",
    "FileError",
    "LawError",
    "MissingPackageError",
    "ModelError",
    "ModelWarning",
    "NFVIError",
    "NotSetUpError",
    "OptionError",
    "ParamStoreError",
    "ShapeError",
    "WeightError",
]


class NFVIError(Exception):
    """Base of all errors raised by this library."""


class OptionError(NFVIError, ValueError):
    """A constructor or function was given a value that it cannot use."""


class ShapeError(NFVIError, ValueError):
    """A tensor has the wrong shape or dtype, or a context is missing or superfluous."""


class DataError(NFVIError, ValueError):
    """Data that no density can be fitted to: NaN, infinite, constant, empty, of the wrong type."""


class LawError(NFVIError, AssertionError):
    """A flow breaks one of the laws of :func:`pyro_nfvi.testing.check_flow`."""


class ModelError(NFVIError, RuntimeError, ValueError):
    """The Pyro model cannot be fitted with this guide; the message states the cure."""


class NotSetUpError(NFVIError, RuntimeError):
    """A guide without parameters (call ``guide.setup(*args)``), or a fit without its model."""


class ParamStoreError(NFVIError, RuntimeError):
    """Pyro's param store holds other parameters under this guide's name."""


class WeightError(NFVIError, ArithmeticError):
    """Importance weights that are not weights: NaN, infinite, or all zero."""


class DivergedError(NFVIError, ArithmeticError):
    """A fit met non-finite gradients again and again, and gave up.

    Attributes:
        fit: The best fit until then (for a density: its report), or None if no step succeeded.
    """

    fit: Any = None


class FileError(NFVIError, OSError):
    """A file cannot be written or read: read-only, full disk, truncated, foreign, too new."""


class MissingPackageError(NFVIError, ImportError):
    """An optional package is not installed; the message says how to install it."""


class ModelWarning(UserWarning):
    """A model that can be fitted, but may not be the one that was meant.

    It has no observed site, its initial point cannot be started from, or its posterior seems
    improper; the message says which.
    """


class DataWarning(UserWarning):
    """Data that are unusual for a fit, or other than those that were fitted."""


class ConversionWarning(UserWarning):
    """A site or a group is missing in draws or in an ArviZ conversion; the message says why."""


class EngineWarning(UserWarning):
    """An engine gave other numbers than an eager step, and is not used."""
