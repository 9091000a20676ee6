"""Errors that say what was expected, what came, and what to do.

Every error of the library is an :class:`NFVIError` and also the built-in error that a
caller would expect, so ``except ValueError`` goes on working.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ContextError",
    "ConversionWarning",
    "DataError",
    "DataWarning",
    "DivergedError",
    "EngineWarning",
    "FileError",
    "ImproperWarning",
    "InverseError",
    "LawError",
    "MissingPackageError",
    "MissingSiteWarning",
    "ModelError",
    "NFVIError",
    "NoDataWarning",
    "NotSetUpError",
    "OptionError",
    "OtherDataWarning",
    "ParamStoreError",
    "ShapeError",
    "StartWarning",
    "WeightError",
]


class NFVIError(Exception):
    """Base of all errors raised by this library."""


class OptionError(NFVIError, ValueError):
    """A constructor or function was given a value that it cannot use."""


class ShapeError(NFVIError, ValueError):
    """A tensor has the wrong shape or dtype."""


class ContextError(NFVIError, ValueError):
    """A context is missing, superfluous or of the wrong size."""


class DataError(NFVIError, ValueError):
    """Data that no density can be fitted to: NaN, infinite, constant, empty, of the wrong type."""


class DataWarning(UserWarning):
    """Data that can be fitted, but probably not as they are; the message says what to do."""


class InverseError(NFVIError, ArithmeticError):
    """A numeric inverse did not reach its certified tolerance."""


class LawError(NFVIError, AssertionError):
    """A flow breaks one of the laws of :func:`pyro_nfvi.testing.check_flow`."""


class ModelError(NFVIError, RuntimeError, ValueError):
    """The Pyro model cannot be fitted with this guide; the message tells the cure."""


class NotSetUpError(NFVIError, RuntimeError):
    """The guide has no parameters yet: call ``guide.setup(*args)`` first."""


class ParamStoreError(NFVIError, RuntimeError):
    """Pyro's param store holds other parameters under this guide's name."""


class WeightError(NFVIError, ArithmeticError):
    """Importance weights that are not weights: NaN, infinite, or all zero."""


class NoDataWarning(UserWarning):
    """The model has no observed site: its posterior is its prior."""


class StartWarning(UserWarning):
    """The user's initial point cannot be started from; the message says where the guide starts."""


class ImproperWarning(UserWarning):
    """The posterior seems improper: the density does not fall in some direction."""


class OtherDataWarning(UserWarning):
    """A fit was loaded with data, priors or a model other than those that were fitted."""


class MissingSiteWarning(UserWarning):
    """Draws lack a site that only the model can compute; the message says how to get it."""


class MissingPackageError(NFVIError, ImportError):
    """An optional package is not installed; the message says how to install it."""


class ConversionWarning(UserWarning):
    """A group of an ArviZ conversion had to be left out; the message says why."""


class EngineWarning(UserWarning):
    """An engine gave other numbers than an eager step, and is not used."""


class DivergedError(NFVIError, ArithmeticError):
    """A fit met non-finite gradients again and again, and gave up.

    Attributes:
        fit: The best fit until then (for a density: its report), or None if no step succeeded.
    """

    fit: Any = None


class FileError(NFVIError, OSError):
    """A file cannot be written or read: read-only, full disk, truncated, foreign, too new."""
