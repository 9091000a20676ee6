"""Training of flow VAEs: ``python -m pyro_nfvi.vae.train``."""
