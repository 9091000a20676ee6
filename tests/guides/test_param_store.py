"""Copies, files and the param store: what is saved comes back, and nothing leaks."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap

import pyro
import pyro.distributions as dist
import pytest
import torch
from guides.models import OURS, disturb, fit, linear, same_noise
from pyro.infer import SVI, Trace_ELBO

from pyro_nfvi import AutoFlow, AutoIAF, AutoPlanar
from pyro_nfvi.errors import NotSetUpError, ParamStoreError
from pyro_nfvi.flows import Chain, Permute
from pyro_nfvi.flows._autoregressive import iaf

each_guide = pytest.mark.parametrize("guide_class", OURS.values())
Y = torch.tensor([[2.5, -0.5], [1.5, -1.5], [2.0, -1.0], [2.3, -0.7]])


def trained(guide_class, **options):
    guide = guide_class(linear, **options)
    fit(linear, guide, Y, steps=3, lr=0.1)
    return guide


def check_same(guide, other):
    assert list(guide.state_dict()) == list(other.state_dict())
    torch.testing.assert_close(same_noise(other, Y), same_noise(guide, Y), rtol=0, atol=0)
    torch.testing.assert_close(other.quantiles([0.1]), guide.quantiles([0.1]), rtol=0, atol=0)
    draws = guide.sample_posterior(3)
    torch.testing.assert_close(other.log_prob(draws), guide.log_prob(draws), rtol=0, atol=0)


@each_guide
@pytest.mark.parametrize("outer", ["diagonal", "full"])
def test_state_dict_is_tensors_only_and_complete(guide_class, outer):
    guide = trained(guide_class, outer=outer)
    buffer = io.BytesIO()
    torch.save(guide.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    with pyro.get_param_store().scope():
        again = guide_class(linear, outer=outer).setup(Y)
        missing, unexpected = again.load_state_dict(state)
        assert not missing
        assert not unexpected
        check_same(guide, again)
        # What was loaded is what trains.
        before = {name: value.clone() for name, value in again.state_dict().items()}
        fit(linear, again, Y, steps=1)
        assert all(
            not torch.equal(value, before[name])
            for name, value in again.named_parameters()
            if value.grad is None or value.grad.any()
        )


@each_guide
def test_whole_guides_pickle_without_the_model(guide_class):
    guide = guide_class(lambda y: linear(y))  # a lambda does not pickle
    fit(linear, guide, Y, steps=2)
    again = pickle.loads(pickle.dumps(guide))
    with pyro.get_param_store().scope():
        check_same(guide, again)
        assert again.is_set_up
        with pytest.raises(NotSetUpError, match="has no model"):
            again.sample_posterior(2, deterministic=True)
        # It can go on training with the model given to SVI.
        losses = fit(linear, again, Y, steps=2)
        assert torch.tensor(losses).isfinite().all()
    # The original still has its model.
    assert guide.sample_posterior(2, Y, deterministic=True)["mean"].shape == (2, 2)


def test_weights_only_of_a_whole_guide_is_refused_not_misread(tmp_path):
    torch.save(trained(AutoIAF), tmp_path / "guide")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "guide", weights_only=True)


@each_guide
@pytest.mark.parametrize("when", ["fresh", "set up", "trained"])
def test_deepcopy_leaves_the_original_untouched(guide_class, when):
    guide = trained(guide_class) if when == "trained" else guide_class(linear)
    if when == "set up":
        guide.setup(Y)
    twin = copy.deepcopy(guide)
    if when == "fresh":
        with pyro.get_param_store().scope():
            twin.setup(Y)
        guide.setup(Y)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    shared = {id(p) for p in guide.parameters()} & {id(p) for p in twin.parameters()}
    assert not shared
    with pyro.get_param_store().scope():
        disturb(twin, 1.0)
        fit(linear, twin, Y, steps=2)
    after = guide.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    fit(linear, guide, Y, steps=1)


def test_param_store_in_a_fresh_process(tmp_path):
    guides = {name: trained(guide_class) for name, guide_class in OURS.items()}
    pyro.get_param_store().save(str(tmp_path / "store"))
    expected = {name: same_noise(guide, Y) for name, guide in guides.items()}
    torch.save(expected, tmp_path / "expected")
    script = textwrap.dedent(f"""
        import torch, pyro
        torch.set_num_threads(1)
        from guides.models import OURS, fit, linear, same_noise
        pyro.get_param_store().load({str(tmp_path / "store")!r})
        y = torch.tensor({Y.tolist()!r})
        expected = torch.load({str(tmp_path / "expected")!r})
        for name, guide_class in OURS.items():
            guide = guide_class(linear)
            guide(y)
            torch.testing.assert_close(same_noise(guide, y), expected[name], rtol=0, atol=0)
            before = guide.loc.detach().clone()
            fit(linear, guide, y, steps=1)
            assert not torch.equal(before, guide.loc)
            after = dict(pyro.get_param_store().items())
            assert torch.equal(after[name + ".loc"], guide.loc)
        """)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "PATH": ""},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@each_guide
def test_loading_the_store_into_a_guide_in_use(guide_class, tmp_path):
    guide = trained(guide_class)
    store, path = pyro.get_param_store(), str(tmp_path / "store")
    store.save(path)
    expected = same_noise(guide, Y)
    fit(linear, guide, Y, steps=3, lr=0.1)
    assert not torch.equal(same_noise(guide, Y)["mean"], expected["mean"])
    store.load(path)
    torch.testing.assert_close(same_noise(guide, Y), expected, rtol=0, atol=0)
    # What was loaded is what trains.
    before = {name: value.detach().clone() for name, value in guide.named_parameters()}
    fit(linear, guide, Y, steps=1)
    moved = [not torch.equal(value, before[name]) for name, value in guide.named_parameters()]
    assert all(moved)


@each_guide
def test_guides_of_one_name_keep_their_own_fits(guide_class):
    """Fit, clear, fit again, and both guides still draw what they learned; copies too."""
    first = trained(guide_class)
    fitted = [(first, same_noise(first, Y))]
    snapshot = copy.deepcopy(first)
    fit(linear, first, Y, steps=2, lr=0.1)
    fitted = [(first, same_noise(first, Y)), (snapshot, fitted[0][1])]
    pyro.clear_param_store()
    second = guide_class(linear)
    fit(linear, second, Y + 3, steps=3, lr=0.1)
    fitted.append((second, same_noise(second, Y)))
    with pyro.get_param_store().scope():
        third = guide_class(linear, outer="full")
        fit(linear, third, Y, steps=2, lr=0.1)
        fitted.append((third, same_noise(third, Y)))
    for _ in range(2):
        for guide, expected in fitted:
            torch.testing.assert_close(same_noise(guide, Y), expected, rtol=0, atol=0)
    # Each trains its own tensors, in turn, and none of the others'.
    for guide, _ in fitted:
        before = [same_noise(other, Y) for other, _ in fitted]
        fit(linear, guide, Y, steps=1)
        for (other, _), expected in zip(fitted, before):
            same = torch.equal(same_noise(other, Y)["mean"], expected["mean"])
            assert same == (other is not guide)


@each_guide
def test_the_store_cleared_in_the_middle_of_training(guide_class):
    guide = trained(guide_class)
    expected = same_noise(guide, Y)
    pyro.clear_param_store()
    # The guide holds its own tensors: nothing is lost, and training goes on with them.
    torch.testing.assert_close(same_noise(guide, Y), expected, rtol=0, atol=0)
    fit(linear, guide, Y, steps=2, lr=0.1)
    store = pyro.get_param_store()
    mine = {name: value for name, value in guide.named_parameters()}
    assert len(list(store.keys())) == len(mine)
    stored = {id(store[name].unconstrained()) for name in store.keys()}
    assert stored == {id(value) for value in mine.values()}
    assert not torch.equal(same_noise(guide, Y)["mean"], expected["mean"])


@each_guide
def test_scope_keeps_fits_apart(guide_class):
    first = trained(guide_class)
    before = same_noise(first, Y)
    with pyro.get_param_store().scope() as inner:
        second = guide_class(linear, num_flows=3)  # another size: no quarrel with the first
        fit(linear, second, Y + 1, steps=5)
        trained_second = same_noise(second, Y)
    torch.testing.assert_close(same_noise(first, Y), before, rtol=0, atol=0)
    with pyro.get_param_store().scope(inner):
        torch.testing.assert_close(same_noise(second, Y), trained_second, rtol=0, atol=0)


@each_guide
def test_local_params_setting(guide_class):
    with pyro.settings.context(module_local_params=True):
        guides = [guide_class(linear), guide_class(linear, num_flows=3)]
        for shift, guide in zip((0.0, 2.0), guides):
            guide.setup(Y)
            module = Trace_ELBO(num_particles=4)(linear, guide)
            optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
            before = [parameter.detach().clone() for parameter in guide.parameters()]
            for _ in range(3):
                optimiser.zero_grad()
                module(Y + shift).backward()
                optimiser.step()
            assert all(not torch.equal(a, b) for a, b in zip(before, guide.parameters()))
        assert not list(pyro.get_param_store().keys())


@each_guide
def test_every_parameter_stands_once_in_store_and_module(guide_class):
    guide = trained(guide_class)
    store = pyro.get_param_store()
    stored = [id(store[name].unconstrained()) for name in store.keys()]
    owned = [id(parameter) for parameter in guide.parameters()]
    assert sorted(stored) == sorted(owned)
    assert len(set(owned)) == len(owned)
    assert all(name.startswith(guide_class.__name__ + ".") for name in store.keys())


def test_svi_optimiser_state_saved_and_loaded(tmp_path):
    """Pyro's documented checkpoint: store and optimiser; the next step is the same step."""

    def make():
        guide = AutoPlanar(linear)
        optimiser = pyro.optim.Adam({"lr": 0.05})
        return guide, optimiser, SVI(linear, guide, optimiser, Trace_ELBO())

    guide, optimiser, svi = make()
    for _ in range(3):
        svi.step(Y)
    pyro.get_param_store().save(str(tmp_path / "store"))
    optimiser.save(str(tmp_path / "optimiser"))
    pyro.set_rng_seed(9)
    svi.step(Y)
    expected = {name: value.detach().clone() for name, value in guide.named_parameters()}
    with pyro.get_param_store().scope():
        pyro.get_param_store().load(str(tmp_path / "store"))
        again, optimiser, svi = make()
        again.setup(Y)
        optimiser.load(str(tmp_path / "optimiser"))
        pyro.set_rng_seed(9)
        svi.step(Y)
        torch.testing.assert_close(dict(again.named_parameters()), expected, rtol=0, atol=0)


