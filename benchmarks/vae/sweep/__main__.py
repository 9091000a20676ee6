"""``python -m benchmarks.vae.sweep``."""

import sys

from benchmarks.vae.sweep.table import main

if __name__ == "__main__":
    sys.exit(main())
