"""One run at a time in a folder: a lock that a killed process does not leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from pyro_nfvi.errors import FileError
from pyro_nfvi.vae._recipe import TRAINER

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


_NAME = ".lock"


class RunLock:
    """Holds a folder for this process until ``release``, or until the process is gone.

    The kernel gives the lock up when its holder ends, ``kill -9`` included. Where a file system
    has no such locks (some network ones), the file's contents count: a holder on this host that is
    no longer there has left it behind; one on another host cannot be looked for.

    Args:
        folder: The folder, which has to be there.

    Raises:
        FileError: Another process holds it; the message says which. Or nothing can be written.

    Example:
        >>> import tempfile
        >>> from pyro_nfvi.errors import FileError
        >>> folder = tempfile.mkdtemp()
        >>> with RunLock(folder):
        ...     try:
        ...         RunLock(folder)
        ...     except FileError:
        ...         print("taken")
        taken
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / _NAME
        self._descriptor: int | None = self._take()
        _OPEN.add(self)

    def release(self) -> None:
        """Give the folder back; a second call does nothing."""
        _OPEN.discard(self)
        if self._descriptor is None:
            return
        # The file goes while the lock is held: whoever comes next makes one of its own.
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _take(self) -> int:
        while True:
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise FileError(
                    f"The lock {self.path} cannot be made: {error.strerror}. Make the folder "
                    "writable, or take another --out."
                ) from error
            try:
                held = self._lock(descriptor)
                if _same(descriptor, self.path):
                    self._sign(descriptor, held=held)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _sign(self, descriptor: int, *, held: bool) -> None:
        """Write who holds the lock; where the kernel holds it, that is for messages alone."""
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(_myself()).encode())
        except OSError as error:
            if not held:
                raise FileError(
                    f"The lock {self.path} cannot be written: {error.strerror}. Make room, or take "
                    "another --out."
                ) from error

    def _lock(self, descriptor: int) -> bool:
        """Lock the open file; tell whether the kernel holds it. Raise where another has it."""
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._taken(_owner(self.path)) from None
            except OSError:  # a file system without locks
                pass
            else:
                return True
        owner = _owner(self.path)
        if owner and _alive(owner):
            raise self._taken(owner)
        return False

    def _taken(self, owner: dict[str, Any]) -> FileError:
        here = owner.get("host") == socket.gethostname()
        who = "another process"
        if owner:
            who = f"process {owner.get('pid')} on {'this host' if here else owner.get('host')}"
            who += f", since {owner.get('since')}"
        cure = f"or end it (kill {owner['pid']})" if here and owner else "or end it there"
        return FileError(
            f"{self.folder} is in use by {who}: two runs would write over each other. Wait for it, "
            f"{cure}, or take another --out. If no such process is there any more, delete "
            f"{self.path}."
        )


#: Locks of this process: a forked child lets go of its copies, or it would hold them too.
_OPEN: set[RunLock] = set()


def _after_fork() -> None:
    for lock in list(_OPEN):
        if lock._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(lock._descriptor)
            lock._descriptor = None
    _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "began": _began(pid),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _began(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; empty where that cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


def _owner(path: Path) -> dict[str, Any]:
    """Read who holds a lock; empty where the file does not say."""
    for _ in range(2):
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            time.sleep(TRAINER.lock_moment)
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _alive(owner: dict[str, Any]) -> bool:
    """Tell whether a holder may still be there; on another host that cannot be known."""
    if owner.get("host") != socket.gethostname():
        return True
    try:
        pid = int(owner["pid"])
        os.kill(pid, 0)
    except (ProcessLookupError, KeyError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    # Numbers of processes are used again: another start is another process.
    return not owner.get("began") or owner["began"] == _began(pid)


def _same(descriptor: int, path: Path) -> bool:
    """Tell whether the locked file is still the one under this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
