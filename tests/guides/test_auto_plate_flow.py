"""The guide of plates: Pyro's own guide at the start, its densities, its rows, its errors."""

import copy
import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from guides.models import FREE_SUPPORTS, disturb, mixed
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoGuideList, AutoNormal, init_to_median
from torch import nn

from pyro_nfvi import AutoPlateFlow
from pyro_nfvi.errors import DataError, ModelError, ModelWarning, NotSetUpError, OptionError
from pyro_nfvi.flows._block_arrow import ArrowBlock, ArrowFactor, BlockArrow


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()


Y = torch.linspace(-2, 3, 12).double().square()


def groups(y=Y, size=4):
    """A centred hierarchy with two local sites a row, of which a mini-batch is drawn."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    sd = pyro.sample("sd", dist.HalfNormal(torch.tensor(2.0)))
    with pyro.plate("groups", len(y), subsample_size=size) as rows:
        scale = pyro.sample("scale", dist.Gamma(torch.tensor(3.0), 2.0))
        z = pyro.sample("z", dist.Normal(mean, sd.unsqueeze(-1)).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(-1), scale), obs=y[rows])


def nested(y=Y):
    """Floors in counties, households beside: nested and crossed plates, one of them subsampled."""
    sd = pyro.sample("sd", dist.HalfNormal(torch.tensor(1.0)))
    counties = pyro.plate("counties", 6, subsample_size=3, dim=-1)
    floors = pyro.plate("floors", 2, dim=-2)
    with floors:
        level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
    with counties as rows:
        a = pyro.sample("a", dist.Normal(torch.zeros(()), sd))
        with floors:
            b = pyro.sample("b", dist.Normal(a + level, sd))
            pyro.sample("y", dist.Normal(b, 1.0), obs=y.reshape(2, 6)[:, rows])


def whole(y=Y):
    groups(y, len(y))


MODELS = {"groups": groups, "whole": whole, "nested": nested, "mixed": lambda y=Y: mixed()}
VECTORISED = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 2}
ELBOS = {
    "Trace": Trace_ELBO,
    "Trace, 3 vectorised": lambda: Trace_ELBO(**VECTORISED),
    "TraceGraph": TraceGraph_ELBO,
}


def normal(model, **options):
    return AutoNormal(model, init_loc_fn=init_to_median, **options)


def coordinates(guide, latent, of):
    """What Pyro's guide has for each coordinate of ours, from its parameters by site."""
    return torch.cat([of(guide, name).reshape(-1) for name in latent.sites])


def pyros_grads(guide, latent, part):
    params = dict(guide.named_parameters())
    grads = [params[f"{part}.{name}_unconstrained"].grad for name in latent.sites]
    return torch.cat([grad.reshape(-1) for grad in grads])


def our_grads(guide, parts):
    found = torch.empty(guide.latent.dim)
    for block, table in zip(guide.layout.blocks, parts):
        found[block.positions] = table.grad
    return found


def set_up(build, model):
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    guide = build(model)
    guide(Y)
    return guide


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("model", MODELS)
def test_starts_as_pyros_normal_guide_with_the_same_noise(model, elbo):
    # One set-up draws other rows than the other: start both at the same initial point.
    reference, guide = (set_up(b, MODELS[model]) for b in (normal, AutoPlateFlow))
    with torch.no_grad():
        for block, table in zip(guide.layout.blocks, guide.tables.loc):
            locs = coordinates(reference, guide.latent, lambda g, n: getattr(g.locs, n))
            table.copy_(locs[block.positions])
    losses, states = [], []
    for one in (reference, guide):
        one.zero_grad()
        pyro.set_rng_seed(2)
        losses.append(ELBOS[elbo]().loss_and_grads(MODELS[model], one, Y))
        states.append(torch.get_rng_state())
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert torch.equal(*states)
    for part, own in (("locs", guide.tables.loc), ("scales", guide.tables.raw_scale)):
        torch.testing.assert_close(
            our_grads(guide, own), pyros_grads(reference, guide.latent, part),
            rtol=1e-9, atol=1e-11,
        )  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_all_bounds_of_pyro_are_one_for_the_same_noise(model):
    guide = trained(MODELS[model], 0.1)
    losses = []
    for elbo in (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, RenyiELBO):
        options = {"num_particles": 2} if elbo is RenyiELBO else {}
        pyro.set_rng_seed(3)
        losses.append(elbo(**options).loss(MODELS[model], guide, Y))
    # The divergence that Pyro has for a Delta leaves out its density: it may hold none.
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    assert losses[2] == pytest.approx(losses[0], rel=1e-10)
    assert math.isfinite(losses[3])


