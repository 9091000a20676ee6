"""Wrong models, options and calls: the message says what to do, and the guide goes on working."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from guides.models import OURS, linear
from pyro.infer import SVI, Trace_ELBO

from pyro_nfvi import AutoFlow, AutoIAF, AutoPlanar, AutoSylvester
from pyro_nfvi.errors import (
    ModelError,
    NFVIError,
    NotSetUpError,
    OptionError,
    ParamStoreError,
    ShapeError,
)
from pyro_nfvi.flows import DiagonalAffine, Planar

each_guide = pytest.mark.parametrize("guide_class", OURS.values())
Y = torch.tensor([[2.5, -0.5], [1.5, -1.5], [2.0, -1.0]])


# ------------------------------------------------------------------------------- models
@each_guide
def test_no_latents(guide_class):
    def model():
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ModelError, match="no continuous latent sites.*without obs="):
        guide_class(model)()


@each_guide
@pytest.mark.parametrize(
    "site", [dist.Bernoulli(0.5), dist.Categorical(torch.ones(3)), dist.Poisson(torch.tensor(3.0))]
)
def test_unmarked_discrete_site(guide_class, site):
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("kind", site)

    cure = "Sum it out" if site.has_enumerate_support else "one fit for each value"
    with pytest.raises(ValueError, match=rf"'kind'.*{cure}") as caught:
        guide_class(model)()
    assert "https://pyro.ai/examples/enumeration.html" in str(caught.value)


def test_a_site_without_a_bijection_names_the_reparametrisation():
    def model():
        pyro.sample("direction", dist.ProjectedNormal(torch.ones(3)))

    with pytest.raises(ValueError, match=r"'direction'.*ProjectedNormalReparam"):
        AutoFlow(model)()


@each_guide
def test_subsampled_local_latent_and_the_whole_plate(guide_class):
    def model(size):
        with pyro.plate("people", 6, subsample_size=size):
            pyro.sample("local", dist.Normal(0.0, 1.0))

    guide = guide_class(model)
    with pytest.raises(ModelError, match=r"'local'.*'people'.*2 of 6"):
        guide(2)
    assert guide(6)["local"].shape == (6,)


def test_subsampled_data_without_local_latents_is_fine():
    data = torch.randn(20) + 1

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample_size=5) as index:
            pyro.sample("y", dist.Normal(x, 1.0), obs=data[index])

    guide = AutoFlow(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(svi.step() < 1e4 for _ in range(3))


def test_sequential_plates_are_refused():
    def model():
        for i in pyro.plate("steps", 3):
            pyro.sample(f"x{i}", dist.Normal(0.0, 1.0))

    with pytest.raises(NotImplementedError, match="sequential"):
        AutoFlow(model)()


def changing(shape, also=False, y=None):
    pyro.sample("x", dist.Normal(torch.zeros(shape), 1.0).to_event(1))
    if also:
        pyro.sample("extra", dist.Normal(0.0, 1.0))
    pyro.sample("z", dist.Normal(0.0, 1.0), obs=y)


@each_guide
def test_a_structure_that_changes_between_runs(guide_class):
    guide = guide_class(changing).setup(2, also=True)
    with pytest.raises(ModelError, match=r"'x' has shape \(3,\), not \(2,\).*build a new guide"):
        guide(3, also=True)
    with pytest.raises(ModelError, match="'extra' is gone"):
        guide(2, also=False)
    with pytest.raises(ModelError, match="'z' is now observed"):
        guide(2, also=True, y=torch.tensor(0.0))
    # Asked again, it says so again; with good arguments it works.
    with pytest.raises(ModelError, match=r"'x' has shape \(3,\)"):
        guide(3, also=True)
    assert set(guide(2, also=True)) == {"x", "extra", "z"}


def test_long_data_cost_no_time():
    """Arguments are looked at on every call: a list is data, and is not read to its end."""

    class Long(list):
        seen = 0

        def __iter__(self):
            for item in super().__iter__():
                Long.seen += 1
                yield item

    def model(data):
        pyro.sample("x", dist.Normal(0.0, 1.0))

    guide = AutoFlow(model).setup(Long(range(100_000)))
    Long.seen = 0
    guide(Long(range(100_000)))
    assert Long.seen <= 200


def test_a_site_that_appears_later():
    """Prediction may add sites, so the guide allows them; Pyro's ELBO warns when training."""
    guide = AutoFlow(changing).setup(2, y=torch.tensor(0.0))
    assert set(guide(2, also=True, y=torch.tensor(0.0))) == {"x"}
    with pytest.warns(UserWarning, match="not guide: {'extra'}"):
        Trace_ELBO().loss(changing, guide, 2, also=True, y=torch.tensor(0.0))


