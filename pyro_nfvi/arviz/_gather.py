"""Collect what each group of the result holds; a group that cannot be made says why."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_nfvi._pyro_model.latent_space import is_discrete
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._user_warning import warn
from pyro_nfvi.arviz._draws import Draws
from pyro_nfvi.arviz._labels import Labels
from pyro_nfvi.arviz._model_view import ModelView
from pyro_nfvi.arviz._recipe import RECIPE
from pyro_nfvi.arviz._tree import Groups
from pyro_nfvi.diagnostics._importance import ess, log_evidence
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.errors import ConversionWarning, OptionError, WeightError
from pyro_nfvi.infer._target import Target

#: What the draws of an approximation are, and what that is for LOO; by whether they are reweighted.
_DRAWS = {
    False: "of the approximation, not corrected by their importance weights (see sample_stats)",
    True: "resampled by Pareto-smoothed importance weights",
}
#: Groups of values of sites, where densities are not.
VALUES = ("posterior", "posterior_predictive", "prior", "prior_predictive", "observed_data")
#: Why a density of the user's own has no groups of its terms.
_ONE_DENSITY = "a Target is one density, without terms of data and prior"
_LOO = {
    False: (
        "az.loo, az.waic and az.compare take these draws for exact ones. Corrected: "
        "pyro_nfvi.arviz.loo_approximate(data), which az.compare takes, or "
        "to_arviz(reweighted=True)"
    ),
    True: "corrected by resampling; az.loo and az.compare may be used as they are",
}


class Gatherer:
    """Fills the groups of one conversion.

    Args:
        draws: Draws of the latent sites.
        view: The model at work, or None.
        reason: Why there is no view of the model.
        asked: Groups that the user asked for by name, which are made whatever their size; None
            for all that fit.
        parts: How many sources there are, whose variables have to fit together.
        prior: Whether the groups of the prior are to be made.
        likelihood: Sites that are data; None for all observed sites and factors in plates.
    """

    def __init__(
        self,
        draws: Draws,
        view: ModelView | None,
        reason: str,
        asked: Collection[str] | None,
        *,
        parts: int = 1,
        prior: bool = True,
        likelihood: Collection[str] | None = None,
    ) -> None:
        self.draws, self.view, self.reason = draws, view, reason
        self.asked, self.parts, self.prior = asked, parts, prior
        self.chains, self.length = next(iter(draws.values.values())).shape[:2]
        self.count = self.chains * self.length
        self.flat = {name: value.flatten(0, 1) for name, value in draws.values.items()}
        self.labels = Labels(view.trace, view.subsample) if view else Labels(None)
        self.groups = Groups(coords=self.labels.coords())
        self.missing: dict[str, str] = {}
        self.likelihood = likelihood
        #: Sentences to warn with.
        self.remarks: list[str] = []
        #: Draws of the discrete sites that are summed out, ``(draws, *shape)``.
        self.discrete: TensorDict = {}

    def run(self, log_p: Tensor | None) -> Groups:
        """Make all groups; ``log_p (chain, draw)`` if it is known already."""
        self._posterior()
        if self.view is None:
            for group in (
                "log_likelihood",
                "log_prior",
                "unconstrained_posterior",
                "posterior_predictive",
                "prior",
                "prior_predictive",
            ):
                self.missing[group] = self.reason
        else:
            if "unconstrained_posterior" in (self.asked or ()):
                self._unconstrained(self.view)
            log_p = self._evaluation(self.view, log_p)
            self._note_mini_batch(self.view)
            self._predictive(self.view)
            if self.prior:
                self._prior(self.view)
            self._data(self.view)
        self._statistics(log_p)
        for group, why in self.missing.items():
            self.groups.note("posterior", **{f"missing_{group}": why})
        return self.groups

    # ----------------------------------------------------------------------------- the groups

    def _posterior(self) -> None:
        if not self._wants("posterior"):
            return
        for name, value in self.draws.values.items():
            self._add("posterior", name, self.labels.site(name, tuple(value.shape[2:])), value)
        self.groups.note("posterior", **self.draws.attrs)
        if self.draws.log_q is not None:
            self.groups.note("posterior", draws=_DRAWS["reweighted" in self.draws.attrs])

    def _unconstrained(self, view: ModelView) -> None:
        """The latent sites on the reals, as samplers and guides see them."""
        latent = view.latent
        sites = latent.unpack(latent.pack({name: self.flat[name] for name in latent.sites}))
        for name, value in sites.items():
            array = value.reshape(self.chains, self.length, *value.shape[1:])
            shape = tuple(array.shape[2:])
            same = shape == tuple(self.draws.values[name].shape[2:])
            dims = tuple(f"{name}_unconstrained_dim_{i}" for i in range(len(shape)))
            self._add(
                "unconstrained_posterior", name, self.labels.site(name, shape) if same else dims,
                array,
            )  # fmt: skip

    def _evaluation(self, view: ModelView, log_p: Tensor | None) -> Tensor:
        """One pass over the draws: log joint, deterministic sites, log likelihood."""
        deterministic = [
            name
            for name, value in view.deterministic().items()
            if name not in self.draws.values and self._fits("posterior", name, value.numel())
        ]
        likelihood = self._likelihood_sites(view)
        prior = self._prior_sites(view)
        discrete = self._discrete_sites(view)
        wanted = deterministic or likelihood or prior or discrete
        if log_p is not None and not wanted:
            return log_p
        keep = self._evaluate(view, deterministic, likelihood, prior, discrete)
        for name in discrete:
            self.discrete[name] = torch.as_tensor(keep["discrete", name])
            array = self._by_chain(keep["discrete", name])
            if self._wants("posterior"):
                self._add("posterior", name, self.labels.site(name, array.shape[2:]), array)
        for name in deterministic:
            array = self._by_chain(keep["deterministic", name])
            self._add("posterior", name, self.labels.site(name, array.shape[2:]), array)
        if likelihood and self.draws.log_q is not None:
            self.groups.note("log_likelihood", loo=_LOO["reweighted" in self.draws.attrs])
        for name in likelihood:
            array = self._by_chain(keep["likelihood", name])
            self._add("log_likelihood", name, self.labels.batch(name, array.shape[2:]), array)
            self._note_scale(view, name)
        for name in prior:
            array = self._by_chain(keep["log_prior", name])
            self._add("log_prior", name, self.labels.batch(name, array.shape[2:]), array)
        found = torch.as_tensor(self._by_chain(keep["log_p", ""]))
        return found if log_p is None else log_p

    def _discrete_sites(self, view: ModelView) -> list[str]:
        """Summed-out sites that are to be drawn, because a group shows them or rests on them."""
        given = {name: self.flat[name] for name in view.discrete() if name in self.flat}
        self.discrete.update(given)
        names = [name for name in view.discrete() if name not in given]
        if not (self._wants("posterior") or self._wants("posterior_predictive")):
            return []
        sizes = {name: self.count * self.parts * view.discrete()[name].numel() for name in names}
        large = [name for name in names if sizes[name] > RECIPE.largest_variable]
        if large and self.asked is None:
            self.missing["posterior"] = (
                f"draws of the discrete site {large[0]!r} would hold {sizes[large[0]]} values"
            )
            return []
        return names

    def _evaluate(
        self,
        view: ModelView,
        deterministic: list[str],
        likelihood: list[str],
        prior: list[str],
        discrete: list[str],
    ) -> _Columns:
        keep = _Columns(self.count)
        parts = view.evaluate(
            self.flat,
            deterministic=bool(deterministic),
            log_likelihood=likelihood,
            log_prior=bool(prior),
            discrete=bool(discrete),
        )
        for part in parts:
            rows = {("log_p", ""): part.log_p}
            rows |= {("deterministic", name): part.deterministic[name] for name in deterministic}
            rows |= {("likelihood", name): part.log_likelihood[name] for name in likelihood}
            rows |= {("log_prior", name): part.log_prior[name] for name in prior}
            rows |= {("discrete", name): part.discrete[name] for name in discrete}
            keep.append(rows)
        return keep

    def _likelihood_sites(self, view: ModelView) -> list[str]:
        if not self._wants("log_likelihood"):
            return []
        if isinstance(self.draws.model, Target):
            self._lacks("log_likelihood", _ONE_DENSITY)
            return []
        factors = view.factors()
        names = [*view.observed(), *(name for name, in_plate in factors.items() if in_plate)]
        rest = [name for name, in_plate in factors.items() if not in_plate]
        if self.likelihood is not None:
            known = [*view.observed(), *factors]
            unknown = [name for name in self.likelihood if name not in known]
            if unknown:
                raise OptionError(
                    f"likelihood names {unknown[0]!r}, which is neither an observed site nor a "
                    f"factor of the model; there are {', '.join(known) or 'none'}."
                )
            names = [name for name in known if name in self.likelihood]
        elif names and rest:
            self._lacks(
                "log_likelihood",
                f"the factor {rest[0]!r} lies in no plate, so that it may be part of the prior or "
                "the term of all data: name the sites that are data by likelihood=[...], or put "
                "the factor into a plate with a term for each datum",
            )
        elif not names:
            names = rest  # a likelihood that is written as one factor is better than none
        if not names:
            self._lacks("log_likelihood", "the model has no observed site")
        faults = view.log_joint.term_faults
        for name in names:
            if name in faults:
                self._lacks("log_likelihood", faults[name])
        nodes = view.trace.nodes
        return [
            name
            for name in names
            if name not in faults
            and self._fits("log_likelihood", name, math.prod(nodes[name]["fn"].batch_shape))
        ]

    def _prior_sites(self, view: ModelView) -> list[str]:
        """Sites of the prior that have a density of their own."""
        if not self._wants("log_prior"):
            return []
        if isinstance(self.draws.model, Target):
            self._lacks("log_prior", _ONE_DENSITY)
            return []
        log_joint, nodes = view.log_joint, view.trace.nodes
        for name in log_joint.priors:
            if name in log_joint.term_faults:
                self._lacks("log_prior", log_joint.term_faults[name])
        return [
            name
            for name in log_joint.priors
            if name not in log_joint.term_faults
            and self._fits("log_prior", name, math.prod(nodes[name]["fn"].batch_shape))
        ]

    def _note_scale(self, view: ModelView, name: str) -> None:
        """Tell of a site whose log density counts with a weight, which the group leaves out."""
        scale = view.own_scale(name)
        if isinstance(scale, Tensor) and scale.dim():
            self.remarks.append(
                f"The site {name!r} is under a poutine.scale with a weight for each row. "
                "log_likelihood holds the unscaled densities; az.loo, which takes each datum to "
                "count once, is not right for it."
            )
        elif not math.isclose(float(scale), 1.0, rel_tol=1e-6):
            self.groups.note("log_likelihood", **{f"scale_of_{name}": float(scale)})
            self.remarks.append(
                f"The site {name!r} is under poutine.scale(scale={float(scale):g}). log_likelihood "
                "holds the unscaled densities, those of the data; az.loo, which takes each datum "
                "to count once, is not right for it: use pyro_nfvi.arviz.loo_approximate, which "
                "takes the scale."
            )

    def _note_mini_batch(self, view: ModelView) -> None:
        """Tell that rows are missing where a plate subsamples."""
        told = view.mini_batch
        if not told:
            return
        for group in ("log_likelihood", "sample_stats", "observed_data", "posterior_predictive"):
            if self._wants(group):
                self.groups.note(group, mini_batch=told)
        self.remarks.append(
            f"The result is of one mini-batch, {told}: log_likelihood, observed_data and the "
            "predictions have these rows alone, log_p is scaled from them, and az.loo is theirs. "
            "For all rows give the model with the whole plate (subsample_size=None): "
            "to_arviz(fit, model=whole_model)."
        )

    def _lacks(self, group: str, why: str) -> None:
        """Note that something of a group is missing; what was noted before stays."""
        before = self.missing.get(group)
        self.missing[group] = why if before is None else f"{before}; {why}"

    def _predictive(self, view: ModelView) -> None:
        group = "posterior_predictive"
        wanted = self._observed_that_fit(view, group, self.count * self.parts)
        if not wanted:
            return
        values = {name: self.flat[name].to(view.latent.init_loc) for name in view.latent.sites}
        lacking = [name for name in view.discrete() if name not in self.discrete]
        if lacking:  # drawn from its prior it would predict other data than that of its group
            self.missing[group] = f"it needs draws of the discrete site {lacking[0]!r}"
            return
        values |= {name: one.to(view.latent.init_loc.device) for name, one in self.discrete.items()}
        self._simulate(view, {group: wanted}, values, self.count, self._by_chain)

    def _prior(self, view: ModelView) -> None:
        count = min(self.length, RECIPE.prior_draws)
        wanted = {"prior_predictive": self._observed_that_fit(view, "prior_predictive", count)}
        if self._wants("prior"):
            own = dict.fromkeys(view.latent.sites) | {
                name: None
                for name, value in (view.discrete() | view.deterministic()).items()
                if self._fits("prior", name, value.numel(), count)
            }
            wanted["prior"] = list(own)
        self._simulate(view, wanted, {}, count, lambda array: array[None])

    def _simulate(
        self,
        view: ModelView,
        wanted: Mapping[str, list[str]],
        values: TensorDict,
        count: int,
        shaped: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        names = [name for group in wanted.values() for name in group]
        if not names:
            return
        keep = _Columns(count)
        try:
            for part in view.simulator.run(count, values, names, view.rows):
                keep.append({("", name): part[name] for name in names})
        except Exception as error:  # a distribution that cannot sample, or a user's own code
            text = _first_line(error)
            self.missing |= dict.fromkeys(wanted, f"the model cannot be simulated: {text}")
            return
        for group, members in wanted.items():
            for name in members:
                array = shaped(keep["", name])
                self._add(group, name, self.labels.site(name, array.shape[2:]), array)

    def _observed_that_fit(self, view: ModelView, group: str, count: int) -> list[str]:
        if not self._wants(group):
            return []
        observed = view.observed()
        if not observed:
            self.missing[group] = "the model has no observed site with a value"
        return [n for n, v in observed.items() if self._fits(group, n, v.numel(), count)]

    def _data(self, view: ModelView) -> None:
        observed = view.observed()
        if self._wants("observed_data"):
            for name, value in observed.items():
                self._add("observed_data", name, self.labels.site(name, tuple(value.shape)), value)
        if self._wants("constant_data"):
            given = named_arguments(view.log_joint.model, view.args, view.kwargs)
            values = list(observed.values())
            for name, value in {n: v for n, v in given.items() if not among(v, values)}.items():
                array = as_array(value)
                self._add("constant_data", name, self.labels.array(name, array.shape), array)

    def _statistics(self, log_p: Tensor | None) -> None:
        if not self._wants("sample_stats"):
            return
        log_q = self.draws.log_q
        for name, value in (("log_p", log_p), ("log_q", log_q), *self.draws.stats.items()):
            if value is not None:
                self._add("sample_stats", name, (), value)
        attrs = dict(self.draws.attrs)
        part = self.view is not None and self.view.mini_batch  # whose weights are noise
        if log_p is not None and log_q is not None and "khat" not in attrs and not part:
            attrs |= weight_attrs(log_p.cpu() - log_q.cpu())
        if "sample_stats" in self.groups.variables:
            self.groups.note("sample_stats", **attrs)
        self.groups.note("posterior", **{k: v for k, v in attrs.items() if k == "khat"})

    # ------------------------------------------------------------------------------ the pieces

    def _wants(self, group: str) -> bool:
        return self.asked is None or group in self.asked

    def _fits(self, group: str, name: str, size: int, count: int | None = None) -> bool:
        if not self._wants(group):
            return False
        count = count or self.count * self.parts
        if self.asked is not None or count * size <= RECIPE.largest_variable:
            return True
        self.missing[group] = (
            f"{name!r} would hold {count} draws of {size} values, which is much memory; ask for it "
            f"with groups=[{group!r}, ...], perhaps with a smaller num_samples"
        )
        return False

    def _by_chain(self, array: np.ndarray) -> np.ndarray:
        return array.reshape((self.chains, self.length, *array.shape[1:]))

    def _add(
        self, group: str, name: str, dims: tuple[str, ...], value: Tensor | np.ndarray
    ) -> None:
        array = as_array(value)
        if group in VALUES and self.view is not None:
            array = counted(array, self.view.trace.nodes.get(name))
        self.groups.add(group, name, dims, array)


def report(
    missing: Mapping[str, str],
    asked: Collection[str] | None,
    *,
    made: Collection[str],
    has_model: bool,
    remarks: Collection[str] = (),
) -> None:
    """Warn of what is not there and was meant to be; the attributes say it in any case."""
    for remark in dict.fromkeys(remarks):
        warn(remark, ConversionWarning)
    loud = set(asked or ()) | ({"log_likelihood"} if has_model else set())
    # Sensitivity to a prior of which a part is missing (az.psens) is a wrong number.
    loud |= {"log_prior"} & set(made)
    for group in sorted(loud & set(missing)):
        warn(
            f"The ArviZ result has no {group}, or not all of it: {missing[group]}.",
            ConversionWarning,
        )


class _Columns:
    """Arrays filled chunk by chunk, so that nothing is held twice."""

    def __init__(self, count: int) -> None:
        self.count, self.filled = count, 0
        self.arrays: dict[tuple[str, str], np.ndarray] = {}

    def append(self, rows: Mapping[tuple[str, str], Tensor]) -> None:
        stop = self.filled
        for key, value in rows.items():
            part = as_array(value)
            if key not in self.arrays:
                self.arrays[key] = np.empty((self.count, *part.shape[1:]), part.dtype)
            stop = self.filled + len(part)
            self.arrays[key][self.filled : stop] = part
        self.filled = stop

    def __getitem__(self, key: tuple[str, str]) -> np.ndarray:
        return self.arrays[key]


def weight_attrs(log_w: Tensor) -> dict[str, Any]:
    """Summarise the weights ``(chain, draw)`` of each chain, as attributes."""
    found: dict[str, list[float]] = {"khat": [], "ess": [], "log_evidence": []}
    found["log_evidence_se"] = []
    for row in log_w:
        finite = torch.where(row < math.inf, row, torch.full_like(row, -math.inf))
        try:
            value, se = log_evidence(finite)
            numbers = (psis(finite).khat, ess(finite), value, se)
        except WeightError:
            numbers = (math.inf, 0.0, -math.inf, math.inf)
        for key, number in zip(found, numbers):
            found[key].append(number)
    return {key: v[0] if len(v) == 1 else np.array(v) for key, v in found.items()}


def named_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the numeric arguments of a call of the model, by name."""
    try:
        call = model.forward if isinstance(model, torch.nn.Module) else model
        bound = inspect.signature(call).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = {f"arg_{index}": value for index, value in enumerate(args)} | dict(kwargs)
    flat: dict[str, Any] = {}
    for name, value in bound.items():
        flat |= _opened(str(name), value)
    return {name: value for name, value in flat.items() if _is_numeric(value)}


