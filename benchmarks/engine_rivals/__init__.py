"""The models of ``benchmarks/engine.py`` in Pyro and in NumPyro, and a process for each rival."""
