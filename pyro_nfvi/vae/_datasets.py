"""Image data sets: the embedded digits, npz and idx files, split into train, valid and test."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyro_nfvi._random import numpy_stream
from pyro_nfvi.errors import DataError, FileError, MissingPackageError
from pyro_nfvi.vae._class_labels import why_unusable
from pyro_nfvi.vae._idx import looks_like_idx, read_idx
from pyro_nfvi.vae._npz import Held, held_of, read_npz
from pyro_nfvi.vae._pixel_scales import on_one_scale
from pyro_nfvi.vae._recipe import DATA

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
        no_labels: Why there are none, where a file holds some that cannot be used.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    levels: int
    labels: tuple[Tensor, Tensor, Tensor] | None = None
    no_labels: str = ""

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


def load_data(
    source: str | os.PathLike[str],
    *,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    levels: int | None = None,
) -> ImageData:
    """Load images.

    Args:
        source: ``"digits"`` (8 x 8 digits of scikit-learn, no download); an npz file with
            ``x_train``, ``x_val``, ``x_test`` and labels ``y_...`` (or ``train_images`` and so on;
            validation images, test images and labels may be missing), or with one array; an idx
            file; a folder with one npz file, or with idx files as MNIST has. Real pixels that are
            all k/255 are read as the 256 levels that they are. Labels that cannot be used are left
            out, and ``no_labels`` says why.
        seed: Of the split where there are no test images.
        shape: Shape of an image, where the file holds rows ``(N, D)``: ``(28, 28)``, or ``(D,)``
            for rows that are no pictures. Nothing is guessed from a table of numbers.
        levels: Levels of the pixels: integers 0 .. levels-1; 0 for real numbers. Needed beside
            ``shape``, since counts look like grey levels; None takes arrays of images as 0/1, as
            8 bits, or as the few levels that they have.

    Raises:
        FileError: A file that is missing, truncated or something else.
        DataError: A file without images, with several arrays for one part, with rows of which
            nobody said what they are, or with images that cannot be used.

    Example:
        >>> from pyro_nfvi.vae import load_data
        >>> print(load_data("digits"))
        digits: 8 x 8, 17 levels, 1297/250/250 images to train, validate, test
    """
    if str(source) == "digits":
        if shape not in (None, (8, 8)) or levels not in (None, 17):
            raise DataError("The digits are 8 x 8 pixels of 17 levels: leave shape and levels out.")
        return _digits()
    form = _Form(seed, shape, levels)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, form)
    if not path.exists():
        raise FileError(
            f"There is no file {path} (from {Path.cwd()}). --data takes 'digits', an npz file, an "
            "idx file or a folder of idx files."
        )
    if looks_like_idx(path):
        return _assemble(path.name, Held({"x": read_idx(path)}), form)
    return _assemble(path.name, read_npz(path), form)


def data_of_arrays(
    given: Any,
    name: str,
    *,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    levels: int | None = None,
) -> ImageData:
    """Make a data set of what a function of a user's own returned.

    Args:
        given: An :class:`ImageData`; arrays or tensors by the names of an npz file (``x_train``,
            ``y_train``, ...); one array; or the tuple of train, valid and test, each an array, a
            pair with labels, or a map-style ``Dataset``, which is read into memory.
        name: Where it comes from.
        seed: As in :func:`load_data`.
        shape: As in :func:`load_data`.
        levels: As in :func:`load_data`.

    Raises:
        DataError: It is something else, or holds no images.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae._datasets import data_of_arrays
        >>> x = torch.randint(0, 2, (20, 4, 4))
        >>> print(data_of_arrays((x, x[:5], x[:5]), "mine"))
        mine: 4 x 4, 2 levels, 20/5/5 images to train, validate, test
    """
    if isinstance(given, ImageData):
        return given
    form = _Form(seed, shape, levels)
    if isinstance(given, Mapping):
        plain = {str(key): _array(value, name) for key, value in given.items()}
        return _assemble(name, held_of(plain, name), form)
    if not isinstance(given, tuple | list):
        return _assemble(name, Held({"x": _array(given, name)}), form)
    if len(given) != 3:
        raise DataError(
            f"{name} needs to return train, valid and test, or arrays by name (x_train=..., "
            f"y_train=...); it returned {len(given)} parts."
        )
    arrays: dict[str, np.ndarray] = {}
    for part, value in zip(("train", "valid", "test"), given):
        x, y = _images_and_labels(value, name)
        arrays[part] = x
        if y is not None:
            arrays[f"y_{part}"] = y
    return _assemble(name, Held(arrays), form)


def _images_and_labels(value: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    if isinstance(value, tuple | list) and len(value) == 2:
        return _array(value[0], name), _array(value[1], name)
    if isinstance(value, Dataset) and hasattr(value, "__len__"):
        rows = [value[i] for i in range(len(value))]
        if rows and isinstance(rows[0], tuple | list):
            x = np.stack([_array(row[0], name) for row in rows])
            labelled = len(rows[0]) > 1
            return x, np.asarray([int(row[1]) for row in rows]) if labelled else None
        return np.stack([_array(row, name) for row in rows]), None
    return _array(value, name), None


def _array(value: Any, name: str) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | list | int | float | np.generic):
        return np.asarray(value)
    raise DataError(
        f"{name} returned a {type(value).__name__} where images or labels belong: return arrays, "
        "tensors or data sets."
    )


@dataclass(frozen=True)
class _Form:
    """A caller's description of the images: seed of a split, shape, levels."""

    seed: int
    shape: tuple[int, ...] | None
    levels: int | None


