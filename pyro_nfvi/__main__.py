"""``python -m pyro_nfvi``: the same as ``pyro-nfvi``."""

import sys

from pyro_nfvi._command.main import main

if __name__ == "__main__":
    sys.exit(main())
