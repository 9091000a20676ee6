"""Compiled objects, kept between runs in a folder of the user's own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyro_nfvi._folder_lock import UNFINISHED
from pyro_nfvi._version import __version__
from pyro_nfvi.errors import FileError

_OBJECT, _SUM, _TAG = "step.so", "sum", "CACHEDIR.TAG"
_TAG_TEXT = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# This folder was made by pyro_nfvi for compiled steps (see https://bford.info/cachedir/).\n"
)
_KEY, _DRAFT = re.compile(r"[0-9a-f]{40}"), re.compile(r"nfvi-[0-9a-z_]{8}")
#: Whether files can be reached from an open folder, whatever becomes of its name.
_ANCHORED = {os.open, os.mkdir, os.rename, os.unlink, os.rmdir, os.stat} <= os.supports_dir_fd
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
#: A pipe in place of a file would be waited for.
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True)
class CacheLimits:
    """Sizes of the folder of compiled steps."""

    #: Bytes that all objects may take together: some thousand steps of 100 kB.
    total_bytes: int = 512 * 1024 * 1024
    #: Bytes that one object may take; a larger one is no compiled step.
    object_bytes: int = 256 * 1024 * 1024


LIMITS = CacheLimits()


def default_folder() -> Path:
    """Return the folder ``pyro_nfvi`` in the place that this system has for caches.

    Below ``XDG_CACHE_HOME`` if that is an absolute path, or else in ``~/.cache`` (Linux) or
    ``~/Library/Caches`` (macOS).
    """
    import platformdirs

    found = platformdirs.user_cache_path("pyro_nfvi", appauthor=False)
    if not found.is_absolute():  # the standard has a relative XDG_CACHE_HOME ignored
        found = Path("~/.cache/pyro_nfvi").expanduser()
    return found


class Cache:
    """Objects by key, each in a folder of its own beside a checksum.

    An entry appears whole or not at all: it is made under another name and then renamed, so that
    several processes may build the same one at once. One that is truncated, changed or not ours is
    never loaded: owner, permissions and checksum are examined on descriptors that are open, no
    symbolic link is followed, and the very bytes that were examined are returned. Beyond a bound in
    size, entries not used for longest go. Nothing but entries is ever removed.

    A folder into which others can write is not used. If this library made it (its ``CACHEDIR.TAG``
    says so), it is closed to others, and all entries are discarded; the permissions of any other
    folder are left alone.

    Args:
        folder: Where; by default :func:`default_folder`. It is made when something is kept.
        most: Bytes that all entries may take together.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> cache = Cache(Path(tempfile.mkdtemp()) / "objects")
        >>> key = Cache.key("source")
        >>> cache.put(key, b"object"), cache.find(key)
        (True, b'object')
    """

    def __init__(self, folder: Path | None = None, most: int = LIMITS.total_bytes) -> None:
        self.folder = default_folder() if folder is None else folder
        self.most = most

    @staticmethod
    def key(*parts: str) -> str:
        """Return the key of what is built from these texts and by this version of the library."""
        digest = hashlib.sha256()
        for part in (__version__, *parts):
            data = part.encode("utf-8", "surrogateescape")
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()[:40]

    def find(self, key: str) -> bytes | None:
        """Return the object of a key if it is there, whole and the user's own."""
        try:
            with self.opened() as folder:
                return _entry(folder, key)
        except OSError:
            return None

    def put(self, key: str, data: bytes) -> bool:
        """Keep an object; return whether that could be done.

        It cannot where the disk is full or read-only, or the folder is not to be trusted.
        """
        try:
            with self.opened(make=True) as folder:
                with _draft(folder) as name:
                    with _opened_in(folder, name) as draft:
                        _write(draft, _OBJECT, data)
                        _write(draft, _SUM, _fingerprint(data, key))
                    kept = _settle(folder, name, key)
                self._tidy(folder, keep=key)
                return kept
        except OSError:
            return False

    @contextmanager
    def opened(self, *, make: bool = False) -> Iterator[int]:
        """Open the folder, and yield its descriptor if nobody else can write into it.

        Args:
            make: Make it if it is not there.

        Raises:
            OSError: It is not there, or not to be trusted; the message says why.
        """
        if not _ANCHORED:
            raise OSError("this system cannot examine a file and read the same one")
        made = False
        if make:
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir(mode=0o700, parents=True)
                made = True
        folder = os.open(self.folder, _FOLDER)
        try:
            if made:
                os.fchmod(folder, 0o700)  # whatever a mask left of it
                _write(folder, _TAG, _TAG_TEXT)
            found = os.fstat(folder)
            if found.st_uid != os.getuid():
                raise OSError(f"the cache folder {self.folder} belongs to another user")
            if stat.S_IMODE(found.st_mode) & 0o022:
                if _read(folder, _TAG, len(_TAG_TEXT)) != _TAG_TEXT:
                    raise OSError(f"others may write into the cache folder {self.folder}")
                os.fchmod(folder, 0o700)
                for name in os.listdir(folder):
                    if _KEY.fullmatch(name) or _DRAFT.fullmatch(name):
                        _discard(folder, name)
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def draft(self, name: str, data: bytes) -> Iterator[tuple[str, int]]:
        """Put a file into a folder of its own in the cache's, for as long as it is needed.

        Yields:
            The folder's name, and its descriptor.

        Raises:
            OSError: It cannot be written, or the cache's folder is not to be trusted.
        """
        with (
            self.opened(make=True) as folder,
            _draft(folder) as place,
            _opened_in(folder, place) as descriptor,
        ):
            _write(descriptor, name, data)
            yield place, descriptor

    def _tidy(self, folder: int, keep: str) -> None:
        """Keep to the bound, and remove what was left by processes that died."""
        entries = sorted(_entries(folder))
        total = sum(size for _, size, _ in entries)
        for _, size, name in entries:
            if total <= self.most:
                break
            if name != keep and _discard(folder, name):
                total -= size
        for name in _lost(folder):
            _discard(folder, name)

    def usage(self) -> tuple[int, int]:
        """Return how many entries there are and their bytes; nothing is made or changed.

        Raises:
            FileError: The folder cannot be read.
        """
        try:
            folder = os.open(self.folder, _FOLDER)
        except FileNotFoundError:
            return 0, 0
        except OSError as error:
            raise FileError(
                f"{self.folder} is not a folder of compiled steps: {error.strerror or error}."
            ) from error
        try:
            sizes = [size for _, size, _ in _entries(folder)]
            return len(sizes), sum(sizes)
        finally:
            os.close(folder)

    def clear(self) -> int:
        """Remove every entry; return how many there were.

        Raises:
            FileError: The folder is not the user's own, or holds something else; then nothing is
                removed.
        """
        try:
            folder = os.open(self.folder, _FOLDER)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise FileError(
                f"{self.folder} is not a folder of compiled steps: {error.strerror or error}. Give "
                "the folder itself, not a link to it."
            ) from error
        try:
            if os.fstat(folder).st_uid != os.getuid():
                raise FileError(
                    f"The folder {self.folder} belongs to another user. Nothing was removed: let "
                    "its owner do it."
                )
            names = sorted(os.listdir(folder))
            foreign = [name for name in names if not _is_ours(folder, name)]
            if foreign:
                raise FileError(
                    f"The folder {self.folder} holds {foreign[0]!r}"
                    f"{f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''}, which is no "
                    "compiled step. Nothing was removed: give the folder of the cache "
                    f"({default_folder()}), or move away what is yours."
                )
            for name in _lost(folder):
                _discard(folder, name)
            return sum(_discard(folder, name) for name in names if _KEY.fullmatch(name))
        finally:
            os.close(folder)


