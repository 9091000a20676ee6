"""The Python of the README, as a reader pastes it, with the package that is installed.

``python ten_lines.py README.md FOLDER``: FOLDER is where the package has to come from.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path


def main(readme: Path, folder: Path) -> None:
    """Run all blocks; end with an error where one fails or compiled code is not used."""
    import pyro_nfvi

    found = Path(pyro_nfvi.__file__).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise SystemExit(f"pyro_nfvi comes from {found}, not from {folder}.")
    page: dict[str, object] = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", readme.read_text("utf-8"), re.S | re.M):
        exec(compile(block, str(readme), "exec"), page)
    fit: object = page["fit"]
    engine, reason = fit.engine, fit.engine_reason  # type: ignore[attr-defined]
    print(f"engine {engine}: {reason}")
    compilers = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    if compilers and "(native)" not in reason:
        raise SystemExit(f"{compilers[0]} is there, and the ten lines did not run compiled.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
