"""``compare``: fits of one posterior, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._files.fingerprint import fingerprint
from pyro_nfvi._optional_import import process_kept
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._random import stream
from pyro_nfvi.errors import MissingPackageError, ModelError, NFVIError, OptionError
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._plate_fit import PlateFit
from pyro_nfvi.infer._recipe import COMPARISON


@dataclass(frozen=True)
class ComparedFit:
    """One line of a comparison.

    Attributes:
        name: Name of the fit.
        guide: Its guide, with the flow.
        elbo: Evidence lower bound in nats, with standard error ``elbo_se``.
        log_evidence: Estimate by importance weights, in nats, with ``log_evidence_se``; NaN where
            weights say nothing.
        khat: Shape of the tail of the weights; NaN where they say nothing.
        tail: Reading of it, in words.
        verdict: The verdict's word.
        seconds: Time of the whole call, and of its part from the first step to the last one,
            ``training_seconds``, without searches and checks.
        steps: Steps of training.
        w1: Sliced 1-Wasserstein distance from the reference, in standard deviations of its
            coordinates; NaN without a reference.
    """

    name: str
    guide: str
    elbo: float
    elbo_se: float
    log_evidence: float
    log_evidence_se: float
    khat: float
    tail: str
    verdict: str
    seconds: float
    training_seconds: float
    steps: int
    w1: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """Fits side by side; made by :func:`compare`.

    Attributes:
        rows: One for each fit, in the order that was given.
        w1_floor: Distance between two halves of the reference, below which ``w1`` is noise; NaN
            without a reference.
    """

    rows: tuple[ComparedFit, ...]
    w1_floor: float = math.nan

    def __getitem__(self, name: str) -> ComparedFit:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r} is none of {[row.name for row in self.rows]}")

    def __iter__(self) -> Iterator[ComparedFit]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def _table(self) -> tuple[list[str], list[list[str]]]:
        head = ["fit", "guide", "ELBO", "log evidence", "k-hat", "seconds", "verdict"]
        known = any(not math.isnan(row.w1) for row in self.rows)
        lines = []
        for row in self.rows:
            line = [
                row.name,
                row.guide,
                f"{row.elbo:.2f} ± {row.elbo_se:.2f}",
                "" if math.isnan(row.log_evidence)
                else f"{row.log_evidence:.2f} ± {row.log_evidence_se:.2f}",
                row.tail.removeprefix("k-hat "),
                f"{row.seconds:.1f}",
                row.verdict,
            ]  # fmt: skip
            lines.append([*line, f"{row.w1:.3f}"] if known else line)
        return [*head, "W1"] if known else head, lines

    def __str__(self) -> str:
        head, lines = self._table()
        widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
            for line in [head, *lines]
        ]
        if not math.isnan(self.w1_floor):
            text.append(f"W1 between halves of the reference: {self.w1_floor:.3f}")
        return "\n".join(text)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(f'{row.name}: {row.verdict}' for row in self.rows)})"

    def _repr_html_(self) -> str:
        from pyro_nfvi import _html

        head, lines = self._table()
        floor = ""
        if not math.isnan(self.w1_floor):
            floor = _html.text(f"W1 between halves of the reference: {self.w1_floor:.3f}")
        return _html.card(f"Comparison of {len(self)} fits", _html.table(head, lines), floor)

    def to_pandas(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``, indexed by name.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        try:
            with process_kept():
                import pandas
        except ImportError as error:
            raise MissingPackageError(
                "to_pandas() needs pandas: pip install pandas. Without it, the rows are "
                "dataclasses: [dataclasses.asdict(row) for row in comparison]."
            ) from error
        return pandas.DataFrame([asdict(row) for row in self.rows]).set_index("name")


def compare(fits: Mapping[str, Fit | PlateFit], reference: Any = None) -> Comparison:
    r"""Put fits of one posterior side by side: bound, evidence, k-hat, verdict, time, distance.

    .. math:: W_1 = \mathbb{E}_u \int |F_u(t) - G_u(t)|\, dt

    for directions u uniform on the sphere, over unconstrained coordinates in the reference's
    standard deviations.

    Args:
        fits: Fits by name, of one model and the same data. They may differ in all options:
            ``{"flow": NFVI(model).run(y), "laplace": NFVI(model, "laplace").run(y)}``.
        reference: Draws to measure distances from: by site, ``(N, *shape)`` each or
            ``(chains, draws, *shape)``; the samples of ``pyro.infer.MCMC``; a fit, whose draws are
            reweighted where they can be; a run of :meth:`Fit.mcmc`; or ArviZ's ``InferenceData``.

    Cost:
        Some rows of the model for each fit, to see that it is the same model; with a reference 200
        sorts of up to 2000 draws.

    Raises:
        OptionError: No fits, names that are no strings, something else than a fit, or a reference
            that lacks a site.
        ModelError: Fits of different models, or of other data.

    Source: sliced distances: Bonneel et al. 2015, Journal of Mathematical Imaging and Vision 51.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import NFVI, compare
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> y = torch.tensor(1.0)
        >>> fits = {
        ...     name: NFVI(model, name, explore="off", seed=0, progress=False).run(y)
        ...     for name in ("laplace", "dadvi")
        ... }
        >>> [row.verdict for row in compare(fits)]
        ['good', 'good']
    """
    _check_fits(fits)
    _check_same(fits)
    drawn = None if reference is None else _standardised(fits, reference)
    rows = tuple(_row(name, fit, drawn) for name, fit in fits.items())
    return Comparison(rows, math.nan if drawn is None else drawn.floor())


def _check_fits(fits: Any) -> None:
    if not isinstance(fits, Mapping):
        raise OptionError(
            f"compare takes fits by name, such as {{'flow': fit}}; got {type(fits).__name__}."
        )
    if not fits:
        raise OptionError("compare takes one fit or more, by name; got an empty dict.")
    for name, fit in fits.items():
        if not isinstance(name, str):
            raise OptionError(f"compare takes names that are strings; got {name!r}.")
        if not isinstance(fit, Fit | PlateFit):
            raise OptionError(
                f"compare takes fits, of NFVI.run or load; {name!r} is a {type(fit).__name__}."
            )


def _check_same(fits: Mapping[str, Fit | PlateFit]) -> None:
    """Refuse fits of different latents, data, or densities."""
    (first, one), *others = fits.items()
    for name, fit in others:
        difference = None
        if isinstance(one, Fit) and isinstance(fit, Fit):
            difference = one.latent.difference(fit.latent)
        elif set(one.latent.sites) != set(fit.latent.sites):
            difference = f"{sorted(one.latent.sites)} and {sorted(fit.latent.sites)}"
        if difference is not None:
            raise ModelError(
                f"The fits {first!r} and {name!r} are of different models: {difference}."
            )
        if one.log_joint is None or fit.log_joint is None:
            continue
        data = [fingerprint(each.args, each.kwargs) for each in (one.log_joint, fit.log_joint)]
        if data[0] != data[1]:
            raise ModelError(
                f"The fits {first!r} and {name!r} are of other data: the arguments of run() "
                "differ. Bounds and evidences of different data cannot be compared."
            )
        _check_density(first, one, name, fit)


def _check_density(first: str, one: Any, name: str, other: Any) -> None:
    """Refuse a fit whose draws the other's model scores otherwise."""
    if not (isinstance(one, Fit) and isinstance(other, Fit)) or one.params or other.params:
        return  # whose parameters are their own
    if not (one.draws.exact and other.draws.exact) or one.require_model().subsampled:
        return
    ok = torch.isfinite(other.draws.log_p)
    z, log_p = other.draws.z[ok][: COMPARISON.rows], other.draws.log_p[ok][: COMPARISON.rows]
    with one.model_scope(), torch.no_grad():
        again = one.require_model()(z)
    slack = COMPARISON.rounding * (1 + log_p.abs())
    off = (again - log_p).abs() > slack
    if bool(off.any()):
        row = int(off.nonzero()[0])
        raise ModelError(
            f"The fits {first!r} and {name!r} are of different models: a draw has the log joint "
            f"{float(log_p[row]):.6g} nats under the second and {float(again[row]):.6g} under the "
            "first. Fit one model with one set of data."
        )


