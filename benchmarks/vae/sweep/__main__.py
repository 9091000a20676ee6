"""``python -m benchmarks.vae.sweep``."""

from benchmarks.vae.sweep.table import main

if __name__ == "__main__":
    main()
