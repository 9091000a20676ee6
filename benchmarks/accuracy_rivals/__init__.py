"""The posteriors of ``benchmarks/accuracy.py`` in NumPyro, and the process that fits them."""
