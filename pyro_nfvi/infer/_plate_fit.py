"""``PlateFit``: the result of a fit whose latents stand in the rows of plates."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.plate_layout import as_rows
from pyro_nfvi._pyro_model.pyro_state import takes_turn, turn
from pyro_nfvi._random import seeded, stream
from pyro_nfvi._timing import Timing
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.diagnostics._importance import log_evidence
from pyro_nfvi.diagnostics._khat import TailReading
from pyro_nfvi.diagnostics._verdict import Verdict
from pyro_nfvi.errors import ModelError, NotSetUpError, OptionError
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.infer._checks.row_weights import RowGaps, inside, row_gaps, top_plates
from pyro_nfvi.infer._model_parameters import ModelParams
from pyro_nfvi.infer._recipe import PLATES
from pyro_nfvi.infer._summary import Summary
from pyro_nfvi.infer._training import Training
from pyro_nfvi.infer._weighted_draws import WeighedDraws

if TYPE_CHECKING:
    from pyro_nfvi._pyro_model.plate_layout import PlateLayout
    from pyro_nfvi.infer._plate_predict import RowPlan
    from pyro_nfvi.infer._row_densities import RowDensities

#: Rows by plate: numbers, a slice, or one number.
Rows = Mapping[str, "Tensor | Sequence[int] | slice | int"]


@dataclass(frozen=True, eq=False, repr=False)
class PlateFit:
    r"""A fitted posterior of globals and of the rows of plates.

    Made by :meth:`NFVI.run` where latents stand in plates that subsample, or where most of many do.
    Draws of all rows are made on demand, for the rows that are asked for; the draws that a fit
    holds are those of the globals. All densities are in nats.

    Attributes:
        guide: The trained guide.
        draws: Draws of the globals. Their ``log_p`` is that of data and globals, with the rows
            integrated out by draws that are made anew for each; ``exact`` is False where that was
            not possible on all rows.
        rows: Gap and k-hat of some rows of each plate.
        bound: Evidence lower bound in nats, and ``bound_se``, its standard error.
        rows_se: Standard error of the integrals over rows, which all ``log_p`` share, in nats.
        training: How the fit came about.
        params: Values of the model's own ``pyro.param`` parameters after training.
        log_joint: The model's log joint at the layout of a mini-batch; None for a fit that was
            loaded without the model.
        seed: Seed of the fit.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import NFVI
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("groups", len(y), subsample_size=16) as rows:
        ...         place = pyro.sample("place", dist.Normal(mean, 1.0))
        ...         pyro.sample("y", dist.Normal(place, 1.0), obs=y[rows])
        >>> y = torch.randn(64) + 2
        >>> fit = NFVI(model, max_steps=100, seed=0, progress=False).run(y)
        >>> fit.sample(100, rows={"groups": [0, 63]}, seed=0)["place"].shape
        torch.Size([100, 2])
    """

    guide: AutoPlateFlow
    draws: WeighedDraws
    rows: tuple[RowGaps, ...]
    bound: float
    bound_se: float
    rows_se: float
    training: Training
    params: TensorDict = field(default_factory=dict)
    log_joint: LogJoint | None = None
    seed: int = 0
    _params: ModelParams = field(default_factory=ModelParams)

    # ------------------------------------------------------------------------- what it says

    @property
    def latent(self) -> LatentSpace:
        """The latent sites of all rows as one vector."""
        return self.guide.latent

    @property
    def plates(self) -> dict[str, int]:
        """Number of rows of each plate with latents."""
        return dict(self.guide.layout.sizes)

    @property
    def globals(self) -> tuple[str, ...]:
        """Names of the latent sites outside of plates."""
        return next((b.sites for b in self.guide.layout.blocks if not b.plates), ())

    @property
    def model(self) -> Callable[..., Any] | None:
        """The model, or None for a fit that was loaded without it."""
        return None if self.log_joint is None else self.log_joint.model

    @property
    def losses(self) -> Tensor:
        """Negative bound of each step, in nats: of its mini-batch, counted for all rows."""
        return self.training.losses

    @property
    def elbo(self) -> float:
        """Evidence lower bound of globals and rows, in nats."""
        return self.bound

    @property
    def elbo_se(self) -> float:
        """Standard error of ``elbo``, in nats."""
        return self.bound_se

    @property
    def khat(self) -> float:
        """Shape of the tail of the weights of the globals; NaN where they could not be weighed."""
        return self.draws.quality()[0]

    @property
    def tail(self) -> TailReading:
        """Reading of k-hat."""
        return self.draws.tail()

    @property
    def ess(self) -> float:
        """Effective number of the reweighted draws of the globals."""
        return self.draws.quality()[1]

    @property
    def engine(self) -> str:
        """Engine that ran the steps: ``"compiled"``, or ``"eager"``, ordinary PyTorch."""
        return self.training.engine

    @property
    def engine_reason(self) -> str:
        """Reason for the choice of that engine."""
        return self.training.engine_reason

    @property
    def timing(self) -> Timing:
        """Seconds of the call that made the fit, part by part."""
        return self.training.timing

    @property
    def why_stopped(self) -> StopReason:
        """Reason for which training ended: one word, with the sentence in ``.detail``."""
        return self.training.why_stopped

    @cached_property
    def verdict(self) -> Verdict:
        """Trust in the fit: a word, with ``.reasons`` and ``.next_step``.

        From the importance weights of the globals on rows that are drawn anew, and from the rows
        whose gap or k-hat is large, which are named.
        """
        from pyro_nfvi.infer._plate_verdict import verdict

        return verdict(self)

    @property
    def report(self) -> str:
        """Account of the fit in lines to read: the guide, its training, and its quality."""
        from pyro_nfvi.infer._plate_verdict import report

        return report(self)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{size} {plate}" for plate, size in self.plates.items())
        return (
            f"PlateFit({self.latent.dim} latents, {sizes}, elbo {self.elbo:.2f} ± "
            f"{self.elbo_se:.2f} nats, {len(self.losses)} steps, {self.why_stopped})"
        )

    def _repr_html_(self) -> str:
        from pyro_nfvi import _html

        verdict = self.verdict
        sizes = ", ".join(f"{size} {plate}" for plate, size in self.plates.items())
        rows = [
            ("latents", f"{self.latent.dim}, in {sizes}"),
            ("ELBO", f"{self.elbo:.3f} ± {self.elbo_se:.3f} nats"),
            ("training", f"{len(self.losses)} steps, {self.why_stopped}"),
            ("time", f"{self.timing.total:.1f} s"),
        ]
        shown = _html.verdict(verdict, verdict.reasons, verdict.next_step)
        return _html.card("PlateFit", shown, _html.table((), rows))

    def log_evidence(self) -> tuple[float, float]:
        """Estimate the log evidence: ``(value, standard error)``, in nats.

        Raises:
            ModelError: The globals could not be weighed on all rows.
        """
        if self.draws.smoothed() is None:
            raise ModelError(
                "The evidence cannot be estimated: the globals were not weighed on all rows. "
                "fit.elbo is a bound of it."
            )
        value, error = log_evidence(self.draws.log_w)
        return value, math.hypot(error, self.rows_se)

    def row_gaps(self, plate: str, rows: Any = None) -> RowGaps:
        """Examine rows of a plate: the gap of their evidence, and k-hat of their weights.

        Args:
            plate: The plate.
            rows: Numbers of the rows; by default some drawn at random.

        Cost:
            A thousand draws of each row, scored by the model.

        Raises:
            NotSetUpError: The fit was loaded without its model.
            ModelError: The log joint is no sum over the rows of the plate.
            OptionError: There is no such plate, or no such row.
        """
        index = None if rows is None else self._rows({plate: rows})[plate]
        self._rows({plate: slice(0, 1)})
        with self.model_scope():
            return row_gaps(self.guide, self.require_model(), plate, self.seed, rows=index)

    # ------------------------------------------------------------------------ what it gives

    @takes_turn
    def sample(
        self, num_samples: int = 1000, *, rows: Rows | None = None, seed: int | None = None
    ) -> TensorDict:
        """Draw the latent sites: globals, and the rows that are asked for.

        Args:
            num_samples: Number of draws.
            rows: For some plates the rows: numbers, a slice, or one number. Of plates that are not
                named all rows are drawn; with ``rows={}`` the globals alone.
            seed: Makes the draws repeatable; None draws a seed. The globals of a seed are the
                same whatever the rows, so that rows of several calls belong together.

        Returns:
            Each site's draws ``(num_samples, *shape)``, rows in the order that was asked for.

        Cost:
            Linear in the rows that are asked for.

        Raises:
            OptionError: An unknown plate, a row out of range, or more draws than fit into memory.
        """
        num_samples, seed = whole("num_samples", num_samples), seed_number(seed)
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        alone = rows is not None and not rows
        chosen = self._rows({plate: [0] for plate in self.plates} if alone else rows or {})
        layout = self.guide.layout.at(chosen, weighted=False)
        if num_samples * layout.dim > PLATES.most_numbers:
            raise OptionError(
                f"{num_samples} draws of {layout.dim} latents are more than fit into memory. Ask "
                "for some rows, fit.sample(rows={plate: index}), or for fewer draws; "
                "fit.to_arviz(store=path) writes all rows, part by part."
            )
        parts: list[tuple[TensorDict, TensorDict]] = list(self._parts(num_samples, chosen, seed))
        draws = {}
        for site in layout.space.records:
            frames = [f for f in site.cond_indep_stack if f.vectorized]
            if alone and frames:
                continue
            plate = self._cut(chosen)
            axes = [
                f.dim - site.event_dim for f in frames if f.name == plate
            ]  # of the plate along which the parts were cut
            values = [part[site.name] for _, part in parts]
            draws[site.name] = torch.cat(values, axes[0]) if axes else values[0]
        return draws

    def _cut(self, chosen: TensorDict) -> str:
        """Return the plate along which draws are cut into parts: that of most rows."""
        sizes = {p: len(chosen[p]) if p in chosen else n for p, n in self.plates.items()}
        return max(sizes, key=lambda plate: sizes[plate])

    def draw_parts(
        self, num_samples: int, rows: Rows | None, seed: int | None, numbers: int
    ) -> Iterator[tuple[str, TensorDict, TensorDict]]:
        """Draw rows part by part: the plate that is cut, the rows of a part, draws of its sites.

        Args:
            num_samples: Number of draws.
            rows: As of :meth:`sample`.
            seed: Makes the draws repeatable.
            numbers: Most numbers of a part, if a single row has no more.
        """
        num_samples, seed = whole("num_samples", num_samples), seed_number(seed)
        chosen = self._rows(rows or {}, others=True)
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        for part, draws in self._parts(num_samples, chosen, seed, numbers):
            yield self._cut(chosen), part, draws

    def to_arviz(self, **options: Any) -> Any:
        """Convert for ArviZ, with rows along the dimensions of their plates.

        ``num_samples``, ``rows``, ``coords`` (labels of a plate's rows), ``seed``; and
        ``store="draws.nc"`` or ``"draws.zarr"``, which writes the draws of all rows part by part,
        within ``memory`` bytes (1 GB), and opens that.
        """
        from pyro_nfvi.arviz._row_draws import rows_to_arviz

        return rows_to_arviz(self, **options)

    @takes_turn
    def predict(
        self,
        *args: Any,
        num_samples: int = 1000,
        rows: Rows | None = None,
        sites: Sequence[str] | None = None,
        new_rows: Sequence[str] | None = None,
        from_prior: Sequence[str] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> TensorDict:
        """Predict: run the model forward at draws of globals and rows, batch by batch.

        Latents are held, under the trained parameters of the model; observed sites are drawn anew,
        and deterministic ones computed. With data of as many rows the rows are those of the fit.
        With data of another number they are new ones: known by these data, where the plate has an
        encoder; else drawn from their prior given the other latents, if ``from_prior`` says so.

        Args:
            *args: The model's positional arguments; those of the fit if there are none at all.
            num_samples: Number of draws.
            rows: For some plates the rows, of the new ones where there are such; of the others all.
            sites: Sites to return; by default all that were not held.
            new_rows: Plates whose rows are new ones although they are as many as those of the fit.
            from_prior: Latent sites that are drawn from their prior given the other latents.
            seed: Makes predictions repeatable.
            **kwargs: The model's keyword arguments.

        Returns:
            ``(num_samples, *shape)`` each, rows in the order that was asked for.

        Raises:
            NotSetUpError: The fit was loaded without its model.
            ModelError: The arguments are of rows that the fit does not know, or a site cannot be
                drawn.
            OptionError: An unknown plate, row or site.

        Example:
            >>> import pyro, torch
            >>> import pyro.distributions as dist
            >>> from pyro_nfvi import NFVI
            >>> def model(y):
            ...     mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
            ...     with pyro.plate("groups", len(y), subsample_size=8) as rows:
            ...         place = pyro.sample("place", dist.Normal(mean, 1.0))
            ...         pyro.sample("y", dist.Normal(place, 1.0), obs=y[rows])
            >>> fit = NFVI(model, max_steps=50, seed=0, progress=False).run(torch.randn(40) + 2)
            >>> new = fit.predict(torch.zeros(9), from_prior=["place"], num_samples=5, seed=0)
            >>> sorted(new), new["y"].shape
            (['place', 'y'], torch.Size([5, 9]))
        """
        from pyro_nfvi.infer._plate_predict import plan_rows, predict_rows

        log_joint, num_samples = self.require_model(), whole("num_samples", num_samples)
        seed = seed_number(seed)
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        with self.model_scope():
            plan = plan_rows(log_joint, self.guide, args, kwargs, new_rows, from_prior)
        chosen = self._rows(rows or {}, others=True, sizes=plan.sizes)
        keep = {plate: chosen[plate] for plate in rows or {} if plate not in plan.counts}
        chosen |= {plate: torch.arange(plan.sizes[plate]) for plate in keep}
        subsampled = [plate for plate in plan.counts if plate in chosen]
        cut = max(subsampled or chosen, key=lambda plate: len(chosen[plate]))
        size = plan.counts.get(cut, plan.sizes[cut])
        parts = self._parts(num_samples, chosen, seed, cut=cut, size=size, plan=plan)
        with self.model_scope(), seeded(seed, "predict"):
            return predict_rows(log_joint, parts, cut, num_samples, plan, sites, keep)

    @takes_turn
    def log_predictive(
        self,
        *args: Any,
        plate: str | None = None,
        rows: Any = None,
        num_samples: int = 1000,
        new_rows: Sequence[str] | None = None,
        from_prior: Sequence[str] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> RowDensities:
        r"""Score data row by row: the log predictive density of what is observed in each row.

        .. math::
            \log p(\tilde y_r \mid y) = \log \frac1S \sum_s p(\tilde y_r \mid z_{r,s}, g_s),
            \qquad
            \log p(\tilde y_r \mid y) = \log \frac1S \sum_s
            \frac{p(\tilde y_r, z_{r,s} \mid g_s)}{q(z_{r,s} \mid g_s, \tilde y_r)}

        the first at rows of the fit (their latents drawn from it) and at rows that are drawn from
        their prior, the second at new rows of a plate with an encoder, whose latents are
        integrated out by importance sampling. Data that the fit has not seen are held-out data;
        those that it was fitted to flatter it.

        Args:
            *args: The model's positional arguments, as of :meth:`predict`.
            plate: The plate; by default the one that encloses all others.
            rows: The rows; by default all.
            num_samples: Number S of draws.
            new_rows: As of :meth:`predict`.
            from_prior: As of :meth:`predict`.
            seed: Makes the draws repeatable.
            **kwargs: The model's keyword arguments.

        Returns:
            Log densities ``(R,)`` in nats, with their standard errors and effective draws.

        Warns:
            DataWarning: Densities of some rows rest on few draws.

        Raises:
            NotSetUpError: The fit was loaded without its model.
            ModelError: The arguments are of rows that the fit does not know; nothing is observed in
                the plate; or a row's density is no sum.
            OptionError: An unknown plate, row or site.

        Source: Gelman, Hwang and Vehtari 2014, Statistics and Computing 24, arXiv:1307.5928.

        Example:
            >>> import pyro, torch
            >>> import pyro.distributions as dist
            >>> from pyro_nfvi import NFVI
            >>> def model(y):
            ...     mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
            ...     with pyro.plate("groups", len(y), subsample_size=8) as rows:
            ...         place = pyro.sample("place", dist.Normal(mean, 1.0))
            ...         pyro.sample("y", dist.Normal(place, 1.0), obs=y[rows])
            >>> fit = NFVI(model, max_steps=50, seed=0, progress=False).run(torch.zeros(40))
            >>> new = fit.log_predictive(torch.zeros(9), from_prior=["place"], seed=0)
            >>> new.log_density.shape, abs(float(new.log_density[0]) + 1.27) < 0.1
            (torch.Size([9]), True)
        """
        from pyro_nfvi.infer._plate_predict import plan_rows
        from pyro_nfvi.infer._row_densities import row_densities

        num_samples = whole("num_samples", num_samples, 1)
        seed = seed_number(seed)
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        with self.model_scope():
            plan = plan_rows(self.require_model(), self.guide, args, kwargs, new_rows, from_prior)
            plate = self._top_plate() if plate is None else plate
            chosen = self._rows({plate: slice(None) if rows is None else rows}, sizes=plan.sizes)
            return row_densities(
                self.guide, self.require_model(), plan, plate, chosen[plate], num_samples, seed
            )

    def _top_plate(self) -> str:
        tops = top_plates(self.guide.layout)
        if len(tops) > 1:
            raise OptionError(
                f"Rows of {', '.join(map(repr, tops))} enclose no others: name the plate whose "
                f"rows are scored, plate={tops[0]!r}."
            )
        return tops[0]

    def _parts(
        self,
        num_samples: int,
        chosen: TensorDict,
        seed: int,
        numbers: int = PLATES.drawn_numbers,
        *,
        cut: str | None = None,
        size: int | None = None,
        plan: RowPlan | None = None,
    ) -> Iterator[tuple[TensorDict, TensorDict]]:
        """Draw the rows part by part: the rows of each part, and draws of all its sites.

        Globals are the same in all parts. With a plan these are its rows, and the sites those that
        it holds.
        """
        guide, plate = self.guide, self._cut(chosen) if cut is None else cut
        rows = chosen.get(plate, torch.arange(self.plates[plate]))

        def at(rows: TensorDict) -> PlateLayout:
            if plan is not None:
                return plan.layout(guide, rows)
            return guide.layout.at(rows, weighted=False)

        layout = at({**chosen, plate: rows[:1]})
        wide = max(1, layout.dim * num_samples)
        size = max(1, numbers // wide) if size is None else size
        outer = ~inside(layout, plate)
        like = layout.space.init_loc
        noise = stream(seed, "sample", device=like.device)
        eps_out = torch.randn(
            num_samples, int(outer.sum()), dtype=like.dtype, device=like.device, generator=noise
        )
        for start in range(0, len(rows), size):
            part = {**chosen, plate: rows[start : start + size]}
            layout = at(part)
            inner = inside(layout, plate)
            eps = like.new_empty(num_samples, layout.dim)
            eps[:, ~inner] = eps_out
            noise = stream(seed, "sample", plate, start, device=like.device)
            eps[:, inner] = torch.randn(
                num_samples,
                int(inner.sum()),
                dtype=like.dtype,
                device=like.device,
                generator=noise,
            )
            with torch.no_grad(), scoring(guide):
                bound = guide._bind(layout) if plan is None else plan.bound(guide, layout)
                draws = layout.space.constrain(bound.by_rows(eps)[0])[0]
                held = draws if plan is None else plan.held(guide, draws)
            # Outside of the block: a caller that stops early would be left without gradients.
            yield part, held

    def _rows(
        self, rows: Rows, *, others: bool = False, sizes: Mapping[str, int] | None = None
    ) -> TensorDict:
        """Read the rows that a caller asks for; with ``others`` all of plates that are not named.

        ``sizes`` are the numbers of rows of plates, those of the fit by default.

        Raises:
            OptionError: An unknown plate, or a row that it does not have.
        """
        found: TensorDict = {}
        if not isinstance(rows, Mapping):
            raise OptionError(
                f"rows needs a mapping from plates to their rows, such as rows={{'cells': [0]}}; "
                f"got {type(rows).__name__}."
            )
        if others:
            rows = {plate: slice(None) for plate in self.plates} | dict(rows)
        for plate, index in rows.items():
            if plate not in self.plates:
                raise OptionError(
                    f"There is no latent in a plate {plate!r}; the plates are {list(self.plates)}."
                )
            size = (self.plates if sizes is None else sizes)[plate]
            if isinstance(index, slice):
                index = torch.arange(size)[index]
            taken = torch.as_tensor(index) if isinstance(index, bool) else as_rows(plate, index)
            if taken.dtype == torch.bool and taken.shape == (size,):
                taken = taken.nonzero()[:, 0]
            if taken.dim() != 1 or taken.is_floating_point() or taken.dtype == torch.bool:
                raise OptionError(
                    f"The rows of the plate {plate!r} need to be whole numbers, a slice, or a mask "
                    f"of its {size} rows; got {taken.dtype} of shape {tuple(taken.shape)}."
                )
            taken = torch.where(taken < 0, taken + size, taken).long()
            outside = (taken < 0) | (taken >= size)
            if bool(outside.any()):
                wrong = int(as_rows(plate, index)[outside][0])
                raise OptionError(f"The plate {plate!r} has the rows 0 to {size - 1}; got {wrong}.")
            values, counts = taken.unique(return_counts=True)
            if bool((counts > 1).any()):
                raise OptionError(
                    f"The row {int(values[counts > 1][0])} of the plate {plate!r} is named twice."
                )
            found[plate] = taken
        return found

    @takes_turn
    def summary(self, *, rows: Rows | None = None, num_samples: int = 2000) -> Summary:
        """Return mean, sd and quantiles of the globals, and of the rows that are asked for.

        Args:
            rows: For some plates the rows; the globals alone by default.
            num_samples: Number of draws.
        """
        draws = self.sample(num_samples, rows=rows or {}, seed=self.seed)
        if rows:  # plates that are not named have their rows left out
            named = set(rows)
            keep = {
                site.name
                for site in self.latent.records
                if {f.name for f in site.cond_indep_stack if f.vectorized} <= named
            }
            draws = {name: value for name, value in draws.items() if name in keep}
        note = f"{num_samples} draws; {self.tail}, ELBO {self.elbo:.2f} ± {self.elbo_se:.2f} nats"
        summary = Summary.of(draws, torch.zeros(num_samples, dtype=torch.float64), note)
        return self._numbered(summary, rows)

    def _numbered(self, summary: Summary, rows: Rows | None) -> Summary:
        """Name rows by their numbers in the plate, not by their places among those asked for."""
        chosen = self._rows(rows or {})
        sites = self.latent.sites
        named = []
        for row in summary.rows:
            name, bracket, rest = row.name.partition("[")
            site = sites[name]
            places = rest.rstrip("]").split(", ") if bracket else []
            frames = {f.dim: f.name for f in site.cond_indep_stack if f.vectorized}
            batch = len(site.batch_shape)
            for dim, plate in frames.items():
                if plate in chosen and batch + dim < len(places):
                    places[batch + dim] = str(int(chosen[plate][int(places[batch + dim])]))
            label = f"{name}[{', '.join(places)}]" if places else name
            named.append(replace(row, name=label))
        return replace(summary, rows=tuple(named))

    def log_prob(self, values: Mapping[str, Tensor], *, rows: Rows | None = None) -> Tensor:
        """Score constrained values of globals and rows, ``(*b, *site shape)`` each: ``(*b,)``.

        Args:
            values: Values of all sites, of sites in the named plates at the named rows.
            rows: For some plates the rows that the values are of.
        """
        with torch.no_grad():
            return self.guide.log_prob(values, rows=self._rows(rows or {}))

    def resample(self, *_: Any, **__: Any) -> Any:
        """Refuse: rows have no weights of their own.

        Raises:
            ModelError: Always; says what there is.
        """
        raise _not_of_rows("resample")

    def mcmc(self, *_: Any, **__: Any) -> Any:
        """Refuse: chains would have to move all rows at once.

        Raises:
            ModelError: Always; says what there is.
        """
        raise _not_of_rows("mcmc")

    def to_nuts(self, *_: Any, **__: Any) -> Any:
        """Refuse, as :meth:`mcmc` does.

        Raises:
            ModelError: Always; says what there is.
        """
        raise _not_of_rows("to_nuts")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fit to a file, without the data and without the model.

        All of it or nothing: an earlier file of that name survives any failure. Read it with
        ``load(path, model=model, args=...)``. Of an encoder the weights are written: give the net
        again, ``load(..., encoder={plate: net})``.

        Raises:
            FileError: The folder is missing or read-only, the disk is full, or the guide has a flow
                without a name, which no file describes.
        """
        from pyro_nfvi.infer._plate_files import save_rows

        save_rows(self, path)

    # --------------------------------------------------------------------------- in between

    @contextmanager
    def model_scope(self) -> Iterator[None]:
        """Let the model see its trained parameters, and the user's store nothing of it."""
        guard = self.guide.param_guard
        opened = nullcontext() if guard is None else guard.opened()
        with turn(), self._params.scope(), opened:
            yield

    def require_model(self) -> LogJoint:
        """Return the log joint.

        Raises:
            NotSetUpError: The fit was loaded without its model.
        """
        if self.log_joint is None:
            raise NotSetUpError(
                "This fit was loaded without its model: load(path, model=model, args=...)."
            )
        return self.log_joint

    def _sites(self, z: Tensor, others: TensorDict) -> TensorDict:
        """Constrained values of the globals at draws of them, beside others."""
        records, start = [], 0
        for site in self.latent.records:
            if any(frame.vectorized for frame in site.cond_indep_stack):
                continue
            stop = start + site.stop - site.start
            records.append(replace(site, start=start, stop=stop))
            start = stop
        with torch.no_grad():
            values, _ = LatentSpace(tuple(records), z[0]).constrain(z)
        return {**values, **others}

    @property
    def num_bad(self) -> int:
        """Draws of the globals without a finite weight."""
        return self.draws.num_bad

    @property
    def gap(self) -> float:
        """Mean gap of the examined rows, in nats; NaN where none were."""
        gaps = [one.gap for one in self.rows if len(one.gap)]
        return float(torch.cat(gaps).mean()) if gaps else math.nan


def _not_of_rows(name: str) -> ModelError:
    return ModelError(
        f"fit.{name} is not there for a fit of globals and rows. Draws: fit.sample(rows=...), "
        "their quality: fit.verdict, fit.row_gaps(plate). For chains over all latents fit "
        "NFVI(model, guide='gaussian'), the plates not subsampled."
    )
