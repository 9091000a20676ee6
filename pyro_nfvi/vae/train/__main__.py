"""``python -m pyro_nfvi.vae.train``."""

import sys

from pyro_nfvi.vae.train._command import main

if __name__ == "__main__":
    sys.exit(main())
