"""Loading a saved fit, with or without its model."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from pyro_nfvi._files.archives import Malformed
from pyro_nfvi._files.fit_files import read_file
from pyro_nfvi._gaussian_vi.recipe import MODE_SEARCH
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._option_names import knows_options
from pyro_nfvi._pyro_model.constraints import support_of, support_spec
from pyro_nfvi._pyro_model.enumeration import unmarked
from pyro_nfvi._pyro_model.initial_point_search import any_trace
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.pyro_state import takes_turn
from pyro_nfvi._timing import Timing
from pyro_nfvi.distributions import _bases as bases
from pyro_nfvi.errors import FileError, ModelError, OptionError, ParamStoreError
from pyro_nfvi.flows._base import Flow
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.guides._auto_mixture import AutoMixture
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.guides._row_data import Select
from pyro_nfvi.infer._batches import by_batches, enumerated, is_loader_call
from pyro_nfvi.infer._checks.rescoring import scored_again
from pyro_nfvi.infer._file_checks import (
    bounded,
    check_draws,
    check_latent,
    check_state,
    check_tie,
)
from pyro_nfvi.infer._findings import from_json, from_settings
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._model_parameters import ModelParams
from pyro_nfvi.infer._plate_files import CLASS, fill, gaps_of
from pyro_nfvi.infer._plate_fit import PlateFit
from pyro_nfvi.infer._rows_log_joint import rows_log_joint
from pyro_nfvi.infer._saving import KIND
from pyro_nfvi.infer._scopes import own_params, own_random_state
from pyro_nfvi.infer._settings import Settings
from pyro_nfvi.infer._training import Training
from pyro_nfvi.infer._weighted_draws import WeighedDraws


@knows_options
@takes_turn
def load(
    path: str | os.PathLike[str],
    *,
    model: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    flow: str | Flow | Callable[[int], Any] | None = None,
    outer: str | Flow | None = None,
    base: Any = None,
    encoder: Mapping[str, nn.Module] | None = None,
    select: Mapping[str, Select] | None = None,
    map_location: Any = "cpu",
) -> Fit | PlateFit:
    """Read a fit that ``fit.save(path)`` wrote.

    Without the model it draws, scores, reweights and summarises; with it deterministic sites of
    new draws come back too, and ArviZ gets predictions. The file holds tensors and plain
    descriptions; no code in it runs, and nothing larger than the file is made.

    The guide is tied to its draws by one pass of some of them through its inverse. With the model
    they are scored again: where the log joint is another one, since data or priors are, all that
    is said of the fit is computed anew, with a warning, and the verdict is not "good". Draws
    that could only be scored on mini-batches are scored again where the model is given all data.

    Args:
        path: The file.
        model: The model, to be checked against the file.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
        flow: The flow, where the fit used one that has no name: a flow of the same shape as
            before, or what made it.
        outer: The outer flow, where it was one of your own.
        base: The base distribution, where it was not the standard normal.
        encoder: The encoders of plates, where the fit had some: nets of the same shape as before.
            Copies of them take the weights of the file.
        select: The functions that gave the encoders their data, where the fit had some.
        map_location: Device for the tensors.

    Raises:
        FileError: No such file, truncated, foreign, too new, with parts that do not belong
            together, or in need of ``flow``.
        ModelError: The model has other sites or parameters than the one that was fitted, or
            numbers of another type; the message says what differs.

    Warns:
        DataWarning: The model gives the draws another density than the one that was fitted.

    Cost:
        With the model one run for its draws, as at the end of a fit.

    Example:
        >>> import os, pyro, tempfile, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import NFVI, load
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> fit = NFVI(model, "affine", max_steps=50, progress=False).run(torch.tensor(2.0))
        >>> path = os.path.join(tempfile.mkdtemp(), "fit.pt")
        >>> fit.save(path)
        >>> again = load(path)  # neither model nor data
        >>> again.elbo == fit.elbo, again.sample(3)["mu"].shape
        (True, torch.Size([3]))
    """
    spec, tensors = read_file(path, KIND, map_location)
    if model is not None and is_loader_call(args, dict(kwargs or {})):
        model, args, kwargs = by_batches(model, args, dict(kwargs or {}))
    held = spec.get("guide")
    if isinstance(held, dict) and held.get("class") == CLASS:
        nets = {name: copy.deepcopy(net) for name, net in (encoder or {}).items()}
        return _rows(path, spec, tensors, model, args, dict(kwargs or {}), nets, dict(select or {}))
    own = flow is not None or outer is not None or base is not None
    with _damage(path):
        described = spec["latent"]
        sites = {site["name"]: site["support"] for site in described["sites"]}
        unknown = {name: support for name, support in sites.items() if _is_unknown(support)}
    call = (args, dict(kwargs or {}))
    supports = {} if model is None or not unknown else _own_supports(unknown, model, *call)
    with _damage(path, own=bool(unknown)):
        latent = LatentSpace.from_spec(described, tensors["init_loc"], supports)
        check_latent(latent, described)
        made = _training(spec["training"], tensors["losses"])
        draws = WeighedDraws(
            **tensors["draws"], deterministic=tensors["deterministic"], exact=spec["exact"]
        )
        params, state, how = tensors["params"], tensors["guide"], spec["guide"]
        replaced = _names(spec.get("replaced", []))
        check_draws(draws, made.losses, params, latent)
    with _damage(path, own=own):
        with bounded(tensors):
            guide = _unbuilt_guide(how, flow, outer, base, model)
            _try_building(guide, latent)
        if model is None:
            _adopt(guide, latent)
    if model is None:
        _fill(path, guide, state, draws, spec.get("tie"))
        return Fit(guide, draws, made, params, _replaced=replaced)
    with own_random_state(0, "load"), own_params(model, *call) as names:
        if unmarked(any_trace(model, *call)):  # as the fit did
            model = enumerated(model)
            guide._model = (model,)
        guide.setup(*call[0], **call[1])
        _check_same(latent, guide.latent, params, names)
        _fill(path, guide, state, draws, spec.get("tie"))
        log_joint = LogJoint(model, *call, guide.latent)
        here = ModelParams.of(log_joint.param_leaves(), log_joint.param_constraints)
        trained = here.with_values(params)
        trained.put()
        fit = Fit(guide, draws, made, params, log_joint, trained)
        fit = scored_again(fit, spec.get("arguments"))
    guide.param_guard = trained.guard()
    return fit


def _rows(
    path: str | os.PathLike[str],
    spec: Mapping[str, Any],
    tensors: Mapping[str, Any],
    model: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    encoder: dict[str, nn.Module],
    select: dict[str, Select],
) -> PlateFit:
    """Rebuild a fit of globals and rows, whose plates are known by the model alone."""
    if model is None:
        raise FileError(
            f"{path} holds a fit of the rows of plates, which needs its model: "
            "load(path, model=model, args=...)."
        )
    with _damage(path):
        made = _training(spec["training"], tensors["losses"])
        draws = WeighedDraws(**tensors["draws"], exact=spec["exact"])
        gaps, how, params = gaps_of(spec, tensors), spec["guide"], tensors["params"]
        for name, given in (("encoder", encoder), ("select", select)):
            needed = how.get(f"{name}s", [])
            if sorted(given) != sorted(needed):
                words = ", ".join(f"{plate!r}: ..." for plate in needed)
                raise FileError(
                    f"{path} holds a fit with {name}={{{words}}}, which no file describes; got "
                    f"{sorted(given)}. Pass what the fit had: load(path, ..., {name}={{{words}}})."
                )
        bound, error, rows_se = (float(x) for x in spec["bound"])
        guide = AutoPlateFlow(
            model,
            how["flow"],
            local=how["local"],
            local_options=how["local_options"],
            code_dim=how["code_dim"],
            model_informed=bool(how.get("model_informed", False)),
            joint=tuple(map(str, how.get("joint", ()))),
            encoder=encoder,
            select=select,
            semi_amortised=bool(how.get("semi_amortised", False)),
            **how["options"],
        )
    with own_random_state(0, "load"), own_params(model, args, kwargs) as names:
        if unmarked(any_trace(model, args, kwargs)):  # as the fit did
            model = enumerated(model)
            guide._model = (model,)
        guide.setup(*args, **kwargs)
        with _damage(path):
            expected = LatentSpace.from_spec(spec["latent"], guide.latent.init_loc)
        _check_same(expected, guide.latent, params, names)
        fill(path, guide, tensors["guide"])
        log_joint = rows_log_joint(model, args, kwargs, guide)
        here = ModelParams.of(log_joint.param_leaves(), log_joint.param_constraints)
        trained = here.with_values(params)
        trained.put()
    guide.param_guard = trained.guard()
    return PlateFit(
        guide,
        draws,
        gaps,
        bound,
        error,
        rows_se,
        made,
        params,
        log_joint,
        int(spec["seed"]),
        trained,
    )


@contextmanager
def _damage(path: str | os.PathLike[str], *, own: bool = False) -> Iterator[None]:
    """Tell what goes wrong in rebuilding a fit as a damage of its file.

    Args:
        path: The file.
        own: Whether the caller gave a part, of which other errors may speak.
    """
    try:
        yield
    except (FileError, ModelError):
        raise
    except Malformed as error:
        raise FileError(f"{path} is damaged: {error}. Copy or save it again.") from error
    except OptionError as error:
        if own:
            raise
        raise FileError(f"{path} is damaged: {str(error)[:300]} Save it again.") from error
    except Exception as error:  # descriptions can be wrong in every way there is
        words = f"{type(error).__name__}: {str(error)[:200]}"
        raise FileError(
            f"{path} is damaged: something is missing or unexpected ({words}). Copy or save it "
            "again."
        ) from error


def _names(found: Any) -> tuple[str, ...]:
    if not (isinstance(found, list) and all(isinstance(name, str) for name in found)):
        raise Malformed("the names of its sites are no names")
    return tuple(found)


def _is_unknown(support: Any) -> bool:
    """Tell whether a support is of a class of the user's own."""
    while support.get("kind") == "independent":
        support = support["base"]
    return bool(support.get("kind") == "other")