def test_a_model_that_fails_is_not_hidden():
    class Boom(Exception):
        pass

    def model():
        raise Boom("mine")

    guide = AutoFlow(model)
    for _ in range(2):
        with pytest.raises(Boom, match="mine"):
            guide()


@each_guide
def test_after_an_error_the_guide_works_with_good_input(guide_class):
    def model(good):
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        if not good:
            pyro.sample("kind", dist.Bernoulli(0.5))

    guide = guide_class(model)
    with pytest.raises(ModelError):
        guide(good=False)
    assert not guide.is_set_up
    assert not list(guide.parameters())
    assert set(guide(good=True)) == {"x"}
    assert guide.sample_posterior(3)["x"].shape == (3, 2)


# ------------------------------------------------------------------------------ options
BAD_OPTIONS = {
    "unknown flow": (lambda: AutoFlow(linear, "plannar"), "Did you mean 'planar'"),
    "unreadable formula": (lambda: AutoFlow(linear, "planar**2"), "cannot be read"),
    "no layer": (lambda: AutoFlow(linear, "planar*0"), "no layer"),
    "flow of a wrong type": (lambda: AutoFlow(linear, flow=3), "name, a Flow, a callable"),
    "unknown option": (lambda: AutoFlow(linear, "planar", hiden=3), "no option hiden"),
    "option without a name": (lambda: AutoFlow(linear, None, hidden_dim=3), "named flow"),
    "option with an object": (lambda: AutoFlow(linear, Planar(3), gate="affine"), "named flow"),
    "outer": (
        lambda: AutoFlow(linear, outer="diag"),
        "'full', 'whitened' or a Flow",
    ),
    "init_scale 0": (lambda: AutoFlow(linear, init_scale=0), "init_scale > 0"),
    "init_scale -1": (lambda: AutoPlanar(linear, init_scale=-1.0), "init_scale > 0"),
    "init_scale nan": (lambda: AutoPlanar(linear, init_scale=float("nan")), "init_scale > 0"),
    "init_scale inf": (lambda: AutoPlanar(linear, init_scale=float("inf")), "init_scale > 0"),
    "init_scale text": (lambda: AutoPlanar(linear, init_scale="wide"), "init_scale > 0"),
    "no model": (lambda: AutoFlow("model"), "needs a Pyro model to call"),
    "base": (lambda: AutoFlow(linear, base="normal"), "base"),
    "init_loc_fn": (lambda: AutoFlow(linear, init_loc_fn="median"), "init_loc_fn"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_at_once(name):
    make, message = BAD_OPTIONS[name]
    with pytest.raises(OptionError, match=message):
        make()


@each_guide
@pytest.mark.parametrize("num_flows", [-1, 1.5, True, "two"])
def test_bad_num_flows(guide_class, num_flows):
    with pytest.raises(OptionError, match="num_flows needs to be a whole number"):
        guide_class(linear, num_flows=num_flows)


BAD_LATER = {
    "flow size": (lambda: AutoFlow(linear, Planar(4)), "flow of dim=3.*got dim=4"),
    "flow context": (lambda: AutoFlow(linear, Planar(3, 2)), "context_dim=2"),
    "outer size": (lambda: AutoFlow(linear, outer=DiagonalAffine(2)), "outer of dim=3"),
    "base size": (
        lambda: AutoFlow(linear, base=dist.Normal(torch.zeros(2), 1.0).to_event(1)),
        "base over vectors of size 3",
    ),
    "base events": (lambda: AutoFlow(linear, base=dist.Normal(torch.zeros(3), 1.0)), "size 3"),
    "gate": (lambda: AutoIAF(linear, gate="tanh"), "'affine' or 'sigmoid'"),
    "hidden_dim": (lambda: AutoIAF(linear, hidden_dim=0), "hidden_dim"),
    "kind": (lambda: AutoSylvester(linear, kind="svd"), "kind"),
    "callable": (lambda: AutoFlow(linear, lambda dim: "iaf"), "adapt takes"),
}


@pytest.mark.parametrize("name", BAD_LATER)
def test_bad_options_at_set_up(name):
    make, message = BAD_LATER[name]
    guide = make()
    for _ in range(2):
        with pytest.raises(OptionError, match=message):
            guide.setup(Y)
    assert not guide.is_set_up
    assert not list(pyro.get_param_store().keys())


def test_options_of_pyros_guides_are_not_swallowed():
    with pytest.raises(NFVIError, match="num_transforms"):
        AutoIAF(linear, num_transforms=3)


# --------------------------------------------------------------------------------- calls
NOT_YET = {
    "median": lambda guide: guide.log_prob({}),
    "density": lambda guide: guide.density(),
    "posterior": lambda guide: guide.get_posterior(),
    "transform": lambda guide: guide.get_transform(),
    "base": lambda guide: guide.get_base_dist(),
    "load": lambda guide: guide.load_state_dict({}),
    "loc_scale": lambda guide: guide._loc_scale(),
    "transport": lambda guide: guide.transport(),
}


@each_guide
@pytest.mark.parametrize("name", NOT_YET)
def test_not_set_up(guide_class, name):
    guide = guide_class(linear)
    with pytest.raises(NotSetUpError, match=r"guide.setup\(\*args"):
        NOT_YET[name](guide)
    # Summaries set up by themselves, given the model's arguments.
    assert guide.median(Y)["mean"].shape == (2,)


@pytest.mark.parametrize("levels", [[1.5], [-0.1], 0.5, [[0.1]], [float("nan")]])
def test_bad_levels(levels):
    guide = AutoFlow(linear).setup(Y)
    with pytest.raises(OptionError, match=r"levels in \[0, 1\]"):
        guide.quantiles(levels)
    assert guide.quantiles([0.0, 1.0])["mean"].shape == (2, 2)
    assert guide.quantiles(torch.tensor([0.2]))["mean"].isfinite().all()


@pytest.mark.parametrize("count", [-1, 2.5, "many", (2, -1)])
def test_bad_number_of_draws(count):
    guide = AutoFlow(linear).setup(Y)
    with pytest.raises(OptionError, match="num_samples"):
        guide.sample_posterior(count)


def test_wrong_shapes():
    guide = AutoFlow(linear).setup(Y)
    draws = guide.sample_posterior(4)
    for wrong in (
        {**draws, "mean": draws["mean"][:, :1]},
        {**draws, "mean": draws["mean"][0, 0]},
        {"mean": draws["mean"]},
        {},
    ):
        with pytest.raises(ShapeError):
            guide.log_prob(wrong)
    with pytest.raises(ShapeError):
        guide.density().log_prob(torch.zeros(5, 4))
    assert guide.log_prob(draws).shape == (4,)


def test_loading_the_wrong_keys():
    guide = AutoFlow(linear, "planar*2").setup(Y)
    state = guide.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    with pytest.raises(ParamStoreError, match="3 latents"):
        guide.load_state_dict({**state, "more": torch.zeros(1)})
    other = {name: value + 1 for name, value in state.items()}
    del other["loc"]
    with pytest.raises(ParamStoreError, match="loc"):
        guide.load_state_dict(other)
    after = guide.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_all_errors_are_ours_and_the_built_in_ones():
    for error in (ModelError, OptionError, ShapeError, NotSetUpError, ParamStoreError):
        assert issubclass(error, NFVIError)
    assert issubclass(ModelError, (RuntimeError, ValueError))
    assert issubclass(OptionError, ValueError)


@pytest.mark.parametrize("first", [True, False])
def test_a_site_that_comes_and_goes_under_the_same_arguments(first):
    drawn = [first]

    def model():
        pyro.sample("always", dist.Normal(0.0, 1.0))
        if drawn[0]:
            pyro.sample("sometimes", dist.Normal(0.0, 1.0))

    def call(guide, times):
        for _ in range(times):
            guide()

    guide = AutoIAF(model)
    call(guide, 4)
    drawn[0] = not first
    with pytest.raises(ModelError, match="'sometimes' is (gone|new)"):
        call(guide, 8)
    drawn[0] = first
    call(guide, 8)