def clear_cache(folder: Path | None = None) -> int:
    """Remove all compiled steps that are kept; return how many there were.

    Fits that are running are not disturbed. Nothing but compiled steps is removed, and no folder
    is made or changed.

    Raises:
        FileError: The folder is not the user's own, or holds something else than compiled steps.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pyro_nfvi import clear_cache
        >>> clear_cache(Path(tempfile.mkdtemp()))
        0
    """
    return Cache(None if folder is None else Path(folder)).clear()


# ------------------------------------------------------------------------- entries of a folder


def _entry(folder: int, key: str) -> bytes | None:
    """Read and examine an entry; discard one that is not as it was made."""
    try:
        with _opened_in(folder, key) as entry:
            found = os.fstat(entry)
            _check_own(found)
            data, told = _read(entry, _OBJECT, LIMITS.object_bytes), _read(entry, _SUM, 1024)
            if told == _fingerprint(data, key):
                os.utime(_SUM, dir_fd=entry, follow_symlinks=False)  # used now
                return data
    except FileNotFoundError:
        pass
    except OSError:  # a link, a pipe, somebody else's
        pass
    _discard(folder, key)
    return None


def _settle(folder: int, draft: str, key: str) -> bool:
    """Rename a finished draft to its key, unless another process was faster."""
    for _ in range(3):
        try:
            os.rename(draft, key, src_dir_fd=folder, dst_dir_fd=folder)
            return True
        except OSError:
            if _entry(folder, key) is not None:  # removes what is not whole
                return True
    return False


