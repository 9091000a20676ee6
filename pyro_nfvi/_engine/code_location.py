"""The place in the user's code at which something happens, for messages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

#: Where the code of libraries lies, in which nobody looks for the cause of a refusal.
_LIBRARIES = tuple(
    str(Path(module.__file__).parent)
    for name in ("torch", "pyro", "pyro_nfvi", "opt_einsum")
    if (module := sys.modules.get(name)) is not None and module.__file__
)


def place_in_code() -> str:
    """Name the innermost function on the stack that is no library's, as the end of a sentence."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((*_LIBRARIES, "<")):
            return f", in {frame.f_code.co_name} ({Path(name).name}, line {frame.f_lineno})"
        frame = frame.f_back
    return ""