def trained(model=groups, size=0.3, **options):
    """A guide with parameters far from their start, and rows that differ."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    guide = AutoPlateFlow(model, **options).setup(Y)
    disturb(guide, size)
    return guide


def rows_of(trace, guide):
    return {plate: trace.nodes[plate]["value"] for plate in guide.layout.sizes}


@pytest.mark.parametrize("model", MODELS)
def test_pyros_score_of_the_guide_is_the_weighted_density(model):
    guide = trained(MODELS[model])
    for seed in range(3):
        pyro.set_rng_seed(seed)
        trace = poutine.trace(guide).get_trace(Y)
        rows = rows_of(trace, guide)
        layout = guide.layout.at(rows)
        values = {name: trace.nodes[name]["value"] for name in guide.latent.sites}
        z = layout.space.pack(values)
        _, ladj = layout.space.constrain(z, weighted=True)
        expected = guide.density(rows).log_prob(z) - ladj
        torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-8, atol=1e-8)
        # Without the scale of subsampling: the exact density of the globals and these rows.
        trace.compute_log_prob()
        with torch.no_grad():
            every = sum(
                site["unscaled_log_prob"].sum()
                for site in trace.nodes.values()
                if site["type"] == "sample"
            )
        found = guide.log_prob(values, rows=rows)
        torch.testing.assert_close(found, every, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("model", MODELS)
def test_pushed_scores_are_the_gradient_of_the_density(model):
    guide = trained(MODELS[model], 0.1, local="nsf-ar|affine")
    rows = {plate: torch.arange(n - 1, 0, -2) for plate, n in guide.layout.sizes.items()}
    for chosen in (None, rows):
        density = guide.density(chosen)
        eps = density.sample_base(4)
        z, log_q, score = density.push_with_score(eps)
        torch.testing.assert_close(density.push(eps), (z, log_q))
        point = z.detach().requires_grad_()
        again = density.log_prob(point)
        (expected,) = torch.autograd.grad(again.sum(), point)
        torch.testing.assert_close(again, log_q, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(score, expected, rtol=1e-6, atol=1e-6)


def test_a_mini_batch_estimates_the_density_of_all_rows():
    guide = trained(groups)
    z = guide.density().push(guide.density().sample_base())[0].detach()
    pieces = torch.arange(12).reshape(3, 4)
    found = [
        guide.density({"groups": rows}).log_prob(z[guide.layout.index({"groups": rows})])
        for rows in pieces
    ]
    torch.testing.assert_close(torch.stack(found).mean(), guide.density().log_prob(z))


@pytest.mark.parametrize("model", ["groups", "nested"])
def test_rows_alone_are_drawn_scored_and_summed_up_as_among_all(model):
    guide = trained(MODELS[model])
    plate = next(iter(guide.layout.sizes))
    rows = {plate: [5, 0] if model == "groups" else [1]}
    everything, some = guide.quantiles([0.2, 0.5]), guide.quantiles([0.2, 0.5], rows=rows)
    means, mean = guide.mean(), guide.mean(rows=rows)
    index = torch.tensor(rows[plate])
    for name, site in guide.latent.sites.items():
        axes = [f.dim for f in site.cond_indep_stack if f.name == plate]
        for full, part in ((everything[name], some[name]), (means[name], mean[name])):
            at = full.index_select(axes[0] - site.event_dim, index) if axes else full
            torch.testing.assert_close(part, at)
    draws = guide.sample_posterior(3000, rows=rows)
    for name, value in guide.median(rows=rows).items():
        # 3000 draws: the share below the median has an sd of 0.009; five of these, and the seed
        # is fixed.
        below = (draws[name] < value).double().mean(0)
        torch.testing.assert_close(below, torch.full_like(below, 0.5), rtol=0, atol=0.05)
    log_q = guide.log_prob(draws, rows=rows)
    assert log_q.shape == (3000,)
    # Given the globals, rows are independent: a marginal over other rows, not a slice.
    assert log_q.isfinite().all()


def test_many_rows_are_summed_up_in_parts(monkeypatch):
    from pyro_nfvi.guides import _bound_rows as module

    guide = trained(nested)
    expected = guide.quantiles([0.3]), guide.mean()
    small = copy.copy(module.GUIDES)
    object.__setattr__(small, "numbers", 4097 * 5)
    monkeypatch.setattr(module, "GUIDES", small)
    torch.testing.assert_close((guide.quantiles([0.3]), guide.mean()), expected)


class Net(nn.Module):
    """An encoder of two tensors."""

    def __init__(self, width=3, inputs=1):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, width)).double()

    def forward(self, *data):
        return self.layers(torch.stack(data, -1))


def amortised(y, size=None, batch=None):
    """The hierarchy with data of rows as arguments: all, with indices, or a batch alone."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 3.0))
    with pyro.plate("groups", size or len(y), subsample_size=batch) as rows:
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        data = y if len(y) == len(rows) else y[rows]
        pyro.sample("y", dist.Normal(z, 0.5), obs=data)


