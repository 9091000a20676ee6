"""Reading npz files: which arrays are images and labels of which part, and only those."""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from pyro_nfvi._files.archives import Malformed, check_room
from pyro_nfvi.errors import DataError, FileError
from pyro_nfvi.vae._recipe import DATA

#: Names of each part in an npz file, as :func:`_plain` has them; "x" and "y" are not split yet.
_IMAGES = {
    "train": ("xtrain", "trainimages", "train", "trainx"),
    "valid": (
        "xval", "xvalid", "xvalidation", "valid", "val", "validx", "valx", "valimages",
        "validimages", "validationimages",
    ),
    "test": ("xtest", "testimages", "test", "testx"),
    "x": ("x", "images", "data", "arr0"),
}  # fmt: skip
_LABELS = {
    "y_train": ("ytrain", "trainlabels", "trainy"),
    "y_valid": (
        "yval", "yvalid", "yvalidation", "validy", "valy", "vallabels", "validlabels",
        "validationlabels",
    ),
    "y_test": ("ytest", "testlabels", "testy"),
    "y": ("y", "labels", "targets", "arr1"),
}  # fmt: skip
_UNDERSTOOD = (
    "Understood are x_train, x_val, x_test (or train_images, val_images, test_images), or x, "
    "images, data for images to be split, or one array under any name"
)
_HOW = "Write images with np.savez_compressed(path, x_train=..., x_val=..., x_test=...)."


@dataclass
class Held:
    """The arrays of a file.

    Attributes:
        arrays: Images ``train``, ``valid``, ``test`` or ``x``, and labels ``y_train``, ``y_valid``,
            ``y_test`` or ``y``.
        no_labels: Why labels of the file are not among them.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    no_labels: str = ""


@dataclass(frozen=True)
class _Member:
    """An array of the file by its header; without a type where that cannot be read."""

    name: str
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] | None = None

    @property
    def like_images(self) -> bool:
        return self.dtype is not None and self.dtype.kind in "uifb" and len(self.shape) >= 2

    def __str__(self) -> str:
        return self.name if self.dtype is None else f"{self.name} {self.shape} {self.dtype}"


def read_npz(path: Path) -> Held:
    """Read the images and labels of an npz file; other arrays are left alone.

    Raises:
        FileError: No npz file, a damaged one, or objects in place of images.
        DataError: No images under a name that is known, or several for one part.
    """
    wanted, no_labels = _choose(path, _members(path))
    return Held(_load(path, wanted), no_labels)


def held_of(arrays: dict[str, np.ndarray], name: str) -> Held:
    """Take images and labels out of arrays by name, as :func:`read_npz` does.

    Args:
        arrays: The arrays.
        name: Where they come from, for messages.
    """
    members = [_Member(key, value.shape, value.dtype) for key, value in arrays.items()]
    wanted, no_labels = _choose(name, members)
    return Held({part: arrays[one.name] for part, one in wanted.items()}, no_labels)


def _choose(path: Path | str, members: list[_Member]) -> tuple[dict[str, _Member], str]:
    """Choose the array of each part, and say why labels are not among them."""
    chosen = _choose_images(path, members)
    labels, problem = {}, ""
    for part, names in _LABELS.items():
        found = [one for one in members if _plain(one.name) in names and one not in chosen.values()]
        problem = problem or _why_no_labels(found)
        if found:
            labels[part] = found[0]
    # Labels that cannot be read are a matter of those who ask for them.
    return chosen if problem else chosen | labels, problem


def _plain(name: str) -> str:
    """A name without case, underscores and the like: ``X_Train`` and ``xtrain`` are the same."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _members(path: Path) -> list[_Member]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            start = file.read(4)
        what = "is truncated" if start[:2] == b"PK" else f"starts with {start!r}"
        raise FileError(f"{path} is no npz file, or not a whole one: it {what}. {_HOW}")
    found = []
    try:
        with zipfile.ZipFile(path) as packed:
            for part in packed.infolist():
                check_room(part.file_size, path.stat().st_size)
                with packed.open(part) as file:
                    # The header alone, however long it says that it is.
                    head = io.BytesIO(file.read(DATA.header_bytes))
                one = _header(part.filename.removesuffix(".npy"), head)
                size = 0 if one.dtype is None else math.prod(one.shape) * one.dtype.itemsize
                if one.dtype is not None and not one.dtype.hasobject and size > part.file_size:
                    raise Malformed(f"{one.name} says {size} bytes of {part.file_size}")
                found.append(one)
    except Exception as error:  # zipfile fails on harmed bytes in many ways
        raise FileError(f"{path} is damaged: {error}. Copy or download it again.") from error
    return found