def _entries(folder: int) -> Iterator[tuple[float, int, str]]:
    """Yield time of last use, bytes and name of every entry."""
    for name in os.listdir(folder):
        if not _KEY.fullmatch(name) or not _is_ours(folder, name):
            continue
        try:
            with _opened_in(folder, name) as entry:
                used = os.stat(_SUM, dir_fd=entry, follow_symlinks=False).st_mtime
                size = os.stat(_OBJECT, dir_fd=entry, follow_symlinks=False).st_size
        except OSError:
            used, size = 0.0, 0
        yield used, size, name


def _lost(folder: int) -> list[str]:
    """Name drafts that nobody has worked at for long."""
    found = []
    for name in os.listdir(folder):
        if _DRAFT.fullmatch(name):
            with contextlib.suppress(OSError):
                held = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if time.time() - held.st_mtime > UNFINISHED.lost_after:
                    found.append(name)
    return found


def _is_ours(folder: int, name: str) -> bool:
    """Tell whether a name in the folder, and all below it, has the form of this module's files.

    A broken entry has it too: nothing but an object and a sum, either of which may be missing.
    """
    if name == _TAG:
        return True
    if not (_KEY.fullmatch(name) or _DRAFT.fullmatch(name)):
        return False
    try:
        with _opened_in(folder, name) as entry:
            held = os.listdir(entry)
            return all(_is_part(entry, one) for one in held)
    except OSError:
        return False


def _is_part(entry: int, name: str) -> bool:
    known = name in (_OBJECT, _SUM) or (name.endswith(".so") and _KEY.fullmatch(name[:-3]))
    return bool(known) and not stat.S_ISDIR(
        os.stat(name, dir_fd=entry, follow_symlinks=False).st_mode
    )


def _discard(folder: int, name: str) -> bool:
    """Remove an entry or a draft; return whether it was one, and is gone.

    A symbolic link in its place is removed, and what it leads to left alone; anything else is no
    entry, and stays.
    """
    try:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
            return True
        if not _is_ours(folder, name):
            return False
        with _opened_in(folder, name) as entry:
            for part in os.listdir(entry):
                os.unlink(part, dir_fd=entry)
        os.rmdir(name, dir_fd=folder)
        return True
    except OSError:
        return False


@contextmanager
def _draft(folder: int) -> Iterator[str]:
    """Make a folder for unfinished work; what is left of it at the end goes."""
    name = f"nfvi-{secrets.token_hex(4)}"
    os.mkdir(name, 0o700, dir_fd=folder)
    try:
        yield name
    finally:
        _discard(folder, name)


# ------------------------------------------------------------------------------ single files


@contextmanager
def _opened_in(folder: int, name: str) -> Iterator[int]:
    descriptor = os.open(name, _FOLDER, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_own(found: os.stat_result) -> None:
    """Raise unless only this user can have written something."""
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise OSError("others may have written it")


def _read(folder: int, name: str, most: int) -> bytes:
    """Read a file that nobody else can have written, of a bounded size."""
    descriptor = os.open(name, _READ, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        _check_own(found)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_size > most:
            raise OSError("no plain file of its own")
        return file.read(most)


def _write(folder: int, name: str, data: bytes) -> None:
    with os.fdopen(os.open(name, _NEW, 0o600, dir_fd=folder), "wb") as file:
        file.write(data)


def _fingerprint(data: bytes, key: str) -> bytes:
    return f"{hashlib.sha256(data).hexdigest()} {len(data)} {key}\n".encode()
