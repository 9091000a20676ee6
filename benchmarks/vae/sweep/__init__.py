"""Many training runs, one table: ``python -m benchmarks.vae.sweep --flows none,planar*4``."""