@pytest.mark.parametrize("semi", [False, True])
def test_an_encoder_gives_location_scale_and_code_of_a_row(semi):
    guide = trained(amortised, encoder={"groups": Net()}, semi_amortised=semi)
    tables = {name: tuple(p.shape) for name, p in guide.tables.named_parameters()}
    assert tables["loc.1"] == ((12, 1) if semi else (1, 1))
    assert ("codes.1" in tables) == semi
    rows = {"groups": [3, 8]}
    values = guide.sample_posterior(5, Y, rows=rows)
    # The data of all rows, gathered; or of these rows.
    given = Y[[3, 8]]
    torch.testing.assert_close(
        guide.log_prob(values, Y, rows=rows), guide.log_prob(values, given, rows=rows)
    )
    other = guide.quantiles([0.5], Y.flip(0), rows=rows)["z"]
    assert not torch.allclose(other, guide.quantiles([0.5], Y, rows=rows)["z"])


def test_new_rows_of_an_amortised_plate_are_known_by_their_data():
    guide = trained(amortised, encoder={"groups": Net()})
    new = torch.linspace(-1, 3, 7)
    assert guide.sample_posterior(5, new)["z"].shape == (5, 7)
    both = guide.quantiles([0.5], torch.cat([Y, new]))["z"]
    torch.testing.assert_close(both[:, :12], guide.quantiles([0.5], Y)["z"])
    torch.testing.assert_close(both[:, 12:], guide.quantiles([0.5], new)["z"])
    loss = Trace_ELBO().loss_and_grads(amortised, guide, new)
    assert math.isfinite(loss)
    found = Predictive(amortised, guide=guide, num_samples=4)(new)
    assert found["z"].shape == (4, 7)


@pytest.mark.parametrize("semi", [False, True])
def test_rows_of_data_come_in_the_order_that_is_asked_for(semi):
    """Also where all of them are asked for, so that their number does not tell a mini-batch."""
    guide = trained(amortised, encoder={"groups": Net()}, semi_amortised=semi)
    order = torch.randperm(12)
    for ask in (
        lambda **rows: guide.quantiles([0.3], Y, **rows)["z"][0],
        lambda **rows: guide.mean(Y, **rows)["z"],
    ):
        torch.testing.assert_close(ask(rows={"groups": order}), ask()[order])
    new = torch.linspace(-1, 3, 7)
    rows = [6, 0, 3]
    if semi:
        with pytest.raises(ModelError, match="'groups' has 7 rows.*table"):
            guide.mean(new)
        return
    torch.testing.assert_close(
        guide.mean(new, rows={"groups": rows})["z"], guide.mean(new)["z"][rows]
    )
    for bad, says in (([0, 7], "needs the data of its rows"), ([-1], "got -1"), ([2, 2], "twice")):
        with pytest.raises(OptionError, match=says):
            guide.sample_posterior(3, new, rows={"groups": bad})


def test_batches_of_an_amortised_plate_count_for_all_of_it():
    # The same loss in expectation: batches that cover the data, with the last one ragged.
    guide = trained(amortised, encoder={"groups": Net()})
    pyro.set_rng_seed(3)
    trace = poutine.trace(guide).get_trace(Y[:5], size=12, batch=5)
    assert trace.nodes["z"]["value"].shape == (5,)
    assert trace.nodes["z"]["scale"] == pytest.approx(12 / 5)
    for batch in (Y[:5], Y[5:10], Y[10:]):
        loss = Trace_ELBO().loss_and_grads(amortised, guide, batch, size=12, batch=len(batch))
        assert math.isfinite(loss)