def _row(name: str, fit: Fit | PlateFit, drawn: _Reference | None) -> ComparedFit:
    settings, timing = fit.training.settings, fit.timing
    try:
        evidence, error = fit.log_evidence()
    except (NFVIError, ArithmeticError):
        evidence = error = math.nan
    return ComparedFit(
        name=name,
        guide=f"{type(fit.guide).__name__}({settings.flow})",
        elbo=fit.elbo,
        elbo_se=fit.elbo_se,
        log_evidence=evidence,
        log_evidence_se=error,
        khat=fit.khat,
        tail=str(fit.tail),
        verdict=str(fit.verdict),
        seconds=timing.total,
        training_seconds=timing.training,
        steps=timing.steps,
        w1=math.nan if drawn is None else drawn.distance(fit.draws.z),
    )


@dataclass(frozen=True)
class _Reference:
    """Draws of a reference ``(N, D)`` in units of their standard deviations."""

    z: Tensor
    mean: Tensor
    sd: Tensor

    def distance(self, z: Tensor) -> float:
        if z.shape[-1] != len(self.mean):  # rows of plates, of which a fit may hold a part
            return math.nan
        z = z[torch.isfinite(z).all(-1)].double().cpu()
        return sliced_wasserstein((z - self.mean) / self.sd, self.z)

    def floor(self) -> float:
        order = torch.randperm(len(self.z), generator=stream(0, "halves"))
        half = len(self.z) // 2
        return sliced_wasserstein(self.z[order[:half]], self.z[order[half:]])


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    """Return the 1-Wasserstein distance averaged over directions, of draws ``(N, D)``.

    Example:
        >>> a = torch.linspace(0, 1, 100).unsqueeze(-1)
        >>> round(sliced_wasserstein(a, a + 0.5), 6)
        0.5
    """
    noise = stream(0, "directions")
    directions = torch.randn(a.shape[-1], COMPARISON.directions, generator=noise).double()
    directions = directions / directions.norm(dim=0)
    count = min(len(a), len(b), COMPARISON.draws)
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x, y = ((part.double() @ directions).quantile(levels, 0) for part in (a, b))
    return float((x - y).abs().mean())


