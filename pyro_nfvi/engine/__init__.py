"""Engines: a step of a fit captured once, and run in blocks with less Python, or none."""

from __future__ import annotations

from pyro_nfvi.engine.cache import clear_cache
from pyro_nfvi.engine.capture import capture
from pyro_nfvi.engine.program import (
    BlockResult,
    Keeper,
    NoRule,
    OptimizerSpec,
    Program,
    Runner,
    Unsupported,
)
from pyro_nfvi.engine.python_loop import GraphRunner, StepResult, one_by_one

__all__ = [
    "BlockResult",
    "GraphRunner",
    "Keeper",
    "NoRule",
    "OptimizerSpec",
    "Program",
    "Runner",
    "StepResult",
    "Unsupported",
    "capture",
    "clear_cache",
    "one_by_one",
]
