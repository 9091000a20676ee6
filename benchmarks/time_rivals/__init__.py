"""The sides of ``benchmarks/time_to_posterior.py``: processes, larger models, models of PyMC."""