def _standardised(fits: Mapping[str, Fit | PlateFit], reference: Any) -> _Reference:
    latent = next(iter(fits.values())).latent
    z = _vectors(latent, reference).double().cpu()
    if len(z) < 2 or not bool(torch.isfinite(z).all()):
        raise OptionError(
            f"The reference has {len(z)} draws"
            f"{'' if bool(torch.isfinite(z).all()) else ', not all of them finite'}; two finite "
            "ones are needed."
        )
    rows = torch.linspace(0, len(z) - 1, min(len(z), COMPARISON.draws)).long()
    z = z[rows]
    mean, sd = z.mean(0), z.std(0)
    sd = torch.where(sd > 0, sd, torch.ones_like(sd))
    return _Reference((z - mean) / sd, mean, sd)


def _vectors(latent: LatentSpace, reference: Any) -> Tensor:
    """Return the draws of a reference as unconstrained vectors ``(N, D)``."""
    if isinstance(reference, Fit):
        if reference.tail.reliable:
            return _packed(latent, reference.resample(COMPARISON.draws, seed=0))
        return reference.draws.z
    if isinstance(reference, PlateFit):
        return reference.draws.z
    held = getattr(reference, "samples", reference)  # of an MCMCRun
    posterior = getattr(held, "posterior", None)
    if posterior is not None:  # ArviZ's
        held = {str(name): posterior[name].values for name in posterior.data_vars}
    if not isinstance(held, Mapping):
        raise OptionError(
            "The reference is draws by site, a fit, a run of mcmc(), or ArviZ's InferenceData; "
            f"got {type(reference).__name__}."
        )
    return _packed(latent, held)


def _packed(latent: LatentSpace, draws: Mapping[str, Any]) -> Tensor:
    values = {}
    for name, site in latent.sites.items():
        if name not in draws:
            raise OptionError(
                f"The reference has no draws of the site {name!r}; it has {sorted(draws)}."
            )
        value = torch.as_tensor(draws[name]).to(latent.init_loc)
        leading = value.shape[: value.dim() - len(site.shape)]
        if tuple(value.shape[len(leading) :]) != tuple(site.shape) or len(leading) not in (1, 2):
            raise OptionError(
                f"The reference's draws of {name!r} are {tuple(value.shape)}; expected (N, *s) or "
                f"(chains, draws, *s) with s = {tuple(site.shape)}."
            )
        values[name] = value.reshape(-1, *site.shape)
    return latent.pack(values)
