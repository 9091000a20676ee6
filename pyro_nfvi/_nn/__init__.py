"""Masked networks and the triangular systems of their scores."""
