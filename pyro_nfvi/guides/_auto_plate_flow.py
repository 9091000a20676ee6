"""``AutoPlateFlow``: a flow over globals, and for each row of a plate one that all rows share."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import init_to_median
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyro_nfvi._autocast import full_precision
from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._math import broadcast_shape
from pyro_nfvi._pyro_model.batch_model import BatchModel, batch_arguments
from pyro_nfvi._pyro_model.constraints import bijection, inside
from pyro_nfvi._pyro_model.latent_space import LatentSite, LatentSpace
from pyro_nfvi._pyro_model.model_checks import check_model
from pyro_nfvi._pyro_model.partial_centering import (
    PartialCentering,
    PriorRun,
    informed_sites,
)
from pyro_nfvi._pyro_model.plate_layout import (
    PlateLayout,
    as_rows,
    check_rows,
    joined_space,
    whole_space,
)
from pyro_nfvi._pyro_model.pyro_state import takes_turn
from pyro_nfvi._typing import TensorDict, TensorPair
from pyro_nfvi._user_warning import warn
from pyro_nfvi._validation import whole
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.errors import ModelError, ModelWarning, NotSetUpError, OptionError
from pyro_nfvi.flows._base import Chain, Flow
from pyro_nfvi.flows._block_arrow import ArrowFactor
from pyro_nfvi.flows._interop import adapt
from pyro_nfvi.flows._permutation import undo_permutations
from pyro_nfvi.flows._plate_flow import PlateBlock, PlateFlow, Take
from pyro_nfvi.flows._registry import check_formula, make_flow
from pyro_nfvi.guides._bound_rows import BoundRows, in_parts, points
from pyro_nfvi.guides._build import FlowSpec, Recipe
from pyro_nfvi.guides._guide_draws import chunk_rows, deterministic_sites, draws_shape
from pyro_nfvi.guides._model_plates import ModelPlates, model_plates
from pyro_nfvi.guides._param_store import check_store, stored_names, sync_module
from pyro_nfvi.guides._quantiles import ONE_SD, column_quantiles
from pyro_nfvi.guides._recipe import GUIDES
from pyro_nfvi.guides._row_data import Select
from pyro_nfvi.guides._row_encoders import RowEncoders
from pyro_nfvi.guides._row_tables import RowNumbers, RowTables
from pyro_nfvi.guides._structure_watch import signature
from pyro_nfvi.guides._vector_guide import VectorGuide
from pyro_nfvi.guides._weighted_noise import WeightedNoise

if TYPE_CHECKING:
    from pyro_nfvi.guides._gathered_rows import GatheredRows

#: What users pass as ``local``: a formula, or a callable of the width of a row and of its context.
LocalSpec: TypeAlias = str | Callable[[int, int], Any] | None
#: Rows by plate.
RowsOf: TypeAlias = Mapping[str, Any]

#: Couplings need two coordinates; families that do the same for one.
_FOR_ONE = {"nsf": "nsf-ar", "realnvp": "iaf", "nice": "iaf", "glow": "iaf"}


class AutoPlateFlow(VectorGuide):
    r"""A guide built from the model's plates: its cost is linear in rows, mini-batches included.

    .. math::
        q(z) = q(z_g) \prod_{b} \prod_{r} q_b(z_{b,r} \mid z_{\mathrm{parents}(b,r)}, c_{b,r})

    Latents outside of plates have a flow, as in :class:`~pyro_nfvi.AutoFlow`. The latents of the
    same plates are a *block*; its rows share one conditional flow, whose context is the globals,
    the row of each plate that encloses it, and a code of the row. Location and scale of a row are a
    free table (a row for each row of the plate), or come from an encoder of the row's data
    (amortised), or both (semi-amortised). It starts as Pyro's ``AutoNormal`` with the same
    ``init_loc_fn``: the same loss, the same gradients.

    Plates may subsample: with ``pyro.plate(name, N, subsample_size=B)`` the guide draws the rows;
    where the model is given them, ``pyro.plate(name, N, subsample=index)``, so is the guide, by
    ``create_plates``, as in Pyro's own guides. The last batch may be a smaller one.

    Args:
        model: A Pyro model.
        flow: Of the globals, as in :class:`~pyro_nfvi.AutoFlow`.
        local: Of a row: a formula, or a callable of the row's width and of the context's; None
            for a normal distribution of each row. A row of one coordinate takes the
            autoregressive form of a coupling.
        encoder: For some plates a network from the rows' data ``(B, ...)`` to what is known of
            each row, ``(B, k)``, any k. It gets the tensors among the model's arguments whose
            leading axis has the plate's size or the mini-batch's.
        select: For some plates a function of the model's arguments that returns what the encoder
            gets in their place.
        semi_amortised: Whether plates with an encoder have a free table as well.
        model_informed: Take local latents relative to their prior given the globals, with a learned
            degree for each site, from non-centred (the start) to centred; where a prior depends on
            other latents. Initial location and scale are the same at the initial point. The model
            is run as far as its last such site, in each call, with its arguments: those of set-up
            where none are given.
        joint: Plates whose latents belong to the globals (with the rows of other plates that they
            stand in, to these), in one flow of all of their rows. Rows of two plates that cross,
            persons and items, are independent given the globals in this guide, and not in the
            posterior, so that their spread would come out too small: name the smaller one, which
            may not subsample.
        code_dim: Size of the free code of a row.
        init_loc_fn: Pyro's per-site initialisation.
        init_scale: Initial standard deviation of each unconstrained coordinate.
        create_plates: A function of the model's arguments that returns a plate, or several: those
            that the model is given the rows of.
        local_options: Options of the named local flow.
        **flow_options: Options of the named flow of the globals, such as ``hidden_dim``.

    Shape:
        D is the number of unconstrained coordinates of all rows, ``guide.latent.dim``.

    Units:
        Log densities are in nats.

    Cost:
        Linear in the rows of a mini-batch, for time and for memory; tables of all rows, which an
        optimiser of Pyro's goes through in each step.

    Note:
        Train with ``pyro.optim.Adam(guide.optim_args(0.01))``, or let the rate decay: what many
        rows share wants smaller steps than the table of each.

    Raises:
        OptionError: A wrong option; an encoder that returns no row for each row, that changes its
            width, or that mixes rows; rows that a plate does not have.
        ModelError: A plate changes its size and its rows have a table: give it an encoder, or build
            a guide for the other data; the model is given rows and the guide is not.
        DataError: An encoder's numbers are not finite; the row is named.
        ParamStoreError: Pyro's store holds other parameters under the guide's name.

    Source: Rouillard and Wassermann 2022, arXiv:2106.05950 (one conditional flow for all rows of a
    plate); Kim et al. 2018, arXiv:1802.02550 (semi-amortised).

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_nfvi import AutoPlateFlow
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("groups", len(y), subsample_size=4) as rows:
        ...         z = pyro.sample("z", dist.Normal(mean, 1.0))
        ...         pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])
        >>> y = torch.randn(20)
        >>> guide = AutoPlateFlow(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        >>> loss = svi.step(y)
        >>> guide.sample_posterior(5, rows={"groups": [0, 19]})["z"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        flow: FlowSpec = "iaf*2",
        *,
        local: LocalSpec = "nsf*2|affine",
        encoder: Mapping[str, nn.Module] | None = None,
        select: Mapping[str, Select] | None = None,
        semi_amortised: bool = False,
        model_informed: bool = False,
        joint: Sequence[str] = (),
        code_dim: int = GUIDES.code_dim,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
        local_options: Mapping[str, Any] | None = None,
        **flow_options: Any,
    ) -> None:
        name = type(self).__name__
        check_model(name, model)
        recipe = Recipe(name, flow, "diagonal", flow_options, init_scale, None)
        if isinstance(local, str):
            check_formula(local, local_options or {})
        elif not (local is None or callable(local)):
            raise OptionError(
                f"{name} needs local to be a formula such as 'nsf*2', a callable of the row's "
                f"width and of the context's, or None; got {type(local).__name__}."
            )
        encoder = dict(encoder or {})
        for plate, net in encoder.items():
            if not isinstance(net, nn.Module):
                raise OptionError(
                    f"{name} needs the encoder of the plate {plate!r} to be a torch.nn.Module; got "
                    f"{type(net).__name__}."
                )
        strays = set(select or {}) - set(encoder)
        if strays:
            raise OptionError(
                f"{name}: select has the plate {min(strays)!r}, which has no encoder."
            )
        super().__init__(model, init_loc_fn)
        self.create_plates = create_plates
        #: Let gradients to tables be sparse, for an optimiser that goes through drawn rows only.
        self.sparse_gradients = False
        self._recipe = recipe
        self._local, self._local_options = local, dict(local_options or {})
        # Past registration: they are modules of the guide once it is set up.
        self.__dict__["_given_encoders"] = encoder
        self._select = dict(select or {})
        self._semi_amortised = bool(semi_amortised)
        self._model_informed = bool(model_informed)
        self._prior: PriorRun | None = None
        if isinstance(joint, str):
            raise OptionError(f"{name}: joint is a list of plates: joint=[{joint!r}].")
        self.joint = tuple(joint)
        self._code_dim = whole(f"{name}: code_dim", code_dim, 0)
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._given_plates: frozenset[str] = frozenset()
        self._plates_by_form: dict[Hashable, ModelPlates] = {}

    # ------------------------------------------------------------------------------- set-up

    def _space_of(self, trace: Trace) -> LatentSpace:
        return joined_space(LatentSpace.from_trace(trace, subsampled=True), self.joint)

    def _make(
        self, init_loc_fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._arguments = (args, kwargs)
        plates = model_plates(self.model, args, kwargs)
        self._check_joint(plates)
        self._plates_by_form = {signature((args, kwargs)): plates}
        self._given_plates = plates.given
        super()._make(init_loc_fn, args, kwargs)
        if not self._encoders().widths and self._prior is None:
            self._arguments = None  # only encoders and priors ask for data again

    def _check_joint(self, plates: ModelPlates) -> None:
        for plate in self.joint:
            if plate not in plates.sizes:
                raise OptionError(
                    f"{type(self).__name__}: joint names the plate {plate!r}, which the model does "
                    f"not have; it has {list(plates.sizes)}."
                )
            if plate in plates.subsampled:
                raise OptionError(
                    f"{type(self).__name__}: joint names the plate {plate!r}, which subsamples: "
                    "what has all of its rows in one flow is drawn whole. Let it not subsample, or "
                    "name another plate."
                )

    def _build(self) -> None:
        batch = {f.name: int(f.size) for s in self.latent.records for f in s.cond_indep_stack}
        start = self._find_prior(self.latent) if self._model_informed else None
        self.layout = PlateLayout.from_space(self.latent)
        self._check_given(self.layout)
        self.latent = self.layout.space
        self.latent_dim = self.latent.dim
        like = self.latent.init_loc
        assert self._arguments is not None
        data = self._arguments
        if isinstance(self.model, BatchModel) and not any(data):
            data = self.model.batch(torch.arange(self.model.source.batch_size))
        encoders = RowEncoders(
            self.__dict__["_given_encoders"], self._select, self.layout, batch, *data
        )
        blocks, widths = self.layout.blocks, {b.name: b.width for b in self.layout.blocks}
        encoding = {block.name: encoders.width(block) for block in blocks}
        free = frozenset(b.name for b in blocks if not encoding[b.name] or self._semi_amortised)
        code = {b.name: self._code_dim * (bool(b.plates) and b.name in free) for b in blocks}
        if self._local is None:
            code = dict.fromkeys(code, 0)
        flows = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            for i, block in enumerate(blocks):
                context = sum(widths[p] for p in block.parents) + code[block.name]
                context += encoding[block.name]
                if block.plates:
                    flow = self._local_flow(block, context)
                else:
                    flow, _ = self._recipe.build(like[: block.width])
                if flow is not None:
                    flows[str(i)] = flow.to(like)
            parts = {block.name: self.layout.part(block, like) for block in blocks}
            tables = RowTables(
                blocks, parts, float(self._recipe.init_scale), code, encoding, free
            ).to(like)
            if start is not None and self._prior is not None:
                tables.degrees = nn.Parameter(like.new_zeros(len(self._prior.sites)))
                loc, slope = start
                for block in blocks:
                    scale = self._recipe.init_scale * (-self.layout.part(block, slope)).exp()
                    tables.set_gaussian(block.name, self.layout.part(block, loc), scale)
        self._check_store({"flow": flows, "tables": tables, "encoders": encoders})
        self.flow, self.tables, self.encoders = flows, tables, encoders
        self.__dict__["_given_encoders"] = {}
        self._sync(adopt=True)

    def _find_prior(self, space: LatentSpace) -> TensorPair | None:
        """Look for sites of a mini-batch whose prior depends on other latents.

        Returns:
            The start relative to these priors, and log-slopes there, of all rows ``(D,)``.
        """
        assert self._arguments is not None
        args, kwargs = self._arguments
        nesting = self._plates_of(args, kwargs).nesting
        run = PriorRun(self.model, args, kwargs, nesting, {}, {})
        frames = [frame for site in space.records for frame in site.cond_indep_stack]
        rows = {f.name: torch.arange(int(f.size)) for f in frames if f.size != f.full_size}
        found = informed_sites(run, space, rows)
        if found is None:
            warn(
                "model_informed=True has no effect: no latent of a plate was found whose prior has "
                "a location or scale that depends on what encloses the plate, and that a run of "
                "the model's prior gives again. Leave it out, or write that prior as a Normal.",
                ModelWarning,
            )
            self._prior = None
            return None
        # Of the run only what does not hold the model and its data is kept.
        self._prior = replace(found, model=_no_model, args=(), kwargs={})
        loc, slope = (
            whole_space(replace(space, init_loc=part)).init_loc for part in found.start(space, rows)
        )
        return loc, slope

    def _check_given(self, layout: PlateLayout) -> None:
        """Refuse to draw rows for a model that is given them; warn where data are no rows' own."""
        owner = self if self.master is None else self.master()
        given = self._given_plates & set(layout.sizes)
        subsampled = {
            f.name
            for site in self.latent.records
            for f in site.cond_indep_stack
            if f.full_size is not None and int(f.size) != int(f.full_size)
        }
        if owner is not None and owner.create_plates is None and given & subsampled:
            plate = min(given & subsampled)
            raise ModelError(
                f"The model is given the rows of the plate {plate!r} (subsample=...), and "
                f"{type(self).__name__} would draw others: latents would meet the data of other "
                "rows. Give it the rows too: create_plates=lambda *args: "
                f"pyro.plate({plate!r}, size, subsample=index), with the model's arguments."
            )
        assert self._arguments is not None
        args, kwargs = self._arguments
        lengths = {len(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim()}
        for site in self.latent.records:
            for frame in site.cond_indep_stack:
                size, full = int(frame.size), int(frame.full_size or frame.size)
                unpaired = (
                    frame.name in subsampled - given and frame.name not in self._encoders_of()
                )
                if unpaired and size in lengths and full not in lengths:
                    warn(
                        f"The rows of the plate {frame.name!r} are drawn at random, {size} of "
                        f"{full}, while the model is called with data of {size} rows: each "
                        "row's latents meet the data of whatever row comes. Give the rows with the "
                        "data: pyro.plate(..., subsample=index) in the model and create_plates in "
                        "the guide; or an encoder, for which the number of a row has no meaning.",
                        ModelWarning,
                    )
                    return

    def encoder_nets(self) -> dict[str, nn.Module]:
        """Return the encoders by plate."""
        if not self.is_set_up:
            return dict(self.__dict__["_given_encoders"])
        return dict(zip(self._encoders().widths, self._encoders().nets))

    def _encoders_of(self) -> set[str]:
        return set() if self._semi_amortised else set(self.__dict__.get("_given_encoders", {}))

    def _local_flow(self, block: PlateBlock, context: int) -> Flow | None:
        """Build the conditional flow of a block's rows."""
        spec, name = self._local, type(self).__name__
        if spec is None:
            return None
        if isinstance(spec, str):
            options = dict(self._local_options)
            if block.width == 1:
                spec = "|".join(_for_one(term) for term in spec.split("|"))
                known = {key for key in options if _takes(spec, key)}
                options = {key: options[key] for key in known}
            flow = make_flow(spec, block.width, context, **options)
        else:
            flow = adapt(spec(block.width, context), block.width)
        if flow.dim != block.width or flow.context_dim not in (0, context):
            raise OptionError(
                f"{name} needs a local flow of dim={block.width}, context_dim={context} for the "
                f"rows of {block.name!r}; got dim={flow.dim}, context_dim={flow.context_dim}."
            )
        undo = undo_permutations(flow)
        return flow if undo is None else Chain(flow, undo)

    def _free_plates(self) -> frozenset[str]:
        return frozenset(self.layout.sizes)

    # ------------------------------------------------------------------------ the param store

    def _uses_store(self) -> bool:
        return bool(self._pyro_context.active) and not pyro.settings.get("module_local_params")

    def _check_store(self, parts: Mapping[str, nn.Module]) -> None:
        if not self._uses_store():
            return
        full = self._pyro_get_fullname
        expected = {
            name: parameter.shape
            for part, module in parts.items()
            for name, parameter in stored_names(full(part), module)
        }
        check_store(expected, [full(part) for part in parts])

    def _sync(self, *, adopt: bool = False) -> None:
        if self._uses_store():
            for part in ("flow", "tables", "encoders"):
                # Past PyroModule's attribute access, which would register the module once more.
                module = self._modules[part]
                sync_module(self, self._pyro_get_fullname(part), module, adopt=adopt)

    # -------------------------------------------------------------------------- the density

    def _encoders(self) -> RowEncoders:
        encoders = self._modules["encoders"]
        assert isinstance(encoders, RowEncoders)
        return encoders

    def _rows_tables(self) -> RowTables:
        tables = self._modules["tables"]
        assert isinstance(tables, RowTables)
        return tables

    def _like(self) -> Tensor:
        own = self._rows_tables().loc[0]
        return own.detach().new_zeros(()).expand(self.latent_dim)

    def _chosen(self, rows: RowsOf | None) -> TensorDict:
        """Read the rows that a caller names."""
        return {plate: as_rows(plate, index) for plate, index in (rows or {}).items()}

    def _given(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return the model's arguments, or those of set-up where none are given."""
        needed = self._encoders().widths or self._prior is not None
        if args or kwargs or not needed:
            return args, kwargs
        if self._arguments is None:
            raise NotSetUpError(
                f"{type(self).__name__} needs the model's arguments here, for the data of rows or "
                "for their prior: pass them."
            )
        return self._arguments

    def _bind(
        self,
        layout: PlateLayout,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        bare: bool = False,
        take: Take | None = None,
        trusted: bool = False,
    ) -> BoundRows:
        """Gather what the rows of a layout have.

        Args:
            layout: The rows.
            args: The model's arguments.
            kwargs: Its keyword arguments.
            bare: Leave the flows out: they are the identity still.
            take: Takes a block's rows from a table; by default as they stand there.
            trusted: Look at no values of rows and encodings.
        """
        args, kwargs = self._given(args, kwargs or {})
        if take is None:
            take = partial(PlateBlock.of_rows, sparse=self.sparse_gradients)
        tables, numbers = self._rows_tables(), dict[str, RowNumbers]()
        like = tables.loc[0]
        data = self._data_of(layout, args, kwargs)
        encodings = self._encoders().encode(layout, *data, like, trusted=trusted)
        blocks = [block.to(like.device) for block in layout.blocks]
        for block in blocks:
            encoding = encodings.get(block.name)
            numbers[block.name] = tables.at(block, encoding, take)
        modules, flows = self._modules["flow"], dict[str, Flow | None]()
        assert isinstance(modules, nn.ModuleDict)
        for i, block in enumerate(blocks):
            if not bare and str(i) in modules and isinstance(found := modules[str(i)], Flow):
                flows[block.name] = found
        codes = {
            name: own.code
            for name, own in numbers.items()
            if own.code is not None and name in flows
        }
        flow = PlateFlow(blocks, flows, codes)
        loc = flow.join([own.loc for own in numbers.values()])
        scale = flow.join([own.scale for own in numbers.values()])
        weight = None
        if any(block.weight != 1 for block in blocks):
            weight = flow.join([loc.new_full((b.num_rows, b.width), b.weight) for b in blocks])
        centering = self._centering(layout, args, kwargs)
        coupling = tables.coupling(blocks, take)
        return BoundRows(layout, flow, loc, scale, weight, centering, coupling)

    def _centering(
        self, layout: PlateLayout, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> PartialCentering | None:
        """Return the map from coordinates relative to priors, if there is one."""
        degrees = self._rows_tables().degrees
        if degrees is None or self._prior is None:
            return None
        if self._model is None:
            raise NotSetUpError(
                f"This {type(self).__name__} is model-informed and was loaded without its model: "
                "build it with the model and take load_state_dict."
            )
        drawn, entire = dict[str, int](), dict[str, int]()
        for plate, (size, full) in self._plates_of(args, kwargs).sizes.items():
            if plate not in self._given_plates:
                (entire if size == full else drawn)[plate] = size
        run = replace(
            self._prior, model=self.model, args=args, kwargs=kwargs, drawn=drawn, entire=entire
        )
        return PartialCentering(run, layout, dict(zip(run.sites, degrees)))

    def transport(self, rows: RowsOf | None = None, *args: Any, **kwargs: Any) -> Flow:
        """Return the whole map, from base noise to the vector of some rows, for one call."""
        self._require_setup()
        self._sync()
        return self._bind(self.layout.at(self._chosen(rows)), args, kwargs).transport()

    def density_at(self, rows: Mapping[str, Tensor]) -> FlowDensity:
        return self.density(rows)

    def density(self, rows: RowsOf | None = None, *args: Any, **kwargs: Any) -> FlowDensity:
        """Return the density of the unconstrained vector of some rows, for one call.

        Args:
            rows: For some plates the rows ``(B,)`` of a mini-batch: each counts N / B times in log
                densities and scores, which so estimate those of all rows. All rows where a plate
                is not named; plates without latents are passed over.
            *args: The model's arguments, for encoders; those of set-up if none are given.
            **kwargs: Its keyword arguments.
        """
        self._require_setup()
        self._sync()
        known = {plate: own for plate, own in (rows or {}).items() if plate in self.layout.sizes}
        return _density(self._bind(self.layout.at(self._chosen(known)), args, kwargs))

    def gathered(self, rows: Mapping[str, Tensor]) -> GatheredRows | None:
        from pyro_nfvi.guides._gathered_rows import Collect, GatheredRows, given

        self._require_setup()
        layout = self.layout.at({p: i for p, i in rows.items() if p in self.layout.sizes})
        if not layout.rows:
            return None
        collect = Collect()
        with torch.no_grad():
            self._bind(layout, take=collect)
        trained = tuple(one for one in collect.found if one.table.requires_grad)
        fixed = tuple(one for one in collect.found if not one.table.requires_grad)

        def density(rows: Mapping[str, Tensor], values: list[Tensor]) -> FlowDensity:
            now = replace(layout, rows={plate: rows[plate] for plate in layout.rows})
            take = given([*trained, *fixed], values)
            return _density(self._bind(now, take=take, trusted=True))

        return GatheredRows(layout, trained, fixed, density)

    @torch.no_grad()
    def check_encoders(self) -> None:
        """Run the encoders on the data of all rows, which steps that are recorded do not look at.

        Raises:
            DataError: An encoder's numbers are not finite; the row is named.
        """
        args, kwargs = self._given((), {})
        like = self._rows_tables().loc[0]
        with scoring(self):
            for plate in self._encoders().widths:
                for rows in torch.arange(self.layout.sizes[plate]).split(GUIDES.rows):
                    layout = self.layout.at({plate: rows})
                    data = self._data_of(layout, args, kwargs)
                    self._encoders().encode(layout, *data, like)

    def _data_of(
        self, layout: PlateLayout, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return the arguments that have the data of a layout's rows, fetched if none are given."""
        if self._encoders().widths and not (args or kwargs) and self._model is not None:
            return batch_arguments(self.model, layout.rows)
        return args, kwargs

    def optim_args(self, lr: float, **options: Any) -> Callable[[str], dict[str, Any]]:
        r"""Return options for an optimiser of Pyro's: smaller rates for what many rows share.

        .. math:: \eta_b = \eta\, \max(R_b^{-1/2},\; 0.01)

        for the flow that the R rows of a block share. A shift that all rows have in common counts R
        times: at one rate for all, its jitter hides from the globals how the rows follow them, and
        their standard deviations stay those of independent rows.

        Args:
            lr: The rate of tables and globals.
            **options: Other options of the optimiser.

        Example:
            >>> import pyro, torch
            >>> import pyro.distributions as dist
            >>> from pyro_nfvi import AutoPlateFlow
            >>> def model():
            ...     mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
            ...     with pyro.plate("groups", 100):
            ...         pyro.sample("z", dist.Normal(mean, 1.0))
            >>> guide = AutoPlateFlow(model).setup()
            >>> guide.optim_args(0.01)("AutoPlateFlow.flow.1.flows.0.net.skip")["lr"]
            0.001
            >>> optimiser = pyro.optim.Adam(guide.optim_args(0.01))
        """
        prefix = f"{self._pyro_name}.flow."

        def of(name: str) -> dict[str, Any]:
            share, name = 1.0, name.replace("$$$", ".")  # the store's own names have these
            if name.startswith(prefix):
                block = self.layout.blocks[int(name.removeprefix(prefix).partition(".")[0])]
                share = max(block.num_rows**-0.5, GUIDES.least_share)
            return {"lr": share * lr, **options}

        return of

    def start_at(self, loc: Tensor, scale: Tensor) -> None:
        """Move the guide, with its flows as they are, to a diagonal Gaussian.

        Args:
            loc: Mean ``(D,)`` of all rows, in the order of ``guide.latent``.
            scale: Standard deviations ``(D,)``.
        """
        self._require_setup()
        like = self._rows_tables().loc[0]
        for block in self.layout.blocks:
            parts = (self.layout.part(block, vector.to(like)) for vector in (loc, scale))
            self._rows_tables().set_gaussian(block.name, *parts)

    @property
    def takes_arrow(self) -> bool:
        """True where every row has numbers of its own, in the coordinates of the model."""
        blocks, tables = self.layout.blocks, self._rows_tables()
        return tables.degrees is None and all(tables.is_free(block.name) for block in blocks)

    def start_at_arrow(self, loc: Tensor, factor: ArrowFactor) -> None:
        r"""Move the guide, with its flows as they are, to the Gaussian :math:`N(m, TT^\top)`.

        The coupling of rows to the rows that enclose them is kept as a fixed part of the guide.

        Args:
            loc: Mean ``(D,)`` of all rows.
            factor: T, a block arrow over the blocks of ``guide.layout``, in their order.

        Raises:
            OptionError: The blocks are others; or rows have no numbers of their own.
        """
        self._require_setup()
        blocks = self.layout.blocks
        same = len(blocks) == len(factor.arrow.blocks) and all(
            torch.equal(one.positions, other.positions.to(one.positions))
            for one, other in zip(blocks, factor.arrow.blocks)
        )
        if not (same and self.takes_arrow):
            raise OptionError(
                f"{type(self).__name__}.start_at_arrow needs a block arrow over the guide's own "
                "blocks, and a free table for each; use start_at(loc, scale)."
            )
        scale = factor.arrow.join([t.diagonal(dim1=-2, dim2=-1) for t in factor.trils])
        self.start_at(loc, scale)
        self._rows_tables().set_coupling(blocks, factor.scaled(1 / scale))

    @torch.no_grad()
    def stretch_globals(self, shift: Tensor, ratio: Tensor, centre: Tensor) -> None:
        r"""Move globals z to :math:`c + \mathrm{shift} + \mathrm{ratio}\,(z - c)`.

        Rows that are coupled to globals follow them as before: their distribution given the globals
        stays the same.

        Args:
            shift: ``(D_g,)``.
            ratio: ``(D_g,)``, positive.
            centre: The point c, ``(D_g,)``.
        """
        self._require_setup()
        blocks, tables = self.layout.blocks, self._rows_tables()
        place = next(i for i, block in enumerate(blocks) if not block.plates)
        own = tables.at(blocks[place], None)
        loc, scale = own.loc.double().clone(), own.scale.double()
        moved = centre.to(loc) + shift.to(loc) + ratio.to(loc) * (loc - centre.to(loc))
        tables.set_gaussian(blocks[place].name, moved, ratio.to(loc) * scale)
        tables.follow(blocks, place, (moved - loc) / scale, ratio.to(loc))

    # --------------------------------------------------------------------------- the guide

    def _create_plates(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self.master is not None:
            return dict(super()._create_plates(*args, **kwargs))
        kept = self._prototype_frames
        self._prototype_frames = {
            plate: self._frame_now(frame, args, kwargs) for plate, frame in kept.items()
        }
        try:
            return dict(super()._create_plates(*args, **kwargs))
        finally:
            self._prototype_frames = kept

    def _frame_now(
        self, frame: CondIndepStackFrame, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> CondIndepStackFrame:
        """Return a plate with the rows that the model has for these arguments."""
        sizes = self._plates_of(args, kwargs).sizes
        size, full = sizes.get(frame.name, (frame.size, frame.full_size))
        return frame._replace(size=size, full_size=full)

    def _plates_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ModelPlates:
        """Return the model's plates for arguments of this form."""
        form = signature((args, kwargs))
        if form not in self._plates_by_form:
            try:
                found = model_plates(self.model, args, kwargs)
            except Exception:  # it shows where the model is run in earnest
                return ModelPlates()
            if len(self._plates_by_form) >= GUIDES.most_forms:
                self._plates_by_form.clear()
            self._plates_by_form[form] = found
        return self._plates_by_form[form]

    @property
    def amortised_plates(self) -> set[str]:
        """Plates none of whose blocks has a table."""
        return set() if self._semi_amortised else set(self._encoders().widths)

    def _layout_in(self, plates: Mapping[str, Any]) -> PlateLayout:
        """Return the layout of the rows that plates have drawn."""
        found: TensorDict = {}
        anew = set[str]()
        for name, size in self.layout.sizes.items():
            index, full = plates[name]._indices, int(plates[name].size)
            if full != size and name not in self.amortised_plates:
                raise self._other_size(name, full)
            if full != size:
                anew.add(name)
            if len(index) != size or not torch.equal(
                index, torch.arange(size, device=index.device)
            ):
                found[name] = index
        return self.layout.at(found, weighted=False, anew=frozenset(anew))

    def _other_size(self, plate: str, size: int) -> ModelError:
        return ModelError(
            f"The plate {plate!r} has {size} rows, and {type(self).__name__} was built for "
            f"{self.layout.sizes[plate]}: it has a table with a row for each. Build a guide for "
            f"these data; or give the plate an encoder (encoder={{{plate!r}: net}}), which knows "
            "new rows by their data."
        )

    @full_precision
    def _drawn(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TensorDict:
        self._sync()
        plates = self._create_plates(*args, **kwargs)
        layout = self._layout_in(plates)
        bound = self._bind(layout, args, kwargs)
        depth = max(len(site.batch_shape) for site in layout.space.records)
        eps = self._draw_noise(layout, plates, depth)
        z, ladjs = bound.by_rows(eps)
        self._watch_rows(z, layout)
        own = {block.sites[0]: ladj for block, ladj in zip(layout.blocks, ladjs)}
        lead, scored = z.shape[:-1], poutine.get_mask() is not False
        drawn = {}
        for site, u in zip(layout.space.records, layout.space.unpack(z).values()):
            batch = len(site.batch_shape)
            pad = lead + (1,) * (depth - batch) if lead else ()
            u = u.reshape(pad + site.unconstrained_shape)
            transform = bijection(site.support)
            value = transform(u)
            ladj = transform.log_abs_det_jacobian(u, value) if scored else None
            value = inside(site.support, value)
            with ExitStack() as stack:
                for frame in site.cond_indep_stack:
                    stack.enter_context(plates[frame.name])
                if ladj is not None:
                    cut = value.dim() - site.event_dim
                    each = ladj.flatten(cut).sum(-1) if ladj.dim() > cut else ladj
                    if site.name in own:
                        each = each + _per_cell(own[site.name], site, pad)
                    self._score(site.name, each)
                point = dist.Delta(value, event_dim=site.event_dim)
                drawn[site.name] = pyro.sample(site.name, point)
        return drawn

    def _score(self, name: str, ladj: Tensor) -> None:
        """Let a log-determinant count in the guide's density, within the plates of a site.

        At a site of its own: the divergence that ``TraceMeanField_ELBO`` has for a Delta leaves its
        log density out.
        """
        point = dist.Delta(torch.zeros_like(ladj), log_density=-ladj)
        pyro.sample(f"_{self._pyro_name}_{name}_ladj", point, infer={"is_auxiliary": True})

    def _draw_noise(self, layout: PlateLayout, plates: Mapping[str, Any], depth: int) -> Tensor:
        """Draw the noise of each site within its plates, as Pyro's ``AutoNormal`` draws it."""
        zero, parts = self._like().new_zeros(()), list[Tensor]()
        leads = list[torch.Size]()
        for site in layout.space.records:
            size, events = site.unconstrained_shape, len(site.unconstrained_shape)
            events -= len(site.batch_shape)
            with ExitStack() as stack:
                for frame in site.cond_indep_stack:
                    stack.enter_context(plates[frame.name])
                fn = dist.Normal(zero, torch.ones_like(zero)).expand(size).to_event(events)
                name = f"_{self._pyro_name}_{site.name}"
                noise = pyro.sample(name, fn, infer={"is_auxiliary": True})
            # Plates of a caller's, for particles, stand left of those of the model.
            leads.append(noise.shape[: max(noise.dim() - events - depth, 0)])
            parts.append(noise)
        lead = broadcast_shape(*leads)
        flat = [
            part.reshape(*own, -1).expand(*lead, -1) if own else part.reshape(-1).expand(*lead, -1)
            for own, part in zip(leads, parts)
        ]
        return torch.cat(flat, -1)

    def _watch_rows(self, z: Tensor, layout: PlateLayout) -> None:
        """Raise, in the backward pass, where the gradient of a row is not finite."""
        if not z.requires_grad or torch.jit.is_tracing():
            return

        def check(gradient: Tensor) -> None:
            bad = (
                ~gradient.isfinite().flatten(0, -2).all(0)
                if gradient.dim() > 1
                else ~gradient.isfinite()
            )
            if bool(bad.any()):
                raise ModelError(
                    "The gradient of the loss with respect to "
                    f"{self._name_of(int(bad.nonzero()[0]), layout)} is not finite. The step was "
                    "not taken. Look at the data of that row, for a scale that can reach 0, or for "
                    "a logarithm of a small number."
                )

        z.register_hook(check)

    def _name_of(self, place: int, layout: PlateLayout) -> str:
        """Name a coordinate of a vector by its site and its rows."""
        block = next(b for b in layout.blocks if bool((b.positions == place).any()))
        row = int((block.positions == place).any(-1).nonzero()[0])
        name = next(site.name for site in layout.space.records if place < site.stop)
        places = {plate: int(cell[row]) for plate, cell in layout.cells(block).items()}
        numbers = {p: int(layout.rows[p][i]) if p in layout.rows else i for p, i in places.items()}
        where = [f"row {number} of the plate {plate!r}" for plate, number in numbers.items()]
        return f"{name!r}" + (f" in {' and '.join(where)}" if where else "")

    # ------------------------------------------------------------------ draws and summaries

    @takes_turn
    @full_precision
    @torch.no_grad()
    def sample_posterior(
        self,
        num_samples: int | Sequence[int] = 1000,
        *args: Any,
        rows: RowsOf | None = None,
        deterministic: bool = False,
        **kwargs: Any,
    ) -> TensorDict:
        """Draw from the posterior of all rows, or of some, in chunks.

        Args:
            num_samples: Number of draws, or a shape of them.
            *args: The model's arguments (for encoders and deterministic sites, or before set-up).
            rows: For some plates the numbers of the rows to draw; of the others all are drawn. With
                data of other rows of an amortised plate these are numbers of the new rows.
            deterministic: Run the model at every draw and add its deterministic sites; only with
                all rows.
            **kwargs: The model's keyword arguments.

        Returns:
            Each site's draws ``(*num_samples, *site shape)``, with the named rows.

        Raises:
            OptionError: A plate that has no latents, or a row that it does not have.
        """
        self._summary_setup(args, kwargs)
        self._sync()
        shape, layout = draws_shape(num_samples), self._layout_of(rows, args, kwargs)
        with scoring(self):
            density = FlowDensity(self._bind(layout, args, kwargs).transport())
        count, most = math.prod(shape), chunk_rows(layout.dim)
        parts = []
        for start in range(0, count, most):
            z, _ = density.push(density.sample_base(min(most, count - start)))
            parts.append(layout.space.constrain(z)[0])
        if not parts:  # torch's bijections do not take empty batches
            like = self._like()
            parts = [{s.name: like.new_zeros(0, *s.shape) for s in layout.space.records}]
        draws = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if deterministic:
            if self._model is None:
                raise NotSetUpError(
                    "A guide loaded from a pickle has no model: deterministic sites cannot be made."
                )
            if layout.rows:
                raise OptionError(
                    f"{type(self).__name__}: deterministic=True needs draws of all rows, which the "
                    "model is run at; leave rows out."
                )
            draws |= deterministic_sites(self.model, draws, args, kwargs)
        return {name: value.reshape(shape + value.shape[1:]) for name, value in draws.items()}

    def _layout_of(
        self, rows: RowsOf | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> PlateLayout:
        """Return the layout of the rows that a caller names; of an amortised plate those given.

        Raises:
            OptionError: A row that the data, or the plate, does not have.
            ModelError: A plate with a table has other rows with these arguments.
        """
        chosen, anew, indexed = self._chosen(rows), set[str](), set[str]()
        for plate in self._encoders().widths if args or kwargs else ():
            size, full = self._encoders().size(plate, args, kwargs), self.layout.sizes[plate]
            index, new = chosen.get(plate), size != full and plate in self.amortised_plates
            if size is None or (index is None and size == full):
                continue
            # A mini-batch has the data of the rows that are named, whatever their numbers.
            if index is None or size == full or (new and size > int(index.max())):
                indexed.add(plate)
            if new:
                anew.add(plate)
                chosen[plate] = torch.arange(size) if index is None else index
                if plate in indexed:
                    check_rows(plate, chosen[plate], size)
        if (args or kwargs) and self._model is not None:
            for plate, (_, full) in self._plates_of(args, kwargs).sizes.items():
                named = plate in anew or plate in (rows or {})
                if full != self.layout.sizes.get(plate, full) and not named:
                    raise self._other_size(plate, full)
        return self.layout.at(
            chosen, weighted=False, anew=frozenset(anew), indexed=frozenset(indexed)
        )

    @takes_turn
    @full_precision
    def log_prob(
        self, values: Mapping[str, Tensor], *args: Any, rows: RowsOf | None = None, **kwargs: Any
    ) -> Tensor:
        """Score constrained values: ``(*b, *site shape)`` each -> ``(*b,)`` in nats.

        Args:
            values: Values of all sites; of sites in the named plates, at the named rows.
            *args: The model's arguments, for encoders; those of set-up if none are given.
            rows: For some plates the rows that the values are of. The density is the exact one of
                the globals and these rows, since rows are independent given what encloses them.
            **kwargs: The model's keyword arguments.
        """
        self._require_setup()
        self._sync()
        layout = self._layout_of(rows, args, kwargs)
        z, ladj = layout.space.unconstrain(values)
        with scoring(self):
            density = FlowDensity(self._bind(layout, args, kwargs).transport())
            return density.log_prob(z.to(self._like())) + ladj

    def _quantiles_of(
        self, layout: PlateLayout, levels: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> TensorPair:
        """Return quantiles of the coordinates of a layout: ``(D,)`` plus ``(q, D)``."""
        like = self._like()
        loc, offsets = like.new_zeros(layout.dim), like.new_zeros(len(levels), layout.dim)
        for part, cells in in_parts(layout, self.layout):
            places = layout.index(cells)
            loc[places], bound = self._bind(part, args, kwargs).spread()
            z, _ = bound.transport()(points(part, like))
            offsets[:, places] = column_quantiles(z, levels)
        return loc, offsets

    @torch.no_grad()
    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._require_setup()
        levels = torch.tensor(ONE_SD, dtype=torch.float64, device=self._like().device)
        with scoring(self):
            loc, (lower, median, upper) = self._quantiles_of(self.layout, levels, args, kwargs)
        return loc + median, (upper - lower) / 2

    @takes_turn
    @full_precision
    @torch.no_grad()
    def quantiles(
        self,
        quantiles: Sequence[float] | Tensor,
        *args: Any,
        rows: RowsOf | None = None,
        **kwargs: Any,
    ) -> TensorDict:
        """Return quantiles of each site, ``(number of levels, *site shape)``.

        Per unconstrained coordinate, from 4097 fixed, symmetric base points, then constrained.

        Args:
            quantiles: Levels in [0, 1].
            *args: The model's arguments, for encoders; those of set-up if none are given.
            rows: For some plates the rows; of the others all.
            **kwargs: The model's keyword arguments.

        Cost:
            4097 passes of the flow a row.
        """
        self._summary_setup(args, kwargs)
        self._sync()
        levels = torch.as_tensor(quantiles, dtype=torch.float64, device=self._like().device)
        if levels.dim() != 1 or not bool(((levels >= 0) & (levels <= 1)).all()):
            raise OptionError(f"quantiles needs a list of levels in [0, 1]; got {quantiles!r}.")
        layout = self._layout_of(rows, args, kwargs)
        with scoring(self):
            loc, offsets = self._quantiles_of(layout, levels, args, kwargs)
        return layout.space.constrain(loc + offsets)[0]

    @takes_turn
    @full_precision
    @torch.no_grad()
    def mean(self, *args: Any, rows: RowsOf | None = None, **kwargs: Any) -> TensorDict:
        """Return the posterior mean of each constrained site, over the fixed base points.

        Args:
            *args: The model's arguments, for encoders; those of set-up if none are given.
            rows: For some plates the rows; of the others all.
            **kwargs: The model's keyword arguments.
        """
        self._summary_setup(args, kwargs)
        self._sync()
        layout, like = self._layout_of(rows, args, kwargs), self._like()
        sites = {s.name: like.new_zeros(math.prod(s.shape)) for s in layout.space.records}
        with scoring(self):
            for part, cells in in_parts(layout, self.layout):
                z, _ = self._bind(part, args, kwargs).transport()(points(part, like))
                values = part.space.constrain(z)[0]
                for name, places in layout.value_index(cells).items():
                    sites[name][places] = values[name].mean(0).reshape(-1)
        return {s.name: sites[s.name].reshape(s.shape) for s in layout.space.records}

    # ------------------------------------------------------------------ copies and state

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        found = super()._apply(fn, *args, **kwargs)
        if self.is_set_up:
            self.layout = replace(self.layout, space=self.latent, _sized={})
        return found

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.update(_arguments=None, create_plates=None, _select={}, _plates_by_form={})
        if self.is_set_up:
            state.update(_recipe=self._recipe.described(), _local=None)
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> VectorGuide:
        clone = super().__deepcopy__(memo)
        for name in ("_arguments", "create_plates", "_select"):
            clone.__dict__[name] = self.__dict__[name]
        return clone


def _density(bound: BoundRows) -> FlowDensity:
    noise = None if bound.weight is None else WeightedNoise(bound.weight)
    return FlowDensity(bound.transport(), noise)


def _no_model(*args: Any, **kwargs: Any) -> None:
    """Stand for the model between calls."""


def _for_one(term: str) -> str:
    """Return what does for one coordinate what a coupling does for several."""
    name, star, count = term.strip().partition("*")
    return _FOR_ONE.get(name.strip(), name.strip()) + star + count


def _takes(formula: str, option: str) -> bool:
    try:
        check_formula(formula, {option: None})
    except OptionError:
        return False
    return True


def _per_cell(ladj: Tensor, site: LatentSite, pad: tuple[int, ...]) -> Tensor:
    """Bring a number for each row, ``(*b, R)``, to the batch shape of a site."""
    axes = {
        len(site.batch_shape) + frame.dim
        for frame in site.cond_indep_stack
        if frame.dim is not None
    }
    shape = [n if i in axes else 1 for i, n in enumerate(site.batch_shape)]
    # A batch dimension without a plate is within the row: its cells share the row's number.
    shared = math.prod(n for i, n in enumerate(site.batch_shape) if i not in axes)
    return (ladj / shared).reshape([*pad, *shape])
