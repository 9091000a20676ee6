"""The groups ``predictions`` and ``predictions_constant_data``: the model at other data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pyro_nfvi._typing import TensorDict
from pyro_nfvi.arviz._gather import among, as_array, counted, named_arguments
from pyro_nfvi.arviz._labels import Labels
from pyro_nfvi.arviz._model_view import ModelView
from pyro_nfvi.arviz._tree import Groups
from pyro_nfvi.errors import OptionError
from pyro_nfvi.infer._predict import Predictions, predict_from


def read_call(asked: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read what ``predictions=`` may be, other than predictions: a tuple or a dict of arguments.

    Raises:
        OptionError: It is neither.
    """
    if isinstance(asked, Mapping):
        return (), {str(name): value for name, value in asked.items()}
    if isinstance(asked, (tuple, list)):
        return tuple(asked), {}
    raise OptionError(
        "predictions is what fit.predict(...) returned, a tuple of the model's positional "
        f"arguments at new data, or a dict of keyword arguments; got {type(asked).__name__}."
    )


def made_at(view: ModelView, draws: Mapping[str, Tensor], asked: Any) -> Predictions:
    """Predict at the draws of the posterior group, ``(S, *shape)`` by site."""
    like = view.latent.init_loc
    known = (*view.latent.sites, *view.discrete())
    held: TensorDict = {
        name: draws[name].to(like) if name in view.latent.sites else draws[name].to(like.device)
        for name in known
        if name in draws
    }
    return predict_from(view.log_joint, held, *read_call(asked))


def add_predictions(
    groups: Groups, predicted: Predictions, fitted: ModelView | None, chains: int = 1
) -> None:
    """Add predictions to the groups, with the arguments that they were made at."""
    labels = Labels(predicted.trace)
    for dim, labelled in labels.coords().items():
        groups.coords.setdefault(dim, labelled)
    for name, value in predicted.items():
        array = counted(as_array(value), predicted.trace.nodes.get(name))
        array = array.reshape((chains, len(array) // chains, *array.shape[1:]))
        groups.add("predictions", name, labels.site(name, array.shape[2:]), array)
    given = named_arguments(predicted.model, predicted.args, predicted.kwargs)
    for name in _data_arguments(predicted.model, fitted):
        given.pop(name, None)  # a stand-in for what is predicted
    for name, value in given.items():
        array = as_array(value)
        dims = labels.array(name, array.shape)
        groups.add("predictions_constant_data", name, dims, array)


def _data_arguments(model: Callable[..., Any], fitted: ModelView | None) -> list[str]:
    """Names of the arguments that were observed data in the fit."""
    if fitted is None:
        return []
    observed = list(fitted.observed().values())
    given = named_arguments(model, fitted.args, fitted.kwargs)
    return [name for name, value in given.items() if among(value, observed)]