def by_index(y, index, size=12):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 3.0))
    with pyro.plate("groups", size, subsample=index):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def test_given_rows_meet_their_own_latents_and_the_last_batch_may_be_small():
    plates = lambda y, index, size=12: pyro.plate("groups", size, subsample=index)  # noqa: E731
    guide = AutoPlateFlow(by_index, create_plates=plates)
    svi = SVI(by_index, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for index in torch.arange(12).split(5):
        svi.step(Y[index], index)
    before = guide.tables.loc[1].detach().clone()
    Trace_ELBO().loss_and_grads(by_index, guide, Y[[7, 2]], torch.tensor([7, 2]))
    grad = guide.tables.loc[1].grad.abs().sum(-1)
    guide.zero_grad()
    Trace_ELBO().loss_and_grads(by_index, guide, Y[[7, 2]], torch.tensor([7, 2]))
    grad = guide.tables.loc[1].grad.abs().sum(-1)
    assert (grad > 0).nonzero().reshape(-1).tolist() == [2, 7]
    assert torch.equal(before, guide.tables.loc[1])
    with pytest.raises(ModelError, match="given the rows of the plate 'groups'.*create_plates"):
        AutoPlateFlow(by_index).setup(Y[:5], torch.arange(5))


class Mixing(Net):
    def forward(self, x):
        return super().forward(x - x.mean())


class Flat(Net):
    def forward(self, x):
        return super().forward(x).sum(-1)


class Growing(Net):
    def forward(self, x):
        return super().forward(x).repeat(1, 2 if len(x) == 7 else 1)


def test_bad_encoders_are_named():
    for net, says in (
        (Mixing(), "mixes rows"),
        (Flat(), r"return a tensor \(12, k\).*got \(12,\)"),
    ):
        with pytest.raises(OptionError, match=f"'groups'.*{says}|{says}"):
            AutoPlateFlow(amortised, encoder={"groups": net}).setup(Y)
    net = torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(5, 2))
    with pytest.raises(OptionError, match=r"'groups' cannot take .* \(12,\): .*12x1 and 5x2"):
        AutoPlateFlow(amortised, encoder={"groups": net}).setup(Y)
    normalised = torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.BatchNorm1d(1))
    with pytest.warns(ModelWarning, match="'groups' has batch normalisation"):
        AutoPlateFlow(amortised, encoder={"groups": normalised}).setup(Y)
    pyro.clear_param_store()
    guide = AutoPlateFlow(amortised, encoder={"groups": Growing()}).setup(Y)
    with pytest.raises(OptionError, match="returned 3 numbers a row.*and 6 now"):
        guide.sample_posterior(3, torch.zeros(7))
    with pytest.raises(OptionError, match="no latent in a plate of this name.*'groups'"):
        AutoPlateFlow(amortised, encoder={"cells": Net()}).setup(Y)
    with pytest.raises(OptionError, match="needs the encoder of the plate 'a' to be a torch.nn"):
        AutoPlateFlow(amortised, encoder={"a": 3})
    with pytest.raises(OptionError, match="no argument of the model is a tensor with 12 or 4"):
        AutoPlateFlow(lambda y: groups(), encoder={"groups": Net()}).setup(torch.zeros(5))
    guide = trained(amortised, encoder={"groups": Net()})
    with pytest.raises(OptionError, match="needs the data of its rows.*got 5 rows"):
        guide.sample_posterior(3, torch.zeros(5), rows={"groups": [3, 9]})
    data = Y.clone()
    data[3] = math.nan
    with pytest.raises(DataError, match="not finite for row 3: its data are not finite there"):
        guide.sample_posterior(3, data)


