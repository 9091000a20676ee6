"""Engines: a step of a fit captured once, and run in blocks with less Python, or none."""

from __future__ import annotations

from pyro_nfvi.engine.program import BlockResult, OptimizerSpec, Program, Runner, Unsupported

__all__ = ["BlockResult", "OptimizerSpec", "Program", "Runner", "Unsupported"]
