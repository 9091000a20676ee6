"""What every example shares: ``--smoke`` for a short run, ``--out`` for its pictures."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import torch


def options(doc, name):
    """Read the command line; make the output folder."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=doc.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a few steps only, no check")
    parser.add_argument("--out", type=Path, default=None, help=f"folder (default out/{name})")
    given = parser.parse_args()
    out = given.out or Path("out") / (f"{name}-smoke" if given.smoke else name)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_default_dtype(torch.float64)
    return SimpleNamespace(smoke=given.smoke, out=out)


def check(what, value, low, high, *, smoke):
    """Print a number beside the range it has to lie in; stop if it does not (a full run)."""
    good = low <= value <= high
    print(f"{what}: {value:.3f} (expected {low:g} to {high:g})")
    if not (good or smoke):
        raise SystemExit(f"{what} is {value:.3f}, outside {low:g} to {high:g}")
