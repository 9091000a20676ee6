"""Published numbers to stand beside ours, each with its quantity and source."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PUBLISHED", "Published", "published_for"]


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


def published_for(shape: tuple[int, ...], preparation: str) -> tuple[Published, ...]:
    """Return the rows of the data set that images of this shape and preparation look like.

    Example:
        >>> [row.value for row in published_for((28, 28), "as-is")][:2]
        [89.9, 87.5]
    """
    names: dict[tuple[tuple[int, ...], str], str] = {
        ((28, 28), "as-is"): "static MNIST",
        ((28, 28), "static"): "static MNIST",
        ((28, 28), "dynamic"): "dynamic MNIST",
    }
    name = "Frey faces" if shape == (28, 20) else names.get((shape, preparation), "")
    return tuple(row for row in PUBLISHED if row.data == name)