def _own_supports(
    recorded: Mapping[str, Any],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, Constraint]:
    """Take supports of a user's own classes, which no file describes, from the model."""
    with own_random_state(0, "load"), own_params(model, args, kwargs):
        nodes = any_trace(model, args, kwargs).nodes
    supports = {}
    for name, expected in recorded.items():
        if name not in nodes or nodes[name]["type"] != "sample":
            raise ModelError(f"The model is not the one that was fitted: site {name!r} is missing.")
        supports[name] = support_of(nodes[name]["fn"])
        if (found := support_spec(supports[name])) != expected:
            raise ModelError(
                f"The model is not the one that was fitted: site {name!r} has support {found}, not "
                f"{expected}."
            )
    return supports


def _training(described: Mapping[str, Any], losses: Tensor) -> Training:
    training = dict(described)
    training["why_stopped"] = StopReason(*training["why_stopped"])
    training["notes"] = tuple(training["notes"])
    # Files of version 0.1 have the names of back ends.
    names = {"svi": "eager"} | dict.fromkeys(("native", "hybrid", "graph", "inductor"), "compiled")
    if isinstance(training["engine"], str):
        training["engine"] = names.get(training["engine"], training["engine"])
    training["findings"] = (
        from_json(training["findings"])
        if "findings" in training
        else from_settings(training["settings"], MODE_SEARCH.most_modes)  # a file of version 0.1
    )
    training["timing"] = Timing.from_json(training["timing"])
    training["settings"] = Settings.from_json(training["settings"])
    made = Training(losses=losses, **training)
    for found in made.findings:
        found.sentence()  # its values are those of its kind
    words = (made.engine, made.engine_reason, *made.notes)
    if not all(isinstance(word, str) for word in words):
        raise Malformed("its account of the training is none")
    return made