def _header(name: str, file: IO[bytes]) -> _Member:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = readers[version](file)
    except Exception:  # whoever needs this array finds out what is wrong with it
        return _Member(name)
    return _Member(name, shape, dtype)


def _listing(members: list[_Member]) -> str:
    most = DATA.listed_arrays
    more = [f"{len(members) - most} more"] if len(members) > most else []
    return ", ".join([*map(str, members[:most]), *more]) or "nothing"


def _choose_images(path: Path | str, members: list[_Member]) -> dict[str, _Member]:
    """The array of each part of the images."""
    if len(members) == 1:  # under a name of its own it is not to be mistaken
        return {"x": members[0]}
    chosen: dict[str, _Member] = {}
    for part, names in _IMAGES.items():
        named = [one for name in names for one in members if _plain(one.name) == name]
        images = [one for one in named if one.like_images]
        if len(images) > 1 and not (part == "x" and "train" in chosen):
            raise DataError(
                f"{path} holds several arrays that can be the {'' if part == 'x' else part + ' '}"
                f"images: {_listing(images)}. Keep one of them. {_UNDERSTOOD}."
            )
        if named:
            chosen[part] = (images or named)[0]
    if "train" in chosen and (chosen["train"].like_images or "x" not in chosen):
        chosen.pop("x", None)  # not needed, whatever it is
        return chosen
    if "x" not in chosen:
        raise DataError(
            f"{path} holds no images under a name that is known: it has {_listing(members)}. "
            f"{_UNDERSTOOD}."
        )
    apart = [chosen[part] for part in ("valid", "test") if part in chosen]
    if any(one.like_images for one in apart):
        raise DataError(
            f"{path} holds {_listing([chosen['x'], *apart])}, and it is not clear whether "
            f"{chosen['x'].name} are the training images or all of them. Call the training images "
            "x_train, or leave the other parts out."
        )
    return {"x": chosen["x"]}


def _why_no_labels(found: list[_Member]) -> str:
    """Say why labels cannot be taken from what is there under their names."""
    if len(found) > 1:
        return f"several arrays can be labels of one part: {_listing(found)}; keep one of them"
    if found and found[0].dtype is None:
        return f"the labels {found[0].name} are no array"
    if found and found[0].dtype is not None and found[0].dtype.hasobject:
        return (
            f"the labels {found[0].name} are objects, which are not read (they could run code); "
            "save integers from 0"
        )
    return ""


def _load(path: Path, wanted: dict[str, _Member]) -> dict[str, np.ndarray]:
    found = {}
    try:
        with np.load(path, allow_pickle=False) as packed:
            for part, one in wanted.items():
                found[part] = packed[one.name]
    except Exception as error:  # zipfile and numpy fail on harmed bytes in many ways
        if str(error).startswith("Object arrays"):
            raise FileError(
                f"{path} holds objects instead of numbers in {one}, which are not read (they could "
                "run code). Save plain arrays, images of one shape."
            ) from error
        words = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise FileError(f"{path} is damaged: {words}. Copy or download it again.") from error
    strange = [one.name for part, one in wanted.items() if not isinstance(found[part], np.ndarray)]
    if strange:
        raise FileError(
            f"{path} is a zip file whose member {strange[0]!r} is no array of NumPy. {_HOW}"
        )
    return found
