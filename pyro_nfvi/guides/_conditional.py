"""Flows as conditional transforms of Pyro."""

from __future__ import annotations

from pyro.distributions.conditional import ConditionalTransform

from pyro_nfvi.flows._base import Flow

__all__ = ["ConditionalTransform"]

# Flows know no Pyro, but have what it asks of a conditional transform: ``condition(context)``.
ConditionalTransform.register(Flow)
