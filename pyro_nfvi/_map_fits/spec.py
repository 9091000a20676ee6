"""``FitSpec``: everything that one of many fits is made of."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyro_nfvi._map_fits.row_splits import HeldOut, group_rows, random_folds, split_rows
from pyro_nfvi._option_names import unknown
from pyro_nfvi._validation import seed_number, whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._nfvi import NFVI

#: Options of NFVI that a single call has, and what to do instead.
_OWN = {
    "seed": "It is a field of FitSpec: FitSpec(..., seed=0).",
    "progress": "Give it to map_fits.",
    "callbacks": "They would run in other processes.",
    "checkpoint": "Finished fits are kept: map_fits(..., folder=...).",
    "checkpoint_every": "Finished fits are kept: map_fits(..., folder=...).",
    "resume": "Finished fits are kept: map_fits(..., folder=...).",
}


@dataclass(frozen=True, eq=False)
class FitSpec:
    """Specification of one fit: ``NFVI(model, seed=seed, **options).run(*args, **kwargs)``.

    The methods make several of one, and can be combined.

    Attributes:
        model: The Pyro model.
        args: Its positional arguments, as a tuple.
        kwargs: Its keyword arguments.
        options: Options of :class:`NFVI`, such as ``{"guide": "iaf*2", "max_steps": 1000}``.
        seed: Seed of the fit.
        labels: Words or numbers that name the row in tables, such as ``{"fold": 3}``. They do not
            count when a result is looked up in a folder.
        held_out: Data that the fit is scored on; :meth:`k_fold` and :meth:`leave_group_out` make
            it.

    Raises:
        OptionError: A part that cannot be used.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> import pyro_nfvi as nfvi
        >>> def model(x, y):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
        ...     with pyro.plate("rows", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> x = torch.linspace(-1, 1, 20)
        >>> spec = nfvi.FitSpec(model, (x, 2 * x))
        >>> [dict(one.labels) for one in spec.seeds(2)]
        [{'seed': 0}, {'seed': 1}]
        >>> [len(one.args[0]) for one in spec.k_fold(4)]
        [15, 15, 15, 15]
        >>> [dict(one.labels) for one in spec.sweep(guide=["affine", "iaf"])]
        [{'guide': 'affine'}, {'guide': 'iaf'}]
    """

    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    labels: Mapping[str, Any] = field(default_factory=dict)
    held_out: HeldOut | None = None

    def __post_init__(self) -> None:
        _check_fields(self)
        check_options(self.options)
        NFVI(self.model, **self.options)  # checks model and options before any work is done

    def seeds(self, num_seeds: int) -> tuple[FitSpec, ...]:
        """Return the fit from several seeds, which serve as chains.

        Fits of one posterior from different seeds agree where they are right;
        ``nfvi.map_fits(spec.seeds(4)).rhat()`` tells.

        Args:
            num_seeds: Number of fits; seeds count up from ``self.seed``.
        """
        count = whole("num_seeds", num_seeds)
        return tuple(
            self._with(seed=self.seed + index, labels={"seed": self.seed + index})
            for index in range(count)
        )

    def sweep(self, **options: Sequence[Any]) -> tuple[FitSpec, ...]:
        """Return a fit for every combination of options of :class:`NFVI`.

        Args:
            options: Lists of values, such as ``guide=["affine", "iaf*2"], max_steps=[500, 2000]``.

        Raises:
            OptionError: No list, an empty one, or an option that :class:`NFVI` does not take.
        """
        for name, values in options.items():
            if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not values:
                raise OptionError(
                    f"sweep takes lists of values, such as {name}=[a, b]; got {name}={values!r}."
                )
        if not options:
            raise OptionError("sweep takes options with lists of values, such as guide=[a, b].")
        chosen = [dict(zip(options, each)) for each in itertools.product(*options.values())]
        return tuple(
            self._with(
                options={**self.options, **one},
                labels={name: _word(value) for name, value in one.items()},
            )
            for one in chosen
        )

    def k_fold(
        self,
        num_folds: int = 5,
        *,
        rows: Sequence[int | str] | None = None,
        from_prior: Sequence[str] | None = None,
        seed: int = 0,
    ) -> tuple[FitSpec, ...]:
        """Return a fit without each of k random parts of the rows, which it is then scored on.

        Args:
            num_folds: Number of parts; as many as there are rows leave one row out at a time.
            rows: Arguments with the rows in their first dimension: positions, or names of
                keywords and parameters. None: all arrays among the arguments, which then need
                equally many rows.
            from_prior: Latents of the held-out rows, which the fit knows nothing of; they are drawn
                from their prior given the others. None: those in the plates of the rows.
            seed: Seed of the parts.

        Raises:
            OptionError: Rows that are not clear, or more folds than rows.
        """
        parts = split_rows(self.model, self.args, self.kwargs, rows)
        folds = random_folds(whole("num_folds", num_folds, 2), parts.count, seed_number(seed) or 0)
        return self._without("fold", dict(enumerate(folds)), parts, from_prior)

    def leave_group_out(
        self,
        groups: Any,
        *,
        rows: Sequence[int | str] | None = None,
        from_prior: Sequence[str] | None = None,
    ) -> tuple[FitSpec, ...]:
        """Return a fit without each group of rows, which it is then scored on.

        Args:
            groups: A label for each row: a tensor, an array or a list.
            rows: As for :meth:`k_fold`.
            from_prior: As for :meth:`k_fold`. A latent with an entry for each group, in a plate of
                all groups, needs no mention: without data of its group it has its prior.

        Raises:
            OptionError: Rows that are not clear, another number of labels than rows, or fewer than
                two groups.
        """
        parts = split_rows(self.model, self.args, self.kwargs, rows)
        return self._without("group", group_rows(groups, parts.count), parts, from_prior)

    def _without(
        self, word: str, folds: Mapping[Any, Any], parts: Any, from_prior: Sequence[str] | None
    ) -> tuple[FitSpec, ...]:
        made = []
        for name, index in folds.items():
            args, kwargs = parts.without(index)
            held = parts.held_out(index, None if from_prior is None else tuple(from_prior))
            spec = self._with(args=args, kwargs=kwargs, held_out=held, labels={word: name})
            made.append(spec)
        return tuple(made)

    def _with(self, labels: Mapping[str, Any], **changes: Any) -> FitSpec:
        return replace(self, labels={**self.labels, **labels}, **changes)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that cannot be given for many fits.

    Raises:
        OptionError: An option that belongs to one call, that NFVI does not have, or a guide that
            every fit would go on training.
    """
    for name in options:
        if name in _OWN:
            raise OptionError(
                f"{name} belongs to a single fit and cannot be given for all of them. {_OWN[name]}"
            )
        known = [one for one in inspect.signature(NFVI).parameters if one != "model"]
        if name not in known:
            raise unknown("NFVI", name, known)
    if isinstance(options.get("guide"), AutoFlow):
        raise OptionError(
            "guide is one guide, which every fit would go on training. Give its formula, a flow, "
            "or a callable from the model to a guide, such as AutoPlanar."
        )


def _check_fields(spec: FitSpec) -> None:
    if not isinstance(spec.args, tuple):
        raise OptionError(
            f"args is a tuple of the model's arguments, as in (y,); got {type(spec.args).__name__}."
        )
    for name in ("kwargs", "options", "labels"):
        value = getattr(spec, name)
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise OptionError(f"{name} is a dict by name; got {value!r}.")
    if spec.seed is None or isinstance(spec.seed, bool):
        raise OptionError(
            f"seed is a whole number, so that a fit can be repeated; got {spec.seed}."
        )
    seed_number(spec.seed)
    for name, value in spec.labels.items():
        if not isinstance(value, (str, int, float, bool)):
            raise OptionError(f"labels are words and numbers; got {name}={value!r}.")
    if spec.held_out is not None and not isinstance(spec.held_out, HeldOut):
        raise OptionError(
            f"held_out comes from k_fold or leave_group_out; got {type(spec.held_out).__name__}."
        )


def _word(value: Any) -> str | int | float | bool:
    if isinstance(value, (str, int, float, bool)):
        return value
    return getattr(value, "__name__", None) or repr(value)