def test_permutations_come_back():
    def flow(dim):
        return Chain(iaf(dim), Permute.random(dim, seed=7), iaf(dim))

    guide = AutoFlow(linear, flow)
    fit(linear, guide, Y, steps=2)
    disturb(guide)
    state = guide.state_dict()
    with pyro.get_param_store().scope():
        # Permutations are buffers, so even others are overwritten.
        again = AutoFlow(
            linear, lambda dim: Chain(iaf(dim), Permute.random(dim, seed=8), iaf(dim))
        ).setup(Y)
        again.load_state_dict(state)
        draws = same_noise(guide, Y), same_noise(again, Y)
    torch.testing.assert_close(*draws, rtol=0, atol=0)


def test_other_sizes_are_refused_by_name():
    guide = AutoIAF(linear, hidden_dim=5).setup(Y)
    state = guide.state_dict()
    with pyro.get_param_store().scope():
        other = AutoIAF(linear, hidden_dim=6).setup(Y)
        with pytest.raises(ParamStoreError, match=r"(?s)3 latents.*size mismatch"):
            other.load_state_dict(state)
        fewer = AutoIAF(linear, num_flows=1)
    with pytest.raises(ParamStoreError, match=r"does not have.*scope\(\)"):
        fewer.setup(Y)
    with pytest.raises(ParamStoreError, match=r"shape \(5, 3\).*needs \(6, 3\).*scope\(\)"):
        AutoIAF(linear, hidden_dim=6).setup(Y)
    with pytest.raises(NotSetUpError, match=r"guide.setup\("):
        AutoIAF(linear).load_state_dict(state)
    # The store is as it was; the first guide goes on.
    fit(linear, guide, Y, steps=1)
    with pyro.get_param_store().scope():
        assert fewer.setup(Y).is_set_up


def test_a_store_with_part_of_the_parameters_is_refused():
    AutoIAF(linear).setup(Y)
    del pyro.get_param_store()["AutoIAF.loc"]
    with pytest.raises(ParamStoreError, match="not 'AutoIAF.loc'"):
        AutoIAF(linear).setup(Y)


def test_another_model_under_the_same_name_and_size_continues_as_pyros_guides_do():
    """The names cannot tell; documented, and as AutoDiagonalNormal behaves."""

    def other(y):
        pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    first = trained(AutoIAF)
    second = AutoIAF(other).setup(Y)
    assert torch.equal(first.loc, second.loc)
