"""Options by the names that other libraries give them: errors that say ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import wraps
from typing import ParamSpec, TypeVar

from pyro_nfvi.errors import OptionError

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Our options by the names of Pyro, NumPyro, PyMC, Stan and scikit-learn. The first that a function
#: has is meant.
_OTHERS = {
    "chains": ("num_chains",),
    "cores": ("num_workers",),
    "draws": ("num_samples",),
    "early_stopping": ("stop",),
    "elbo": ("objective",),
    "epochs": ("max_steps", "num_steps"),
    "hidden_dims": ("hidden_dim",),
    "iterations": ("max_steps", "num_steps"),
    "learning_rate": ("optim", "lr"),
    "loss": ("objective",),
    "lr": ("optim", "lr"),
    "max_iter": ("max_steps", "num_steps"),
    "method": ("guide",),
    "n": ("max_steps", "num_samples"),
    "n_iter": ("max_steps", "num_steps"),
    "n_jobs": ("num_workers",),
    "n_samples": ("num_samples",),
    "num_draws": ("num_samples",),
    "num_flows": ("flow", "guide"),
    "num_iterations": ("max_steps", "num_steps"),
    "num_layers": ("flow", "guide"),
    "num_steps": ("max_steps",),
    "num_warmup": ("warmup_steps",),
    "optimizer": ("optim",),
    "particles": ("num_particles",),
    "patience": ("stop",),
    "progress_bar": ("progress",),
    "progressbar": ("progress",),
    "random_seed": ("seed",),
    "random_state": ("seed",),
    "rng_key": ("seed",),
    "rng_seed": ("seed",),
    "step_size": ("optim", "lr"),
    "steps": ("max_steps", "num_steps"),
    "timeout": ("max_seconds",),
    "tune": ("warmup_steps",),
    "vectorize_particles": ("num_particles",),
    "verbose": ("progress",),
    "warmup": ("warmup_steps",),
}
#: Options of a guide, which ``NFVI`` gets with the guide.
_OF_GUIDES = ("base", "hidden", "hidden_dim", "hidden_dims", "init_loc_fn", "init_scale")


class UnknownOptionError(OptionError, TypeError):
    """An option that a function does not have."""


def meant(name: str, known: Collection[str]) -> str:
    """Say which option was meant, in a sentence, or nothing.

    Example:
        >>> meant("max_step", ["max_steps", "seed"]), meant("rng_key", ["max_steps", "seed"])
        (' Did you mean max_steps?', ' Did you mean seed?')
    """
    for other in _OTHERS.get(name, ()):
        if other in known:
            return f" Did you mean {other}?"
    if name in _OF_GUIDES and "guide" in known:
        return (
            f" It is one of the guide: guide=lambda model: AutoFlow(model, 'iaf*2', "
            f"{'hidden_dim' if name.startswith('hidden') else name}=...)."
        )
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {near[0]}?" if near else ""


def unknown(what: str, name: str, known: Collection[str]) -> UnknownOptionError:
    """Make the error for an option that is not known."""
    listed = ", ".join(known)
    return UnknownOptionError(
        f"{what} has no option {name!r}.{meant(name, known)} It has {listed}."
    )


def knows_options(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a function, or a constructor, name the option that a misspelt one was meant to be.

    Example:
        >>> @knows_options
        ... def run(num_samples=10):
        ...     return num_samples
        >>> try:
        ...     run(num_sample=3)
        ... except TypeError as error:
        ...     print(error)
        run has no option 'num_sample'. Did you mean num_samples? It has num_samples.
    """
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    what = function.__qualname__.removesuffix(".__init__").replace("<locals>.", "")

    @wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for name in kwargs:
            if name not in known:
                raise unknown(what, name, known)
        return function(*args, **kwargs)

    return checked