def _try_building(guide: AutoFlow | AutoMixture, latent: LatentSpace) -> None:
    """Build what a guide's own set-up builds, to see how large it gets."""
    recipes = guide._recipes if isinstance(guide, AutoMixture) else [guide._recipe]
    for recipe in recipes:
        if recipe is not None:
            recipe.build(latent.init_loc)
            recipe.build_base(latent.init_loc)


def _check_same(
    ours: LatentSpace, theirs: LatentSpace, params: Mapping[str, Tensor], names: frozenset[str]
) -> None:
    """Refuse a model that is not the one of the file."""
    difference = ours.difference(theirs)
    if difference is None and ours.init_loc.dtype != theirs.init_loc.dtype:
        wanted, came = (str(one.init_loc.dtype).removeprefix("torch.") for one in (ours, theirs))
        raise ModelError(
            f"The model is not the one that was fitted: its numbers are {came}, not {wanted}. Give "
            f"it data of that type, and call torch.set_default_dtype(torch.{wanted}) before."
        )
    if difference is not None:
        raise ModelError(f"The model is not the one that was fitted: {difference}.")
    odd = sorted(set(names) ^ set(params))
    if odd:
        where = "the model" if odd[0] in names else "the file"
        raise ModelError(
            f"The model is not the one that was fitted: its parameter {odd[0]!r} is in {where} "
            "only."
        )