def test_rows_of_a_plate_can_be_with_the_globals():
    """And start all the same as Pyro's normal guide, with the same noise."""

    def joined(model):
        return AutoPlateFlow(model, joint=["floors"])

    reference, guide = (set_up(b, nested) for b in (normal, joined))
    assert [(b.name, tuple(b.positions.shape)) for b in guide.layout.blocks] == [
        ("", (1, 3)), ("counties", (6, 3))
    ]  # fmt: skip
    with torch.no_grad():
        for block, table in zip(guide.layout.blocks, guide.tables.loc):
            locs = coordinates(reference, guide.latent, lambda g, n: getattr(g.locs, n))
            table.copy_(locs[block.positions])
    losses = []
    for one in (reference, guide):
        pyro.set_rng_seed(2)
        losses.append(Trace_ELBO().loss(nested, one, Y))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    trained = guide
    disturb(trained)
    draws = trained.sample_posterior(4, rows={"counties": [5, 1]})
    assert {n: tuple(x.shape) for n, x in draws.items()} == {
        "sd": (4,), "level": (4, 2, 1), "a": (4, 2), "b": (4, 2, 2)
    }  # fmt: skip
    density = trained.density()
    z, log_q = density.push(density.sample_base(3))
    torch.testing.assert_close(density.log_prob(z), log_q, rtol=1e-7, atol=1e-7)
    pyro.set_rng_seed(3)
    trace = poutine.trace(trained).get_trace(Y)
    assert set(trace.nodes["b"]["value"].shape) == {2, 3}
    for joint, says in (
        (["counties"], "'counties', which subsamples"),
        (["cells"], "'cells', which the model does not have"),
        ("floors", r"joint=\['floors'\]"),
    ):
        pyro.clear_param_store()
        with pytest.raises(OptionError, match=says):
            AutoPlateFlow(nested, joint=joint).setup(Y)


def test_bad_rows_and_sizes_are_named():
    guide = trained(groups)
    for rows, says in (
        ({"groups": [3, 12]}, "rows 0 to 11; got 12"),
        ({"cells": [0]}, "'cells'"),
        ({"groups": "all"}, "whole numbers; got str"),
        ({"groups": []}, "No row of the plate"),
    ):
        for call in (lambda r: guide.sample_posterior(3, rows=r), lambda r: guide.median(rows=r)):
            with pytest.raises(OptionError, match=says):
                call(rows)
    with pytest.raises(ModelError, match="'groups' has 20 rows.*built for 12.*encoder"):
        guide(torch.zeros(20))
    for call in (guide.sample_posterior, guide.mean):
        with pytest.raises(ModelError, match="'groups' has 20 rows.*built for 12.*encoder"):
            call(*([3] if call == guide.sample_posterior else []), torch.zeros(20))
    pyro.clear_param_store()
    with pytest.warns(ModelWarning, match="drawn at random, 4 of 12.*data of 4 rows"):
        AutoPlateFlow(amortised).setup(Y[:4], size=12, batch=4)


def test_a_row_with_a_gradient_that_is_not_finite_is_named():
    data = Y.clone()
    data[9] = math.nan

    def model(y):
        with pyro.plate("groups", 12):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.factor("data", -((z - y) ** 2))

    guide = AutoPlateFlow(model).setup(Y)
    with (
        pyro.validation_enabled(False),
        pytest.raises(
            ModelError, match="with respect to 'z' in row 9 of the plate 'groups' is not finite"
        ),
    ):
        Trace_ELBO().loss_and_grads(model, guide, data)


def reloaded(guide):
    file = io.BytesIO()
    torch.save(guide, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_a_row_with_missing_data_is_named():
    data = Y.clone()
    data[9] = math.nan
    with pytest.raises(ModelError, match="1 NaN of 12 values, the first in row 9 of the plate"):
        AutoPlateFlow(groups).setup(data, 12)


def test_copies_files_and_other_precisions_are_the_same_guide():
    guide = trained(nested, 0.1)
    values = guide.sample_posterior(4)
    expected = guide.log_prob(values)
    clone = copy.deepcopy(guide)
    torch.testing.assert_close(clone.log_prob(values), expected)
    disturb(clone)
    torch.testing.assert_close(guide.log_prob(values), expected)
    torch.testing.assert_close(reloaded(guide).log_prob(values), expected)
    informed = trained(nested, 0.1, model_informed=True)
    with pytest.raises(NotSetUpError, match="loaded without its model.*load_state_dict"):
        reloaded(informed).log_prob(values, Y)
    pyro.clear_param_store()
    again = AutoPlateFlow(nested).setup(Y)
    again.load_state_dict(guide.state_dict())
    torch.testing.assert_close(again.log_prob(values), expected)
    single = guide.float()
    found = single.log_prob({name: value.float() for name, value in values.items()})
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-2)


