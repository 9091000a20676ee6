"""The version, kept apart so that packaging need not import torch."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