def _unbuilt_guide(
    spec: dict[str, Any],
    flow: Any,
    outer: Any,
    base: Any,
    model: Callable[..., Any] | None,
) -> AutoFlow | AutoMixture:
    """Make the guide anew, without parameters yet."""
    if "flows" in spec:
        flows = spec["flows"]
        return AutoMixture(_no_model if model is None else model, len(flows), flows)
    if spec["layers"] and spec["flow"] is None and flow is None:
        raise FileError(
            "The fit used a flow without a name, which a file cannot describe. Pass a flow built "
            "in the same way: load(path, flow=...)."
        )
    if spec["outer"] == "flow" and not isinstance(outer, Flow):
        raise FileError("The fit used an outer flow of your own: load(path, outer=...).")
    if not spec["standard_base"] and base is None:
        base = _named_base(spec.get("base"))
        if base is None:
            raise FileError("The fit used a base distribution of your own: load(path, base=...).")
    chosen = flow if flow is not None else spec["flow"] if spec["layers"] else None
    return AutoFlow(
        _no_model if model is None else model,
        chosen,
        outer=outer if spec["outer"] == "flow" else spec["outer"],
        base=base,
        **(spec["options"] if flow is None else {}),
    )


def _named_base(spec: dict[str, Any] | None) -> Any:
    if spec is None:
        return None
    if spec["class"] not in bases.BASES:
        raise FileError(f"The file names an unknown base {spec['class']!r}.")
    return getattr(bases, spec["class"])(spec["dim"], **spec["options"])


def _adopt(guide: AutoFlow | AutoMixture, latent: LatentSpace) -> None:
    """Set a guide up from a latent space alone, as a run of the model would."""
    values, _ = latent.constrain(latent.init_loc)
    trace = Trace()
    for name, site in latent.sites.items():
        trace.add_node(
            name,
            name=name,
            type="sample",
            fn=dist.Delta(values[name], event_dim=site.event_dim),
            value=values[name],
            is_observed=False,
            infer={},
            scale=1.0,
            mask=None,
            args=(),
            kwargs={},
            cond_indep_stack=site.cond_indep_stack,
        )
    guide.prototype_trace = trace
    guide.latent, guide.latent_dim = latent, latent.dim
    guide._unconstrained_shapes = {
        name: torch.Size(site.unconstrained_shape) for name, site in latent.sites.items()
    }
    guide._cond_indep_stacks = {n: site.cond_indep_stack for n, site in latent.sites.items()}
    guide._prototype_frames = {
        frame.name: frame for site in latent.records for frame in site.cond_indep_stack
    }
    guide._build()
    guide.__dict__["_model"] = None  # as after unpickling


def _fill(
    path: str | os.PathLike[str],
    guide: AutoFlow | AutoMixture,
    state: Mapping[str, Tensor],
    draws: WeighedDraws,
    recorded: Mapping[str, Any] | None,
) -> None:
    """Give a guide its parameters, and see whether they are those of its draws."""
    with _damage(path):
        check_state(guide.state_dict(), state)
        try:
            guide.load_state_dict(state)
        except ParamStoreError as error:
            words = " ".join(str(error).split())[:500].rstrip(".")
            text = f"The flow is not shaped as the one that was fitted. {words}."
            raise FileError(text) from error
        check_tie(guide.density(), draws, recorded)


def _no_model(*args: Any, **kwargs: Any) -> Any:
    raise ModelError("This fit was loaded without its model: load(path, model=model, args=...).")
