"""The named flow guides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro_nfvi._typing import Hidden
from pyro_nfvi._validation import whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.guides._auto_flow import AutoFlow


def _formula(name: str, num_flows: int) -> str | None:
    num_flows = whole("num_flows", num_flows, 0)
    return f"{name}*{num_flows}" if num_flows else None


class AutoPlanar(AutoFlow):
    """A chain of planar layers, run as one; see :class:`~pyro_nfvi.flows._planar.PlanarChain`.

    Cheap in D, and good at splitting mass along a few directions. Layers bend along one
    direction each: take 16 or more where the posterior is far from Gaussian.

    Args:
        model: A Pyro model.
        num_flows: Number of layers; 0 gives ``AutoDiagonalNormal``.
        **options: As :class:`AutoFlow`.

    Source: Rezende and Mohamed 2015, arXiv:1505.05770.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import AutoPlanar
        >>> guide = AutoPlanar(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), num_flows=16)
        >>> guide.setup().median()["x"].shape
        torch.Size([])
    """

    def __init__(self, model: Callable[..., Any], num_flows: int = 8, **options: Any) -> None:
        super().__init__(model, _formula("planar", num_flows), **options)


class AutoRadial(AutoFlow):
    """Radial layers; see :class:`pyro_nfvi.flows.Radial`. The weakest family per layer.

    Args:
        model: A Pyro model.
        num_flows: Number of layers; 0 gives ``AutoDiagonalNormal``.
        **options: As :class:`AutoFlow`.

    Source: Rezende and Mohamed 2015, arXiv:1505.05770.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import AutoRadial
        >>> guide = AutoRadial(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
        >>> guide.setup().median()["x"].shape
        torch.Size([])
    """

    def __init__(self, model: Callable[..., Any], num_flows: int = 4, **options: Any) -> None:
        super().__init__(model, _formula("radial", num_flows), **options)


class AutoSylvester(AutoFlow):
    """Sylvester layers; see :class:`pyro_nfvi.flows.Sylvester`. One does the work of M planar.

    Args:
        model: A Pyro model.
        num_flows: Number of layers; 0 gives ``AutoDiagonalNormal``.
        rank: Columns M of each layer's basis; at most D, which caps it. Default min(D, 8).
        kind: ``"qr"``, ``"householder"`` or ``"triangular"``.
        **options: As :class:`AutoFlow`.

    Source: van den Berg et al. 2018, arXiv:1803.05649.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import AutoSylvester
        >>> guide = AutoSylvester(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
        >>> guide.setup().median()["x"].shape
        torch.Size([])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_flows: int = 1,
        rank: int | None = None,
        kind: str = "qr",
        **options: Any,
    ) -> None:
        formula = _formula("sylvester", num_flows)
        if formula is not None:
            options = {"rank": rank, "kind": kind, **options}
        super().__init__(model, formula, **options)


class AutoIAF(AutoFlow):
    """Inverse autoregressive layers in trace order, then reversed, and so on.

    The default choice up to a few hundred latents; see
    :class:`pyro_nfvi.flows.Autoregressive`. With one latent it is a Gaussian.

    Args:
        model: A Pyro model.
        num_flows: Number of layers; 0 gives ``AutoDiagonalNormal``.
        hidden_dim: Hidden width, or several. Default max(32, 2D), at most 512.
        gate: ``"affine"`` or ``"sigmoid"``.
        **options: As :class:`AutoFlow`.

    Source: Kingma et al. 2016, arXiv:1606.04934.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import AutoIAF
        >>> guide = AutoIAF(lambda: pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1)))
        >>> guide.setup().median()["x"].shape
        torch.Size([3])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_flows: int = 2,
        hidden_dim: Hidden = None,
        gate: str = "affine",
        **options: Any,
    ) -> None:
        formula = _formula("iaf", num_flows)
        if formula is not None:
            options = {"hidden_dim": hidden_dim, "gate": gate, **options}
        super().__init__(model, formula, **options)


class AutoCoupling(AutoFlow):
    """Affine coupling layers (RealNVP); see :class:`pyro_nfvi.flows.Coupling`.

    Drawing and scoring a given point both cost one net pass per layer, whatever D.

    Args:
        model: A Pyro model with at least 2 unconstrained coordinates.
        num_flows: Number of layers; 0 gives ``AutoDiagonalNormal``.
        hidden_dim: Hidden width, or several. Default 32 to 128, by D.
        **options: As :class:`AutoFlow`.

    Raises:
        OptionError: The model has one latent coordinate: there is nothing to condition on.

    Source: Dinh et al. 2017, arXiv:1605.08803.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import AutoCoupling
        >>> model = lambda: pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        >>> AutoCoupling(model).setup().median()["x"].shape
        torch.Size([3])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_flows: int = 6,
        hidden_dim: Hidden = None,
        **options: Any,
    ) -> None:
        formula = _formula("realnvp", num_flows)
        if formula is not None:
            options = {"hidden_dim": hidden_dim, **options}
        super().__init__(model, formula, **options)


class AutoSpline(AutoFlow):
    """Rational-quadratic spline layers; see :class:`pyro_nfvi.flows.SplineTransformer`.

    Args:
        model: A Pyro model.
        num_flows: Number of layers; 0 gives ``AutoDiagonalNormal``.
        hidden_dim: Hidden width, or several.
        bins: Bins of each spline.
        scheme: ``"autoregressive"`` (any number of latents; scoring a given point takes D passes)
            or ``"coupling"`` (at least 2; both directions cost the same).
        **options: As :class:`AutoFlow`.

    Source: Durkan et al. 2019, arXiv:1906.04032.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import AutoSpline
        >>> AutoSpline(lambda: pyro.sample("x", dist.Normal(0.0, 1.0))).setup().median()["x"].shape
        torch.Size([])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_flows: int = 2,
        hidden_dim: Hidden = None,
        bins: int = 8,
        scheme: str = "autoregressive",
        **options: Any,
    ) -> None:
        names = {"autoregressive": "nsf-ar", "coupling": "nsf"}
        if scheme not in names:
            raise OptionError(f"scheme needs to be 'autoregressive' or 'coupling'; got {scheme!r}.")
        formula = _formula(names[scheme], num_flows)
        if formula is not None:
            options = {"hidden_dim": hidden_dim, "bins": bins, **options}
        super().__init__(model, formula, **options)