def _opened(name: str, value: Any) -> dict[str, Any]:
    """Look into what holds arrays: mappings, tuples, data frames, data classes; no deeper."""
    if hasattr(value, "columns") and hasattr(value, "to_dict"):  # a pandas data frame
        return {str(column): np.asarray(value[column]) for column in value.columns}
    if isinstance(value, Mapping):
        return {str(key): inner for key, inner in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return {f"{name}_{index}": inner for index, inner in enumerate(value)}
    if hasattr(value, "to_numpy"):  # a pandas series
        return {name: value.to_numpy()}
    if isinstance(value, list) and value and all(isinstance(one, (int, float)) for one in value):
        return {name: np.asarray(value)}
    return {name: value}


def _is_numeric(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc"
    return isinstance(value, (Tensor, bool, int, float))


def counted(array: np.ndarray, site: Mapping[str, Any] | None) -> np.ndarray:
    """Return values of a discrete distribution as whole numbers, by which ArviZ knows counts.

    Pyro has them in the dtype of its parameters. Values that are missing leave them as they are.
    """
    if site is None or site["type"] != "sample" or array.dtype.kind != "f":
        return array
    if not is_discrete(site["fn"]) or not np.isfinite(array).all():
        return array
    return array.astype(np.int64)


def among(value: Any, observed: Sequence[Tensor]) -> bool:
    """Tell whether an argument is one of the observed values."""
    if not isinstance(value, (Tensor, np.ndarray)):
        return False
    array = as_array(value)
    return any(
        array.shape == tuple(one.shape) and np.array_equal(array, as_array(one)) for one in observed
    )


def as_array(value: Any) -> np.ndarray:
    """Return a value as a NumPy array on the CPU."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        if value.dtype == torch.bfloat16:
            value = value.float()
        return value.numpy()
    return np.asarray(value)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
