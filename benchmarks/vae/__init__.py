"""Benchmarks of the flow VAE."""
