"""Networks that make a few numbers of a data set."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyro_nfvi.amortised._observed_layout import ObservedLayout
from pyro_nfvi.amortised._recipe import NETWORKS
from pyro_nfvi.errors import OptionError, ShapeError

#: Names of the summary networks.
SUMMARIES = ("set", "series")


class Scaling(nn.Module):
    r"""Data in units of their spread over simulations, far ones logarithmically.

    .. math:: u = (x - m) / s, \quad u \mapsto \operatorname{sign}(u)\,(c + \log(1 + |u| - c))
        \text{ for } |u| > c

    Medians and quantiles, which tails of the simulator do not move. Numbers that are the same in
    all simulations become 0.

    Args:
        groups: Number of each entry's group, ``(X,)``; entries of a group share their scale.
    """

    def __init__(self, groups: Tensor) -> None:
        super().__init__()
        count = len(groups)
        self.register_buffer("groups", groups)
        self.register_buffer("loc", torch.zeros(count))
        self.register_buffer("scale", torch.ones(count))
        self.groups: Tensor
        self.loc: Tensor
        self.scale: Tensor

    @torch.no_grad()
    def set_from(self, x: Tensor) -> None:
        """Take location and scale from simulations ``(n, X)``."""
        loc, scale = torch.empty_like(x[0]), torch.empty_like(x[0])
        levels = torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64)  # one sd of a normal
        for group in self.groups.unique().tolist():
            member = self.groups == group
            values = x[:, member].double().reshape(-1)
            values = values[:: max(1, len(values) // 1_000_000)]  # as many as quantile takes
            low, middle, high = torch.quantile(values, levels.to(values.device))
            spread = (high - low) / 2
            # Mostly one value, such as counts that are nearly always 0.
            spread = spread if spread > 0 else values.std()
            loc[member] = middle.to(x)
            scale[member] = spread.to(x) if spread > 0 else torch.ones_like(x[0, 0])
        self.loc, self.scale = loc, scale

    def forward(self, x: Tensor) -> Tensor:
        """Scale data ``(*b, X)``."""
        u, edge = (x - self.loc) / self.scale, NETWORKS.linear
        far = edge + torch.log1p((u.abs() - edge).clamp_min(0))
        return torch.where(u.abs() <= edge, u, u.sign() * far)

    def ladj(self, x: Tensor) -> Tensor:
        """Log-determinant of the scaling at data ``(*b, X)``: ``(*b,)``, in nats."""
        far = (((x - self.loc) / self.scale).abs() - NETWORKS.linear).clamp_min(0)
        return -(self.scale.log() + torch.log1p(far)).sum(-1)


class SetNetwork(nn.Module):
    r"""Summary of a set of rows, whatever their order: :math:`\rho(\frac1n\sum_i\phi(x_i))`.

    Args:
        rows: Number of rows.
        width: Numbers of a row.
        outputs: Numbers of the summary.

    Source: Zaheer et al. 2017, arXiv:1703.06114.
    """

    def __init__(self, rows: int, width: int, outputs: int) -> None:
        super().__init__()
        self.rows, self.width = rows, width
        hidden = NETWORKS.width
        self.each = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden),
        )  # fmt: skip
        self.together = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Summarise ``(*b, rows * width)``: ``(*b, outputs)``."""
        each = self.each(x.reshape(*x.shape[:-1], self.rows, self.width))
        found: Tensor = self.together(each.mean(-2))
        return found


