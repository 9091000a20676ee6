"""Amortised posteriors in files, without data and without the model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from pyro_nfvi._files.archives import Malformed
from pyro_nfvi._files.fit_files import read_file, write_file
from pyro_nfvi.amortised._model_simulations import ModelSimulations
from pyro_nfvi.amortised._rank_calibration import RankCalibration
from pyro_nfvi.amortised._summary_networks import SUMMARIES, Scaling
from pyro_nfvi.amortised._trained_density import References, TrainingRecord, posterior_density
from pyro_nfvi.amortised._typicality import Neighbourhood
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import FileError, OptionError
from pyro_nfvi.infer._file_checks import check_state

#: Kind of the file, in its header.
_KIND = "amortised posterior"


class Trained(NamedTuple):
    """All that a trained posterior is, beside the model."""

    density: FlowDensity
    scaling: Scaling
    references: References
    held_out: RankCalibration
    record: TrainingRecord


def save_posterior(
    path: str | os.PathLike[str], simulations: ModelSimulations, trained: Trained
) -> None:
    """Write a trained posterior.

    Raises:
        FileError: As :func:`write_file`.
        OptionError: The flow's options are none that JSON can hold.
    """
    held, record = trained.held_out, dataclasses.asdict(trained.record)
    try:
        json.dumps(record)
    except TypeError as error:
        raise OptionError(
            f"The options of the flow cannot be written to a file: {error}. Give them by name."
        ) from error
    spec = {
        **_identity(simulations),
        "record": record,
        "ranks": {"num_draws": held.num_draws, "level": held.level},
    }
    homes = trained.references.neighbourhoods
    tensors = {
        "density": _plain(trained.density.state_dict()),
        "scaling": _plain(trained.scaling.state_dict()),
        "init_loc": simulations.latent.init_loc.cpu(),
        "ranges": trained.references.ranges.cpu(),
        "points": {str(i): home.points.cpu() for i, home in enumerate(homes)},
        "distances": {str(i): home.distances.cpu() for i, home in enumerate(homes)},
        "p": _plain(held.p),
        "region": held.region.cpu(),
    }
    write_file(path, _KIND, spec, tensors)


def load_posterior(
    path: str | os.PathLike[str],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    summary: nn.Module | None,
) -> tuple[ModelSimulations, Trained]:
    """Read a trained posterior, and set up the model as its simulator.

    Raises:
        FileError: The file cannot be read, is damaged, or is of another model.
    """
    spec, tensors = read_file(path, _KIND)
    try:
        record = TrainingRecord(**spec["record"])
        observed = spec["arguments"] or list(spec["observed"])
        sites = [site["name"] for site in spec["latent"]["sites"]]
    except (KeyError, TypeError) as error:
        raise FileError(f"{path} is damaged: {error}. Save it again.") from error
    try:
        simulations = ModelSimulations(model, args, kwargs, observed, sites)
    except OptionError as error:
        raise FileError(f"{path} is of another model: {error}") from error
    for what, value in _identity(simulations).items():
        if json.loads(json.dumps(value)) != spec.get(what):
            raise FileError(
                f"{path} is of another model: its {what} is {str(spec.get(what))[:200]}, not "
                f"{str(value)[:200]}. Pass the model and the arguments that it was trained with."
            )
    named: str | nn.Module | None = record.summary if record.summary in SUMMARIES else summary
    if record.summary and named is None:
        raise FileError(
            f"The posterior of {path} has a summary network of your own ({record.summary}): pass "
            "one like it, load(path, model, summary=net)."
        )
    latent = simulations.latent
    scaling, density = posterior_density(
        simulations.layout, latent.init_loc, record.flow, record.flow_options, named, record.seed
    )
    try:
        for part, name in ((density, "density"), (scaling, "scaling")):
            check_state(part.state_dict(), tensors[name])
            part.load_state_dict(tensors[name])
        homes = tuple(
            Neighbourhood(tensors["points"][i], tensors["distances"][i]) for i in tensors["points"]
        )
        references = References(homes, tensors["ranges"])
        ranks = spec["ranks"]
        held = RankCalibration(tensors["p"], tensors["region"], ranks["num_draws"], ranks["level"])
    except (KeyError, TypeError, RuntimeError, Malformed) as error:
        raise FileError(f"{path} is damaged: {error}. Save it again.") from error
    density.requires_grad_(False)
    return simulations, Trained(density, scaling, references, held, record)


def _identity(simulations: ModelSimulations) -> dict[str, Any]:
    """Describe what is inferred from what, as far as a file and a model have to agree."""
    layout = simulations.layout
    return {
        "latent": simulations.latent.spec(),
        "observed": {name: list(shape) for name, shape in layout.shapes.items()},
        "whole": list(layout.whole),
        "arguments": dict(simulations.simulator.arguments),
    }


def _plain(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in values.items()}