def test_two_guides_in_one_process_train_apart():
    pyro.clear_param_store()
    guides = []
    for _ in range(2):
        with pyro.get_param_store().scope():
            guide = AutoPlateFlow(groups)
            svi = SVI(groups, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
            before = guide.setup(Y).tables.loc[0].detach().clone()
            for _ in range(3):
                svi.step(Y)
            assert not torch.equal(before, guide.tables.loc[0])
            guides.append(guide)
    assert not torch.equal(guides[0].tables.loc[0], guides[1].tables.loc[0])
    # A second guide of the same name continues from the store, as Pyro's do.
    first = AutoPlateFlow(groups)
    SVI(groups, first, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO()).step(Y)
    second = AutoPlateFlow(groups)
    second(Y)
    assert second.tables.loc[1] is first.tables.loc[1]


def test_part_of_a_list_of_guides():
    guide = AutoGuideList(groups)
    guide.append(AutoNormal(poutine.block(groups, expose=["mean", "sd"])))
    guide.append(AutoPlateFlow(poutine.block(groups, expose=["z", "scale"])))
    svi = SVI(groups, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(3):
        assert math.isfinite(svi.step(Y))
    assert set(guide.median(Y)) == {"mean", "sd", "z", "scale"}
    trace = poutine.trace(guide).get_trace(Y)
    assert trace.nodes["z"]["value"].shape == (4, 2)


def test_predictive_draws_data_of_drawn_rows():
    guide = trained(groups)
    found = Predictive(groups, guide=guide, num_samples=5, return_sites=("z", "y", "mean"))(Y)
    assert found["z"].shape == (5, 4, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"local": None}, {"local": "iaf*2"}, {"local": "realnvp*2"}, {"local": "planar*4"},
        {"flow": None}, {"code_dim": 0}, {"local_options": {"hidden_dim": 5, "bins": 4}},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_the_flows(options):
    guide = trained(nested, **options)
    density = guide.density()
    z, log_q = density.push(density.sample_base(3))
    torch.testing.assert_close(density.log_prob(z), log_q, rtol=1e-7, atol=1e-7)


def test_wrong_options_are_named():
    for options, says in (
        ({"local": 3}, "needs local to be a formula"),
        ({"local": "nfs"}, "Unknown flow 'nfs'"),
        ({"code_dim": -1}, "code_dim"),
        ({"select": {"groups": len}}, "select has the plate 'groups', which has no encoder"),
        ({"init_scale": 0.0}, "init_scale > 0"),
    ):
        with pytest.raises(OptionError, match=says):
            AutoPlateFlow(groups, **options)


def conjugate(y, batch):
    """Normal groups around a normal mean; all scales known, so that the posterior is normal."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 2.0))
    with pyro.plate("groups", len(y), subsample_size=batch) as rows:
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(z, 0.7), obs=y[rows])


def exact(y, sd=0.7, spread=1.0, prior=2.0):
    """Means and covariance of the mean and of the groups, from the joint precision."""
    n = len(y)
    precision = torch.zeros(n + 1, n + 1)
    precision[0, 0] = 1 / prior**2 + n / spread**2
    precision[0, 1:] = precision[1:, 0] = -1 / spread**2
    precision[1:, 1:] = torch.eye(n) * (1 / spread**2 + 1 / sd**2)
    covariance = torch.linalg.inv(precision)
    right = torch.cat([torch.zeros(1), y / sd**2])
    return covariance @ right, covariance


@pytest.mark.slow
def test_mini_batches_find_the_posterior_of_a_conjugate_hierarchy():
    pyro.set_rng_seed(0)
    y = 1.5 + 1.2 * torch.randn(60)
    guide = AutoPlateFlow(conjugate, local="affine")
    optimizer = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.03}, "gamma": 0.9992}
    )
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(conjugate, guide, optimizer, elbo)
    for _ in range(6000):
        svi.step(y, 20)
        optimizer.step()
    loc, covariance = exact(y)
    sd = covariance.diagonal().sqrt()
    draws = guide.sample_posterior(8000)
    z = torch.cat([draws["mean"].unsqueeze(-1), draws["z"]], -1)
    # sds of 8000 draws are known to 0.8 %; locations to 0.01 sd.
    assert ((z.mean(0) - loc).abs() / sd).max() < 0.12
    assert (z.std(0) / sd - 1).abs().max() < 0.05
    # The mean and the groups hang together as in the posterior.
    correlation = torch.corrcoef(z.T)[0, 1:].mean()
    expected = (covariance[0, 1:] / (sd[0] * sd[1:])).mean()
    assert correlation == pytest.approx(float(expected), abs=0.04)


def test_a_compiled_bound_and_a_model_without_globals():
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    decoder = nn.Linear(2, 5).double()

    def autoencoder(x, size=30):
        pyro.module("decoder", decoder)
        with pyro.plate("data", size, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    data = torch.randn(30, 5)
    guide = AutoPlateFlow(autoencoder, encoder={"data": net})
    svi = SVI(autoencoder, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(batch) for _ in range(15) for batch in data.split(12)]
    assert sum(losses[-9:]) < 0.8 * sum(losses[:9])
    assert guide.sample_posterior(3, torch.randn(7, 5))["z"].shape == (3, 7, 2)
    pyro.clear_param_store()
    guide = AutoPlateFlow(whole)
    elbo = JitTrace_ELBO(ignore_jit_warnings=True)
    svi = SVI(whole, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    assert all(math.isfinite(svi.step(Y)) for _ in range(3))


@pytest.mark.parametrize("name", FREE_SUPPORTS)
def test_rows_of_every_support(name):
    support, shape = FREE_SUPPORTS[name]

    def model(y):
        level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("rows", 4, subsample_size=2):
            x = pyro.sample("x", dist.ImproperUniform(support, (2,), shape))
            z = pyro.sample("z", dist.Normal(level, 1.0))
            total = x.reshape(2, -1).square().sum(-1)
            pyro.factor("data", -0.5 * (total - z).square())

    pyro.set_rng_seed(0)
    guide = AutoPlateFlow(model, local="affine").setup(Y)
    disturb(guide, 0.1)
    trace = poutine.trace(guide).get_trace(Y)
    rows = {"rows": trace.nodes["rows"]["value"]}
    layout = guide.layout.at(rows)
    assert layout.block("rows").positions.shape == (2, layout.block("rows").width)
    values = {site: trace.nodes[site]["value"] for site in guide.latent.sites}
    assert bool(torch.as_tensor(support.check(values["x"])).all())
    z = layout.space.pack(values)
    _, ladj = layout.space.constrain(z, weighted=True)
    expected = guide.density(rows).log_prob(z) - ladj
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-6, atol=1e-6)
    draws = guide.sample_posterior(3)
    assert draws["x"].shape[:2] == (3, 4)
    assert guide.log_prob(draws).isfinite().all()
    assert guide.median()["x"].shape == draws["x"].shape[1:]


def test_what_many_rows_share_has_smaller_rates():
    guide = trained(nested)
    rates = guide.optim_args(0.1, betas=(0.9, 0.99))
    names = {block.name: f"AutoPlateFlow.flow.{i}.flows.0.net.skip" for i, block
             in enumerate(guide.layout.blocks)}  # fmt: skip
    assert rates(names["floors/counties"]) == {"lr": 0.1 * 12**-0.5, "betas": (0.9, 0.99)}
    assert rates(names[""])["lr"] == rates("AutoPlateFlow.tables$$$loc.1")["lr"] == 0.1
    pyro.clear_param_store()
    seen = []
    guide = AutoPlateFlow(nested)
    svi = SVI(
        nested, guide,
        pyro.optim.Adam(lambda name: seen.append(name) or guide.optim_args(0.1)(name)),
        Trace_ELBO(),
    )  # fmt: skip
    svi.step(Y)
    shares = {guide.optim_args(1.0)(name)["lr"] for name in seen if "Flow.flow." in name}
    assert shares == {1.0, 2**-0.5, 6**-0.5, 12**-0.5}


@pytest.mark.slow
def test_globals_have_the_spread_of_the_posterior_though_rows_are_many():
    pyro.set_rng_seed(0)
    y = 1.5 + 1.2 * torch.randn(1500)
    pyro.clear_param_store()
    guide = AutoPlateFlow(conjugate, flow=None, local="affine").setup(y, 200)
    # From the best independent rows, where the spread of the mean is too small by far.
    rows = 1 / (1 + 1 / 0.49)
    loc = torch.cat([y.mean().reshape(1), rows * (y.mean() + y / 0.49)])
    sd = torch.cat([torch.tensor([1500**-0.5]), torch.full((1500,), rows**0.5)])
    guide.start_at(loc, sd)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(conjugate, guide, pyro.optim.Adam(guide.optim_args(0.005)), elbo)
    found = []
    for step in range(1400):
        svi.step(y, 200)
        if step >= 1000 and step % 20 == 0:
            found.append(guide.sample_posterior(2000, rows={"groups": [0]})["mean"].std())
    covariance = 1 / (1 / 4.0 + 1500 / 1.49)
    # 20 times 2000 draws; the rate does not decay, so that it moves about.
    assert torch.stack(found).mean() == pytest.approx(covariance**0.5, rel=0.1)
    assert covariance**0.5 > 1.15 * 1500**-0.5


def test_a_block_arrow_start_is_that_gaussian():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("counties", 3, dim=-2):
            county = pyro.sample("county", dist.Normal(mean[..., 0], 1.0))
            with pyro.plate("houses", 4, dim=-1):
                house = pyro.sample("house", dist.Normal(county, 1.0))
                pair = torch.stack([house, house], -1)
                both = pyro.sample("both", dist.Normal(pair, 1.0).to_event(1))
                pyro.sample("y", dist.Normal(both, 1.0).to_event(1), obs=y)

    y = torch.randn(3, 4, 2)
    pyro.clear_param_store()
    guide = AutoPlateFlow(model).setup(y)
    place = {block.name: i for i, block in enumerate(guide.layout.blocks)}
    arrow = BlockArrow.tree(
        [
            ArrowBlock(b.positions, tuple((place[name], rows) for name, rows in b.parents.items()))
            for b in guide.layout.blocks
        ]
    )
    gen, start = torch.Generator().manual_seed(0), ArrowFactor.diagonal(arrow, torch.ones(41))
    factor = ArrowFactor(
        arrow,
        tuple((t + 0.3 * torch.rand(t.shape, generator=gen)).tril() for t in start.trils),
        tuple(tuple(torch.randn(w.shape, generator=gen) for w in mine) for mine in start.weights),
    )
    loc, eps = torch.randn(41, generator=gen), torch.randn(5, 41, generator=gen)
    guide.start_at_arrow(loc, factor)
    z, log_q = guide.density().push(eps)
    torch.testing.assert_close(z, loc + factor.push(eps))
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(eps).sum(-1) - factor.log_det
    torch.testing.assert_close(log_q, normal)
    torch.testing.assert_close(guide.density().log_prob(z), normal, rtol=1e-4, atol=1e-4)
    _, _, score = guide.density().push_with_score(eps)
    torch.testing.assert_close(score, -factor.push_score(eps), rtol=1e-4, atol=1e-4)
    # Some rows: the same numbers of these rows, with what encloses them.
    rows = {"counties": torch.tensor([2, 0])}
    values = guide.latent.constrain(z)[0]
    some = {n: v if n == "mean" else v[:, rows["counties"]] for n, v in values.items()}
    every = {n: v if n == "mean" else v[:, [1]] for n, v in values.items()}
    one = guide.log_prob(some, rows=rows)
    other = guide.log_prob(every, rows={"counties": torch.tensor([1])})
    top = torch.distributions.MultivariateNormal(loc[:2], scale_tril=factor.trils[0][0]).log_prob(
        values["mean"]
    )
    torch.testing.assert_close(one + other - top, normal, rtol=1e-4, atol=1e-4)
    # Globals that are moved leave the distribution of the rows given them as it was.
    before = guide.log_prob(values)
    conditional = before - torch.distributions.MultivariateNormal(
        loc[:2], scale_tril=factor.trils[0][0]
    ).log_prob(values["mean"])
    ratio, centre = torch.tensor([1.5, 0.7]), torch.tensor([0.2, -1.0])
    guide.stretch_globals(torch.tensor([0.3, -0.4]), ratio, centre)
    top = torch.distributions.MultivariateNormal(
        centre + torch.tensor([0.3, -0.4]) + ratio * (loc[:2] - centre),
        scale_tril=ratio[:, None] * factor.trils[0][0],
    ).log_prob(values["mean"])
    torch.testing.assert_close(guide.log_prob(values) - top, conditional, rtol=1e-4, atol=1e-3)
    pyro.clear_param_store()
    again = AutoPlateFlow(model).setup(y)
    again.load_state_dict(guide.state_dict())
    torch.testing.assert_close(again.log_prob(values), guide.log_prob(values))
    again.load_state_dict(AutoPlateFlow(model).setup(y).state_dict())
    assert torch.equal(again.transport()(eps)[0], AutoPlateFlow(model).setup(y).transport()(eps)[0])
    with pytest.raises(OptionError, match="own blocks"):
        guide.start_at_arrow(
            loc,
            ArrowFactor.diagonal(
                BlockArrow.of(torch.arange(2), torch.arange(2, 41)[:, None]), torch.ones(41)
            ),
        )
