"""One line about an exception of the user's model, also where it says nothing itself."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

#: Packages in whose code nobody looks for the cause.
_LIBRARIES = ("torch", "pyro", "pyro_nfvi", "opt_einsum")
#: Mistakes in the user's own code: no other values of the latents would mend them.
MISTAKES = (
    TypeError,
    NameError,
    AttributeError,
    ImportError,
    NotImplementedError,
    SyntaxError,
    MemoryError,
)


@dataclass(frozen=True)
class ErrorTextLimits:
    """Lengths of quoted error texts."""

    #: Characters of another exception's text that a message quotes: two lines on a terminal.
    quoted: int = 200


LIMITS = ErrorTextLimits()


def describe_error(error: BaseException) -> str:
    """Describe an exception of a model: its class, and its first line or its place.

    What Pyro appends of the trace's shapes is left out. Where there is no text, the file and line
    of the user's code stand in its place; a distribution without a sampler is named as such, with
    its site.

    Example:
        >>> describe_error(ValueError("bad rate" + chr(10) + "Trace Shapes:"))
        'ValueError: bad rate'
    """
    kind = type(error).__name__
    text = str(error).partition("Trace Shapes:")[0].strip()
    if text:
        return f"{kind}: {text.splitlines()[0][: LIMITS.quoted]}".rstrip(": .")
    frames = list(_frames(error))
    place = _place(frames)
    if isinstance(error, NotImplementedError) and frames:
        inner = frames[-1]
        if inner.f_code.co_name in ("sample", "rsample"):
            messages = (frame.f_locals.get("msg") for frame in reversed(frames))
            names = [m["name"] for m in messages if isinstance(m, dict) and m.get("name")]
            site = f"the site {names[0]!r} " if names else ""
            owner = type(inner.f_locals.get("self")).__name__
            return f"{kind}: {site}cannot be drawn, its distribution {owner} has no `sample`"
    return f"{kind}{place}"


def first_line(error: BaseException) -> str:
    """Return the class of an exception and the first line of its text, whole.

    Example:
        >>> first_line(ValueError("bad rate." + chr(10) + "more"))
        'ValueError: bad rate.'
    """
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else describe_error(error)


def place_of(error: BaseException) -> str:
    """Name the user's function, file and line that raised, as ``" in model (x.py, line 3)"``."""
    return _place(list(_frames(error)))


def repeated_name(error: BaseException) -> str | None:
    """Return the name that two sites of a Pyro model have, where an exception tells that."""
    frames = list(_frames(error))
    if not frames or frames[-1].f_code.co_name != "add_node":
        return None
    inner = frames[-1].f_locals
    name = inner.get("site_name")
    return name if type(inner.get("self")).__name__ == "Trace" and isinstance(name, str) else None


def _frames(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames of an exception, or of its like that Pyro wrapped, the outermost first."""
    if error.__cause__ is not None and type(error.__cause__) is type(error):
        error = error.__cause__
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield frame


def _place(frames: list[FrameType]) -> str:
    folders = tuple(
        str(Path(module.__file__).parent)
        for name in _LIBRARIES
        if (module := sys.modules.get(name)) is not None and module.__file__
    )
    # The standard library's, in whose folder installed packages may lie; neither is the user's.
    folders += (sysconfig.get_path("stdlib"),)
    for frame in reversed(frames):
        name = frame.f_code.co_filename
        if not name.startswith((*folders, "<")):
            return f" in {frame.f_code.co_name} ({Path(name).name}, line {frame.f_lineno})"
    return ""
