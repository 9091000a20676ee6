"""Pyro's models as log densities of one real vector."""