def _digits() -> ImageData:
    rows = _table_of_digits()
    rows = rows[np.random.RandomState(0).permutation(len(rows))]
    x = torch.from_numpy(rows[:, :-1].reshape(-1, 8, 8).astype(np.uint8))
    y = torch.from_numpy(rows[:, -1].astype(np.int64))
    held_out = DATA.digits_held_out
    cuts = (len(x) - 2 * held_out, len(x) - held_out)
    images, labels = [(v[: cuts[0]], v[cuts[0] : cuts[1]], v[cuts[1] :]) for v in (x, y)]
    train, valid, test = images
    return ImageData("digits", train, valid, test, 17, labels)


def _table_of_digits() -> np.ndarray:
    """Read scikit-learn's file of digits, ``(images, 64 pixels and a label)``.

    Without its import, which takes a second and sets variables of the environment.
    """
    found = find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise MissingPackageError(
            "The embedded digits come with scikit-learn, which is not installed: "
            "pip install 'pyro-nfvi[vae]', or pip install scikit-learn"
        )
    file = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not file.exists():
        raise MissingPackageError(
            f"This scikit-learn has no file {file}, from which the digits are read. Install "
            "another release of it, or pass images of your own."
        )
    return np.loadtxt(file, delimiter=",")


def _from_folder(path: Path, form: _Form) -> ImageData:
    packed = sorted(path.glob("*.npz"))
    if len(packed) == 1:
        return _assemble(packed[0].name, read_npz(packed[0]), form)
    if (path / "raw").is_dir():  # as torchvision lays it out
        return _from_folder(path / "raw", form)
    found: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for file in sorted(path.iterdir()):
        if not file.is_file() or not looks_like_idx(file):
            continue
        part = "train" if "train" in file.name else "test" if "t10k" in file.name else None
        if part is None and "test" in file.name:
            part = "test"
        if part is not None:
            key = f"y_{part}" if "label" in file.name else part
            # The same file is often there both packed and unpacked.
            stem = file.name.removesuffix(".gz")
            if origin.setdefault(key, stem) != stem:
                raise DataError(
                    f"{path} holds several idx files for one part: {origin[key]} and {file.name}. "
                    "Put each data set into a folder of its own."
                )
            found[key] = read_idx(file)
    if "train" not in found:
        raise DataError(
            f"{path} holds no idx file of training images, such as train-images-idx3-ubyte.gz"
            + (f", and {len(packed)} npz files: name one of them." if packed else ".")
        )
    return _assemble(path.name, Held(found), form)


def _assemble(name: str, held: Held, form: _Form) -> ImageData:
    # Who does not condition on labels has no need of good ones.
    problem = held.no_labels or why_unusable(held.arrays)
    given = {part: x for part, x in held.arrays.items() if not part.startswith("y")}
    if not problem:
        # Labels of images that are not there were not looked at.
        names = {"y" if part == "x" else f"y_{part}" for part in given} & set(held.arrays)
        given |= {part: held.arrays[part].reshape(-1).astype(np.int64) for part in names}
    arrays = _divide(given, form.seed)
    images = [_images(arrays[part], part, name, form) for part in ("train", "valid", "test")]
    if len({part.shape[1:] for part in images}) > 1:
        shapes = ", ".join(str(part.shape[1:]) for part in images)
        raise DataError(f"{name}: images of train, valid and test differ in shape: {shapes}.")
    tensors, levels = on_one_scale(images, name, form.levels)
    classes = None
    if {"y_train", "y_valid", "y_test"} <= set(arrays):
        first, second, third = (
            torch.from_numpy(arrays[part]) for part in ("y_train", "y_valid", "y_test")
        )
        classes = (first, second, third)
    return ImageData(name, tensors[0], tensors[1], tensors[2], levels, classes, problem)


