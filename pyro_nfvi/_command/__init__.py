"""The command line, ``pyro-nfvi``."""
