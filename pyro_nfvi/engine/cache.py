"""Compiled objects, kept between runs in a folder of the user's own."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pyro_nfvi._version import __version__
from pyro_nfvi.engine.program import Unsupported

__all__ = ["Cache", "clear_cache", "default_folder"]

#: Bytes that all objects may take together.
_MOST = 512 * 1024 * 1024
_OBJECT, _SUM = "step.so", "sum"
#: What unfinished work is called, and after how many seconds it is given up for lost.
_UNFINISHED, _LOST = "nfvi-", 3600.0


def default_folder() -> Path:
    """Return the folder: ``pyro_nfvi`` under ``XDG_CACHE_HOME``, or else under ``~/.cache``."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(named) if os.path.isabs(named) else Path("~/.cache").expanduser()
    return root / "pyro_nfvi"


class Cache:
    """Objects by key, each in a folder of its own beside a checksum.

    An entry appears whole or not at all: it is made under another name and then renamed, so that
    several processes may build the same one at once. One that is truncated, changed or not ours
    is thrown away and built again, never loaded. Beyond a bound in size, those not used for
    longest go.

    Args:
        folder: Where; by default :func:`default_folder`.
        most: Bytes that all entries may take together.

    Raises:
        Unsupported: The folder cannot be made, or it belongs to somebody else, who could have
            put anything there.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> cache = Cache(Path(tempfile.mkdtemp()) / "objects")
        >>> path = cache.get(Cache.key("source"), lambda target: target.write_bytes(b"object"))
        >>> path.read_bytes()
        b'object'
    """

    def __init__(self, folder: Path | None = None, most: int = _MOST) -> None:
        self.folder = default_folder() if folder is None else folder
        self.most = most
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(self.folder)
        except OSError as error:
            text = f"the cache folder {self.folder} cannot be used ({error.strerror or error})"
            raise Unsupported(text) from error

    @staticmethod
    def key(*parts: str) -> str:
        """Return the key of what is built from these texts and by this version of the library."""
        digest = hashlib.sha256()
        for part in (__version__, *parts):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()[:40]

    def find(self, key: str) -> Path | None:
        """Return the object of a key if it is there and whole."""
        entry = self.folder / key
        try:
            expected = (entry / _SUM).read_text("utf-8")
            if expected != _fingerprint(entry / _OBJECT, key):
                raise ValueError
            os.utime(entry / _SUM)  # used now
        except FileNotFoundError:
            if entry.exists() or entry.is_symlink():
                _remove(entry)
            return None
        except (OSError, ValueError):
            _remove(entry)
            return None
        return entry / _OBJECT

    def get(self, key: str, build: Callable[[Path], object]) -> Path:
        """Return the object of a key; ``build(path)`` makes it if it is not there.

        Raises:
            Unsupported: The disk is full or read-only; whatever ``build`` raises.
        """
        found = self.find(key)
        if found is not None:
            return found
        try:
            draft = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.folder))
            try:
                build(draft / _OBJECT)
                (draft / _SUM).write_text(_fingerprint(draft / _OBJECT, key), "utf-8")
                made = self._settle(draft, key)
            finally:
                _remove(draft)
        except OSError as error:
            text = f"the compiled step cannot be written ({error.strerror or error})"
            raise Unsupported(text) from error
        self._tidy(keep=key)
        return made

    def _settle(self, draft: Path, key: str) -> Path:
        """Rename a finished draft to its key, unless another process was faster."""
        entry = self.folder / key
        for _ in range(3):
            try:
                os.rename(draft, entry)
                return entry / _OBJECT
            except OSError:
                if self.find(key) is not None:  # removes what is not whole
                    return entry / _OBJECT
        raise OSError(f"{entry} cannot be replaced")

    def entries(self) -> list[tuple[float, int, Path]]:
        """Return time of last use, bytes and folder of every entry, oldest first."""
        found = []
        for path in _folders(self.folder):
            try:
                if not path.name.startswith(_UNFINISHED):
                    used = (path / _SUM).stat().st_mtime
                    found.append((used, (path / _OBJECT).stat().st_size, path))
            except OSError:
                found.append((0.0, 0, path))
        return sorted(found)

    def _tidy(self, keep: str) -> None:
        """Keep to the bound, and remove what was left by processes that died."""
        entries = self.entries()
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.most:
                break
            if path.name != keep:
                _remove(path)
                total -= size
        for path in _folders(self.folder):
            try:
                old = time.time() - path.stat().st_mtime > _LOST
            except OSError:
                continue
            if path.name.startswith(_UNFINISHED) and old:
                _remove(path)

    def clear(self) -> int:
        """Remove every entry; return how many there were."""
        paths = [path for _, _, path in self.entries()]
        for path in paths:
            _remove(path)
        return len(paths)


def clear_cache(folder: Path | None = None) -> int:
    """Remove all compiled steps that are kept; return how many there were.

    Fits that are running are not disturbed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pyro_nfvi.engine import clear_cache
        >>> clear_cache(Path(tempfile.mkdtemp()))
        0
    """
    return Cache(folder).clear()


def _check_owner(folder: Path) -> None:
    """Refuse a folder in which others could plant code."""
    found = folder.stat()
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        raise Unsupported(f"the cache folder {folder} belongs to another user")
    if hasattr(os, "getuid") and stat.S_IMODE(found.st_mode) & 0o022:
        try:
            folder.chmod(0o700)
        except OSError as error:
            raise Unsupported(f"others may write into the cache folder {folder}") from error


def _fingerprint(path: Path, key: str) -> str:
    data = path.read_bytes()
    return f"{hashlib.sha256(data).hexdigest()} {len(data)} {key}\n"


def _folders(folder: Path) -> Iterator[Path]:
    try:
        yield from list(folder.iterdir())
    except OSError:
        return


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
