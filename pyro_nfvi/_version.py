"""The version, kept apart so that packaging need not import torch."""

from __future__ import annotations

__version__ = "0.2.0"
