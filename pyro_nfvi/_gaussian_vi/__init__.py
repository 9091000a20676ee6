"""Gaussian variational inference: multi-start fits, mode search, mixture weights, tail indices."""