class SeriesNetwork(nn.Module):
    """Summary of a series by dilated causal convolutions, over all of its past at the end.

    Each layer doubles the distance of its taps and adds to what it got; the last step and the mean
    over steps are summarised.

    Args:
        steps: Length of the series.
        width: Numbers of a step.
        outputs: Numbers of the summary.

    Source: van den Oord et al. 2016, arXiv:1609.03499, section 2.1.
    """

    def __init__(self, steps: int, width: int, outputs: int) -> None:
        super().__init__()
        self.steps, self.width = steps, width
        hidden, taps = NETWORKS.width // 2, NETWORKS.taps
        depth = max(1, math.ceil(math.log2(1 + (steps - 1) / (taps - 1))))
        self.enter = nn.Conv1d(width, hidden, 1)
        self.layers = nn.ModuleList(
            nn.Conv1d(hidden, hidden, taps, dilation=2**i) for i in range(depth)
        )
        self.leave = nn.Sequential(
            nn.Linear(2 * hidden, NETWORKS.width), nn.ReLU(), nn.Linear(NETWORKS.width, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Summarise ``(*b, steps * width)``: ``(*b, outputs)``."""
        batch = x.shape[:-1]
        h = self.enter(x.reshape(-1, self.steps, self.width).transpose(1, 2))
        for i, layer in enumerate(self.layers):
            past = (NETWORKS.taps - 1) * 2**i  # zeros in front, so that no step sees later ones
            h = h + torch.relu(layer(nn.functional.pad(h, (past, 0))))
        found: Tensor = self.leave(torch.cat([h[..., -1], h.mean(-1)], -1))
        return found.reshape(*batch, -1)


class OwnNetwork(nn.Module):
    """A network of the user's, given data in the shape of their site.

    Args:
        network: Maps ``(n, *shape)`` to ``(n, K)``, or to ``(n,)``; several sites come as one
            vector ``(n, X)``.
        shape: Shape of a data set.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.shape = network, shape

    def forward(self, x: Tensor) -> Tensor:
        """Summarise ``(*b, X)``: ``(*b, K)``."""
        batch = x.shape[:-1]
        found: Tensor = self.network(x.reshape(-1, *self.shape))
        return found.reshape(*batch, -1)


def make_summary(
    summary: str | nn.Module | None, layout: ObservedLayout, dim: int
) -> tuple[Scaling, nn.Module | None, int]:
    """Make the scaling of data, the network, and the number of its outputs.

    Args:
        summary: A name of :data:`SUMMARIES`, a network, or None for the data themselves.
        layout: The data.
        dim: D, the number of latents.

    Raises:
        OptionError: An unknown name, or data that are no set or series.
        ShapeError: The user's network returns something of another shape.
    """
    sizes = [math.prod(shape) for shape in layout.shapes.values()]
    outputs = max(NETWORKS.fewest_summaries, NETWORKS.summary_per_latent * dim)
    if summary is None:
        return Scaling(torch.arange(layout.dim)), None, layout.dim
    if isinstance(summary, nn.Module):
        groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        shape = next(iter(layout.shapes.values())) if len(sizes) == 1 else (layout.dim,)
        own = OwnNetwork(summary, shape)
        return Scaling(groups), own, _outputs(own, layout.dim)
    if summary not in SUMMARIES:
        raise OptionError(
            f"summary is 'set', 'series', a network (torch.nn.Module) or None; got {summary!r}."
        )
    lengths = {shape[0] if shape else 0 for shape in layout.shapes.values()}
    if len(layout.shapes) != 1 or 0 in lengths:
        listed = ", ".join(f"{name!r} {shape}" for name, shape in layout.shapes.items())
        raise OptionError(
            f"summary={summary!r} needs one observed site whose first axis is that of the rows; "
            f"observed are {listed}. Stack them in one site, or pass a network of your own, which "
            "gets all as one vector."
        )
    (rows,) = lengths
    width = layout.dim // rows
    scaling = Scaling(torch.arange(width).repeat(rows))
    kind = SetNetwork if summary == "set" else SeriesNetwork
    return scaling, kind(rows, width, outputs), outputs


@torch.no_grad()
def _outputs(network: nn.Module, size: int) -> int:
    try:
        found = network(torch.zeros(2, size))
    except Exception as error:
        raise ShapeError(
            f"The summary network raised {type(error).__name__}: {error}, for two data sets. It "
            "takes (n, *shape of the observed site) and returns (n, K)."
        ) from error
    if found.dim() != 2 or len(found) != 2:
        raise ShapeError(
            "The summary network needs to return a row of numbers for each data set, (n, K); got "
            f"{tuple(found.shape)} for two."
        )
    return int(found.shape[-1])
