"""A step of a fit as C++: generated from its graph, compiled by the system's compiler."""

from __future__ import annotations

from pyro_nfvi.engine.native.function import NativeFunction
from pyro_nfvi.engine.native.runner import BuildInfo, NativeRunner, build_native

__all__ = ["BuildInfo", "NativeFunction", "NativeRunner", "build_native"]
