"""Image data sets: the embedded digits, npz and idx files, split into train, valid and test."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_nfvi.errors import DataError, FileError, MissingPackageError
from pyro_nfvi.vae.idx import looks_like_idx, read_idx

__all__ = ["ImageData", "load_data"]

#: Names under which the parts of a data set are found in an npz file.
_NAMES = {
    "train": ("x_train", "train_images", "train", "train_x", "X_train"),
    "valid": ("x_val", "x_valid", "x_validation", "valid", "val", "valid_x", "X_val"),
    "test": ("x_test", "test_images", "test", "test_x", "X_test"),
    "y_train": ("y_train", "train_labels", "train_y"),
    "y_valid": ("y_val", "y_valid", "y_validation", "valid_y"),
    "y_test": ("y_test", "test_labels", "test_y"),
}
_WHOLE = ("x", "images", "X", "data", "arr_0")
_WHOLE_LABELS = ("y", "labels", "targets", "arr_1")
#: Share of the training images that is held out where a file names no validation images.
_HELD_OUT = 1 / 6


@dataclass(frozen=True)
class ImageData:
    """Images in three parts, as they are in the file.

    Attributes:
        name: Where they come from.
        train: ``(N, *shape)``: integers 0 .. levels-1 (uint8), or floating-point numbers.
        valid: Images to choose by.
        test: Images to report.
        levels: Number of levels of integer pixels; 0 for floating-point ones.
        labels: Labels of the three parts, int64 ``(N,)``, or None.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    levels: int
    labels: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image."""
        return tuple(self.train.shape[1:])

    @property
    def num_labels(self) -> int:
        """Number of classes, 0 without labels."""
        return 0 if self.labels is None else int(max(int(y.max()) for y in self.labels)) + 1

    def __str__(self) -> str:
        pixels = f"{self.levels} levels" if self.levels else "real pixels"
        side = " x ".join(map(str, self.shape))
        counts = "/".join(str(len(part)) for part in (self.train, self.valid, self.test))
        return f"{self.name}: {side}, {pixels}, {counts} images to train, validate, test"


def load_data(source: str | os.PathLike[str], *, seed: int = 0) -> ImageData:
    """Load images.

    Args:
        source: ``"digits"`` (8 x 8 digits of scikit-learn, no download); an npz file with
            ``x_train``, ``x_val``, ``x_test`` and labels ``y_...`` (validation images, test
            images and labels may be missing); an idx file, or a folder of them as MNIST has.
        seed: Of the split of a file with one array of images.

    Raises:
        FileError: A file that is missing, truncated or something else.
        DataError: A file without images, or with images that cannot be used.

    Example:
        >>> from pyro_nfvi.vae import load_data
        >>> print(load_data("digits"))
        digits: 8 x 8, 17 levels, 1297/250/250 images to train, validate, test
    """
    if str(source) == "digits":
        return _digits()
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, seed)
    if not path.exists():
        raise FileError(
            f"There is no file {path} (from {Path.cwd()}). --data takes 'digits', an npz file, an "
            "idx file or a folder of idx files."
        )
    if looks_like_idx(path):
        return _assemble(path.name, {"x": read_idx(path)}, seed)
    return _assemble(path.name, _read_npz(path), seed)


def _digits() -> ImageData:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPackageError(
            "The embedded digits come with scikit-learn, which is not installed: "
            "pip install 'pyro-nfvi[vae]', or pip install scikit-learn"
        ) from error
    found = load_digits()
    order = np.random.RandomState(0).permutation(len(found.images))
    x = torch.from_numpy(found.images[order].astype(np.uint8))
    y = torch.from_numpy(found.target[order].astype(np.int64))
    cuts = (len(x) - 500, len(x) - 250)
    images, labels = [(v[: cuts[0]], v[cuts[0] : cuts[1]], v[cuts[1] :]) for v in (x, y)]
    train, valid, test = images
    return ImageData("digits", train, valid, test, 17, labels)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            start = file.read(4)
        what = "is truncated" if start[:2] == b"PK" else f"starts with {start!r}"
        raise FileError(
            f"{path} is no npz file, or not a whole one: it {what}. Write images with "
            "np.savez_compressed(path, x_train=..., x_val=..., x_test=...)."
        )
    try:
        with np.load(path, allow_pickle=False) as held:
            wanted = {n for names in _NAMES.values() for n in names} | {*_WHOLE, *_WHOLE_LABELS}
            found = {name: held[name] for name in held.files if name in wanted}
            there = list(held.files)
    except ValueError as error:
        raise FileError(
            f"{path} holds objects instead of numbers, which are not read (they could run code): "
            f"{error}. Save plain arrays."
        ) from error
    except Exception as error:  # zipfile and numpy fail on harmed bytes in many ways
        raise FileError(f"{path} is damaged: {error}. Copy or download it again.") from error
    if not any(name in found for name in (*_NAMES["train"], *_WHOLE)):
        raise DataError(
            f"{path} holds no images under a name that is known: it has {', '.join(there)}. "
            "Write them as x_train, x_val and x_test, or as x."
        )
    return found


def _from_folder(path: Path, seed: int) -> ImageData:
    found: dict[str, np.ndarray] = {}
    for file in sorted(path.iterdir()):
        if not file.is_file() or not looks_like_idx(file):
            continue
        part = "train" if "train" in file.name else "test" if "t10k" in file.name else None
        if part is None and "test" in file.name:
            part = "test"
        if part is not None:
            found[f"{'y' if 'label' in file.name else 'x'}_{part}"] = read_idx(file)
    if "x_train" not in found:
        raise DataError(
            f"{path} holds no idx file of training images, such as train-images-idx3-ubyte.gz."
        )
    return _assemble(path.name, found, seed)


def _pick(held: Mapping[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    return next((held[name] for name in names if name in held), None)


def _assemble(name: str, held: Mapping[str, np.ndarray], seed: int) -> ImageData:
    arrays = {part: _pick(held, names) for part, names in _NAMES.items()}
    if arrays["train"] is None:
        arrays = _split(_pick(held, _WHOLE), _pick(held, _WHOLE_LABELS), seed)
    if arrays["test"] is None:
        arrays = _split(arrays["train"], arrays["y_train"], seed)
    if arrays["valid"] is None:
        # The last ones in the file's order: 10,000 of MNIST's 60,000.
        train, labels = arrays["train"], arrays["y_train"]
        assert train is not None
        cut = len(train) - max(1, round(len(train) * _HELD_OUT))
        arrays |= {"train": train[:cut], "valid": train[cut:]}
        if labels is not None:
            arrays |= {"y_train": labels[:cut], "y_valid": labels[cut:]}
    images = [_images(arrays[part], part, name) for part in ("train", "valid", "test")]
    if len({part.shape[1:] for part in images}) > 1:
        shapes = ", ".join(str(part.shape[1:]) for part in images)
        raise DataError(f"{name}: images of train, valid and test differ in shape: {shapes}.")
    tensors, levels = _levels(images, name)
    found = [arrays[part] for part in ("y_train", "y_valid", "y_test")]
    classes = None
    if all(y is not None for y in found):
        first, second, third = (_labels(y, x, name) for y, x in zip(found, images))
        classes = (first, second, third)
    return ImageData(name, tensors[0], tensors[1], tensors[2], levels, classes)


def _split(x: np.ndarray | None, y: np.ndarray | None, seed: int) -> dict[str, np.ndarray | None]:
    """Divide one array of images 8 : 1 : 1 at random."""
    assert x is not None
    if x.ndim == 0 or len(x) < 3:
        raise DataError(f"There are {len(x) if x.ndim else 0} images; at least 3 are needed.")
    order = np.random.RandomState(seed).permutation(len(x))
    tenth = max(1, len(x) // 10)
    where = {
        "train": order[: -2 * tenth], "valid": order[-2 * tenth : -tenth], "test": order[-tenth:]
    }  # fmt: skip
    found: dict[str, np.ndarray | None] = {part: x[rows] for part, rows in where.items()}
    for part, rows in where.items():
        found[f"y_{part}"] = None if y is None else y[rows]
    return found


def _images(x: np.ndarray | None, part: str, name: str) -> np.ndarray:
    assert x is not None
    if x.ndim < 2 or x.shape[0] == 0 or 0 in x.shape:
        raise DataError(f"{name}: the {part} images are empty or no images: shape {x.shape}.")
    if x.dtype.kind not in "uifb":
        raise DataError(f"{name}: the {part} images are of type {x.dtype}, not numbers.")
    if x.ndim == 4 and 1 in (x.shape[1], x.shape[-1]):
        x = x.reshape(len(x), *(x.shape[1:3] if x.shape[-1] == 1 else x.shape[2:]))
    side = round(x.shape[1] ** 0.5)
    if x.ndim == 2 and side * side == x.shape[1]:
        x = x.reshape(len(x), side, side)
    return x


def _levels(images: list[np.ndarray], name: str) -> tuple[list[Tensor], int]:
    """Integers as uint8 with their number of levels, other pixels as float32."""
    whole = True
    for x in images:
        if x.dtype.kind == "f":
            if not np.isfinite(x).all():
                bad = int((~np.isfinite(x)).sum())
                raise DataError(f"{name}: {bad} pixels are not finite. Drop or repair the images.")
            whole = whole and bool((x == np.round(x)).all())
    low, high = min(x.min() for x in images), max(x.max() for x in images)
    if whole:
        if low < 0 or high > 255:
            raise DataError(
                f"{name}: integer pixels go from {low:g} to {high:g}; 0 to 255 are read."
            )
        levels = 2 if high <= 1 else 256 if high > 16 else int(high) + 1
        return [torch.from_numpy(x.astype(np.uint8)) for x in images], levels
    return [torch.from_numpy(x.astype(np.float32)) for x in images], 0


def _labels(y: np.ndarray | None, x: np.ndarray, name: str) -> Tensor:
    assert y is not None
    flat = y.reshape(-1)
    if len(flat) != len(x) or y.dtype.kind not in "ui" or flat.min() < 0:
        raise DataError(
            f"{name}: {len(x)} images need as many labels, integers from 0; got shape {y.shape} "
            f"of {y.dtype}."
        )
    return torch.from_numpy(flat.astype(np.int64))
