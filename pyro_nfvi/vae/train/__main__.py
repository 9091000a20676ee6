"""``python -m pyro_nfvi.vae.train``."""

from pyro_nfvi.vae.train._command import main

if __name__ == "__main__":
    main()
