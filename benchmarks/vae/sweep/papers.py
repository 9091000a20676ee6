"""Published numbers to stand beside ours, each with its quantity and source."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyro_nfvi.vae._datasets import ImageData


@dataclass(frozen=True)
class Published:
    """One number of a paper.

    Attributes:
        data: Data set.
        model: As the paper calls it.
        quantity: ``"-ELBO"`` or ``"NLL(S)"`` in nats, S importance samples; ``"-ELBO bits/dim"``.
        value: The number.
        spread: Its spread over runs as the paper gives it; None where it gives none.
        source: Paper and table.
        settings: What differs from our gated dense nets.
    """

    data: str
    model: str
    quantity: str
    value: float
    spread: float | None
    source: str
    settings: str


_RM = "Rezende and Mohamed 2015, table 2"
_RM_NETS = "maxout nets, z 40, 500,000 updates"
_SNF = "van den Berg et al. 2018, as in FFJORD, table 3"
_SNF_NETS = "gated convolutions, z 64, up to 2000 epochs"
_IAF = "Kingma et al. 2016, table 1"
_IAF_NETS = "ResNet, z 32"

#: Rows that were read in the papers themselves, or in the paper named after "as in".
PUBLISHED: tuple[Published, ...] = (
    *(
        Published("static MNIST", f"DLGM, planar {k}" if k else "DLGM, diagonal", "NLL(200)", value,
                  None, _RM, _RM_NETS)
        for k, value in ((0, 89.9), (10, 87.5), (20, 86.5), (40, 85.7), (80, 85.1))
    ),
    *(
        Published("static MNIST", model, "-ELBO", value, spread, _SNF, _SNF_NETS)
        for model, value, spread in (
            ("VAE", 86.55, 0.06), ("Planar", 86.06, 0.31), ("IAF", 84.20, 0.17),
            ("O-SNF", 83.32, 0.06),
        )
    ),
    *(
        Published("Frey faces", model, "-ELBO bits/dim", value, spread, _SNF, _SNF_NETS)
        for model, value, spread in (
            ("VAE", 4.53, 0.02), ("Planar", 4.40, 0.06), ("IAF", 4.47, 0.05), ("T-SNF", 4.45, 0.04),
        )
    ),
    *(
        Published("dynamic MNIST", model, quantity, value, spread, _IAF, _IAF_NETS)
        for model, quantity, value, spread in (
            ("Diagonal covariance", "-ELBO", 84.08, 0.10),
            ("Diagonal covariance", "NLL(128)", 81.08, 0.08),
            ("IAF depth 2, width 320", "-ELBO", 82.02, 0.08),
            ("IAF depth 2, width 320", "NLL(128)", 79.77, 0.06),
            ("IAF depth 8, width 1920", "-ELBO", 80.80, 0.07),
            ("IAF depth 8, width 1920", "NLL(128)", 79.10, 0.07),
        )
    ),
)  # fmt: skip


#: Data sets by their content: shape, images of train, valid and test, and the sums of the pixels of
#: the first image of train and test. Grey MNIST is meant to be binarised anew each time.
_CONTENT: dict[tuple[tuple[int, ...], tuple[int, int, int], tuple[int, int]], str] = {
    ((28, 28), (50000, 10000, 10000), (123, 147)): "static MNIST",
    ((28, 28), (50000, 10000, 10000), (27525, 18454)): "dynamic MNIST",
    ((28, 20), (1565, 200, 200), (86676, 87238)): "Frey faces",
}
#: What the papers did with each: preparation of the pixels, likelihood, shape, test images.
_SETTING: dict[str, tuple[str, str, tuple[int, ...], int | None]] = {
    "static MNIST": ("as-is", "bernoulli", (28, 28), 10000),
    "dynamic MNIST": ("dynamic", "bernoulli", (28, 28), 10000),
    "Frey faces": ("as-is", "categorical", (28, 20), None),  # the papers shuffled in three ways
}
#: Names that a data set goes by; those of its imitations, such as KMNIST or Fashion-MNIST, do not
#: count.
_NAMES = {"MNIST": r"(?<![a-z])mnist", "Frey faces": r"(?<![a-z])frey"}
_IMITATIONS = r"fashion|not.?mnist|sign|medical|omniglot|sub(set|sample)|thresh|rotated|noisy"
_COUNTS = re.compile(r"(\d+)/(\d+)/(\d+)")


def published_for(
    shape: tuple[int, ...],
    preparation: str,
    likelihood: str = "",
    data: ImageData | str = "",
) -> tuple[Published, ...]:
    """Return the rows of the data set that a run was made on; none unless all of it matches.

    The data are known by their content (numbers of images, sums of pixels), or else by a name such
    as ``mnist``; shape, preparation and likelihood have to be those of the papers too. Images that
    only look like MNIST get no rows.

    Args:
        shape: Of an image.
        preparation: Kind of the :class:`~pyro_nfvi.vae._pixels.Preparation`.
        likelihood: Name of the likelihood.
        data: The images, or how a run describes them (``"mnist.npz, (28, 28), 50000/..."``).

    Example:
        >>> name = "mnist_static.npz, (28, 28), 50000/10000/10000"
        >>> [row.value for row in published_for((28, 28), "as-is", "bernoulli", name)][:2]
        [89.9, 87.5]
        >>> published_for((28, 28), "as-is", "bernoulli", "fashion.npz")
        ()
    """
    found = "" if isinstance(data, str) else _by_content(data)
    for name, setting in _SETTING.items():
        if setting[:3] != (preparation, likelihood, tuple(shape)):
            continue
        if found == name or (not found and _named(data, name, setting[3])):
            return tuple(row for row in PUBLISHED if row.data == name)
    return ()


def _by_content(data: ImageData) -> str:
    counts = (len(data.train), len(data.valid), len(data.test))
    first, last = (round(float(part[0].double().sum())) for part in (data.train, data.test))
    return _CONTENT.get((data.shape, counts, (first, last)), "")


def _named(data: ImageData | str, name: str, test: int | None) -> bool:
    """Tell whether data are called so, and have the right number of test images where known."""
    text = (data if isinstance(data, str) else str(data)).lower()
    pattern = next(pattern for key, pattern in _NAMES.items() if key in name)
    if not re.search(pattern, text) or re.search(_IMITATIONS, text):
        return False
    counts = _COUNTS.search(text)
    return test is None or counts is None or int(counts[3]) == test


def in_columns(one: Published) -> dict[str, str]:
    """Put a row's number under its own quantity and unit; the other columns are empty.

    Example:
        >>> frey = published_for((28, 20), "as-is", "categorical", "freyfaces.npz")[0]
        >>> in_columns(frey)
        {'-ELBO': '', 'NLL': '', '-ELBO bits/dim': '4.53 ± 0.02'}
    """
    number = f"{one.value:.2f}" + ("" if one.spread is None else f" ± {one.spread:.2f}")
    columns = {"-ELBO": "", "NLL": "", "-ELBO bits/dim": ""}
    columns["NLL" if one.quantity.startswith("NLL") else one.quantity] = number
    return columns