def _divide(given: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Make three parts of what there is; parts that the file names stay as they are."""
    if "x" in given:
        return _split(given["x"], given.get("y"), seed)
    if "valid" not in given and "test" not in given:
        return _split(given["train"], given.get("y_train"), seed)
    count = _count(given["train"])
    if "test" not in given:
        order = numpy_stream(seed, "split").permutation(count)
        return _hold_out(given, "test", order, max(1, count // 10))
    if "valid" not in given:
        # The last ones in the file's order: 10,000 of MNIST's 60,000.
        return _hold_out(given, "valid", np.arange(count), max(1, round(count * _HELD_OUT)))
    return given


def _count(x: np.ndarray) -> int:
    return len(x) if x.ndim else 0


def _hold_out(
    given: dict[str, np.ndarray], part: str, order: np.ndarray, count: int
) -> dict[str, np.ndarray]:
    """Make the last training images in an order the images of another part."""
    if len(order) < 2:
        raise DataError(
            f"There are {len(order)} training images, and of these the {part} images are taken; "
            f"at least 2 are needed, or {part} images in the file."
        )
    found = dict(given)
    for name in {"train", "y_train"} & set(given):
        found[name] = given[name][order[:-count]]
        found[name.replace("train", part)] = given[name][order[-count:]]
    return found


def _split(x: np.ndarray, y: np.ndarray | None, seed: int) -> dict[str, np.ndarray]:
    """Divide one array of images 8 : 1 : 1 at random."""
    if _count(x) < 3:
        raise DataError(f"There are {_count(x)} images; at least 3 are needed.")
    order = numpy_stream(seed, "split").permutation(len(x))
    tenth = max(1, len(x) // 10)
    where = {
        "train": order[: -2 * tenth], "valid": order[-2 * tenth : -tenth], "test": order[-tenth:]
    }  # fmt: skip
    found = {part: x[rows] for part, rows in where.items()}
    if y is not None:
        found |= {f"y_{part}": y[rows] for part, rows in where.items()}
    return found


def _images(x: np.ndarray, part: str, name: str, form: _Form) -> np.ndarray:
    if x.ndim < 2 or x.shape[0] == 0 or 0 in x.shape:
        raise DataError(f"{name}: the {part} images are empty or no images: shape {x.shape}.")
    if x.dtype.kind not in "uifb":
        raise DataError(f"{name}: the {part} images are of type {x.dtype}, not numbers.")
    if x.ndim == 4 and 1 in (x.shape[1], x.shape[-1]):
        x = x.reshape(len(x), *(x.shape[1:3] if x.shape[-1] == 1 else x.shape[2:]))
    return _shaped(x, part, name, form)


def _shaped(x: np.ndarray, part: str, name: str, form: _Form) -> np.ndarray:
    """Give images the shape that was given; a table of numbers has none of its own."""
    width = math.prod(x.shape[1:])
    # Rows with an axis of size 1 beside them are rows still.
    if max(x.shape[1:]) == width and (form.shape is None or form.levels is None):
        side = math.isqrt(width)
        square = f"{side},{side} for square images, " if side * side == width > 1 else ""
        missing = [
            text
            for text, value in (
                (f"shape ({square}height,width for others, {width} for rows that are no pictures; "
                 "--shape)", form.shape),
                ("levels (2 for 0/1, 256 for 8 bits, 0 for real numbers; --levels)", form.levels),
            )
            if value is None
        ]  # fmt: skip
        raise DataError(
            f"{name}: the {part} images are rows of {width} numbers, from {float(x.min()):g} to "
            f"{float(x.max()):g} ({x.dtype}): pixels, counts or a table, which the numbers "
            f"do not say. State {' and '.join(missing)}, or save the images with the shape "
            "(N, height, width). Counts are levels 0, with a likelihood such as negative-binomial."
        )
    if form.shape is None or x.shape[1:] == form.shape:
        return x
    if math.prod(form.shape) != math.prod(x.shape[1:]) or min(form.shape) < 1:
        raise DataError(
            f"{name}: the {part} images have shape {x.shape[1:]}, which is not that of "
            f"{form.shape}, the shape that was given."
        )
    return x.reshape(len(x), *form.shape)
