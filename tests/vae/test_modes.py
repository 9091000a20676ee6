"""Train and eval mode: numbers of nets with batch normalisation and dropout, and training."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass

import numpy as np
import pyro
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn
from vae.cases import images

from pyro_nfvi import vae as package
from pyro_nfvi.errors import OptionError
from pyro_nfvi.vae import ELBOLoss, FlowVAE, IWAELoss, evaluate, training_pass
from pyro_nfvi.vae._active_units import active_units
from pyro_nfvi.vae._memory_tiles import numbers_per_row
from pyro_nfvi.vae._pixels import Preparation
from pyro_nfvi.vae.train._feeds import tensor_feed
from pyro_nfvi.vae.train._rates import Rates
from pyro_nfvi.vae.train._trainer import Plan, Trainer

DIM, SHAPE = 2, (3, 2)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 4)
        )
        self.frozen = nn.BatchNorm1d(4).eval()
        self.seen = []

    def forward(self, x):
        self.seen.append(self.body[3].training)
        loc, raw = self.frozen(self.body(x)).chunk(2, -1)
        return loc, nn.functional.softplus(raw) + 0.1, None


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 6)
        )
        # A hook on a layer that is otherwise the same in both modes.
        nn.utils.spectral_norm(self.net[0])

    def forward(self, z):
        return self.net(z).reshape(-1, *SHAPE)


def make(seed=0, flow="planar*2"):
    torch.manual_seed(seed)
    vae = FlowVAE(Encoder(), Decoder(), DIM, 0, flow)
    for name, buffer in vae.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(0.3 * torch.rand(buffer.shape))
    return vae


def state(vae):
    modes = {name: part.training for name, part in vae.named_modules()}
    return modes, {name: buffer.clone() for name, buffer in vae.named_buffers()}


def same(one, two):
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if is_dataclass(one):
        return all(same(v, vars(two)[k]) for k, v in vars(one).items() if isinstance(v, Tensor))
    return one == two or (one != one and two != two)


X = images(7)
EPS = torch.randn(3, 7, DIM)


def seeded():
    return torch.Generator().manual_seed(5)


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba()).copy())


def trainer(vae, count=7, batch=7, **more):
    feed = tensor_feed(X[:1].expand(count, *SHAPE).clone(), X, Preparation("as-is", 2))
    plan = Plan(ELBOLoss(), 1, batch)
    return Trainer(vae, feed, plan, Rates(torch.optim.Adam(vae.parameters())), **more)


#: All that is computed with a VAE, but what trains it.
CATALOGUE = {
    "encode": lambda vae: vae.encode(X).loc,
    "posterior_of": lambda vae: vae.posterior_of(X).loc,
    "decode": lambda vae: vae.decode(EPS),
    "prior_log_prob": lambda vae: vae.prior_log_prob(EPS),
    "elbo": lambda vae: vae.elbo(X, eps=EPS).log_w.detach(),
    "nll": lambda vae: vae.nll(X, num_samples=20),
    "nll of one image": lambda vae: vae.nll(X[:1], num_samples=20),
    "elbo of one image": lambda vae: vae.elbo(X[:1], eps=EPS[:, :1]).bound.detach(),
    "sample": lambda vae: vae.sample(4, generator=seeded()),
    "reconstruct": lambda vae: vae.reconstruct(X, generator=seeded()),
    "evaluate": lambda vae: str(evaluate(vae, X, nll_samples=20)),
    "active_units": lambda vae: active_units(vae, X),
    "plot_reconstructions": lambda vae: pixels(package.plot_reconstructions(vae, X)),
    "plot_samples": lambda vae: pixels(package.plot_samples(vae)),
    "plot_interpolation": lambda vae: pixels(package.plot_interpolation(vae, X)),
    "plot_posterior": lambda vae: pixels(package.plot_posterior(vae, X[:2], points=12)),
    "validate": lambda vae: trainer(vae).validate(),
    "numbers_per_row": lambda vae: numbers_per_row(vae, X),
    "get_latent": lambda vae: vae.get_latent(X),
    "draws of a posterior": lambda vae: vae.encode(X).push(EPS).z,
    "score of a posterior": lambda vae: vae.encode(X).log_prob(EPS),
    "SVI.evaluate_loss": lambda vae: evaluated(vae),
    "Predictive": lambda vae: predicted(vae),
}
#: What trains, or looks at no net.
TRAINS, LOOKS_AT_NO_NET = {"model", "guide", "forward", "fit"}, {"check", "condition", "extra_repr"}


def evaluated(vae):
    pyro.clear_param_store()
    torch.manual_seed(3)
    return SVI(vae.model, vae.guide, Adam({}), Trace_ELBO()).evaluate_loss(X)


def predicted(vae):
    pyro.clear_param_store()
    torch.manual_seed(3)
    return Predictive(vae.model, guide=vae.guide, num_samples=3, return_sites=("z",))(X)["z"]


@pytest.mark.parametrize("name", CATALOGUE)
def test_numbers_repeat_and_change_no_buffer_and_no_mode(name):
    vae, compute = make(), CATALOGUE[name]
    modes, buffers = state(vae)
    first = compute(vae)
    torch.rand(3)  # whatever happens in between
    torch.manual_seed(11)
    assert same(first, compute(vae))
    if "prior" not in name:
        assert vae.encoder.seen or name in {"decode", "sample", "plot_samples", "numbers_per_row"}
    assert not any(vae.encoder.seen)  # dropout was off
    after = state(vae)
    assert after[0] == modes
    assert not after[0]["encoder.frozen"]
    assert after[0]["encoder.body.3"]
    assert all(torch.equal(after[1][key], value) for key, value in buffers.items())
    # The same as of a VAE that is in eval mode as a whole.
    assert same(first, compute(make().eval()))


def test_the_catalogue_is_complete():
    methods = {
        name
        for name, value in vars(FlowVAE).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    functions = {
        name
        for name in package.__all__
        if inspect.isfunction(getattr(package, name))
        and "vae" in inspect.signature(getattr(package, name)).parameters
    }
    assert (methods | functions) - set(CATALOGUE) == TRAINS | (methods & LOOKS_AT_NO_NET)


@pytest.mark.parametrize("name", [n for n in CATALOGUE if n not in {"prior_log_prob"}])
def test_modes_come_back_after_an_exception(name):
    vae = make()
    modes, _ = state(vae)

    def fail(*_):
        raise KeyError("broken")

    for part in (vae.encoder.body[0], vae.decoder.net[0]):
        part.register_forward_hook(fail)
    with pytest.raises(KeyError):
        CATALOGUE[name](vae)
    assert state(vae)[0] == modes


@pytest.mark.parametrize(
    "step",
    [
        lambda vae: ELBOLoss()(vae, X, eps=EPS),
        lambda vae: IWAELoss(3, "dreg")(vae, X, eps=EPS),
        lambda vae: SVI(vae.model, vae.guide, Adam({}), Trace_ELBO()).step(X),
        lambda vae: trainer(vae).run(),
    ],
    ids=["elbo", "iwae", "svi", "trainer"],
)
def test_what_trains_moves_statistics_but_those_that_are_frozen(step):
    vae = make()
    modes, buffers = state(vae)
    step(vae)
    after = state(vae)
    assert after[0] == modes
    assert any(vae.encoder.seen)
    for name, value in buffers.items():
        moved = "frozen" not in name
        assert torch.equal(after[1][name], value) != moved, name


def test_a_loop_of_ones_own_opens_a_training_pass():
    vae = make()
    with training_pass():
        one, two = (vae.elbo(X, eps=EPS).bound for _ in range(2))
    assert not torch.equal(one, two)
    assert vae.encoder.body[2].num_batches_tracked == 2
    with training_pass():  # what is a number is one in there too
        assert same(vae.nll(X, num_samples=5), vae.nll(X, num_samples=5))


def test_losses_without_gradient_are_numbers():
    vae = make()
    with torch.no_grad():
        one, two = (ELBOLoss()(vae, X, eps=EPS).bound for _ in range(2))
    assert torch.equal(one, two)
    assert vae.encoder.body[2].num_batches_tracked == 0


def test_a_step_that_is_skipped_leaves_statistics_as_they_were():
    vae = make()
    _, buffers = state(vae)
    run = trainer(vae)
    with torch.no_grad():
        vae.decoder.net[3].bias[0] = torch.nan
    run._step([(X[:1].expand(7, *SHAPE), None)], _Bar())
    assert run.progress.skipped == 1
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in vae.named_buffers())


class _Bar:
    def update(self):
        pass


def test_batches_of_one_image_are_refused_before_training():
    with pytest.raises(OptionError, match="two images of every batch.*leave one of 1"):
        trainer(make(), count=7, batch=3)
    trainer(make().eval(), count=7, batch=3)


def test_dropout_is_a_function_of_seed_and_step():
    found = []
    for noise in range(2):
        vae = make()
        torch.manual_seed(noise)
        torch.rand(noise)
        trainer(vae).run()
        found.append(vae.state_dict())
    assert all(torch.equal(found[0][key], value) for key, value in found[1].items())


class Merging(nn.Module):
    """Weights are merged in eval mode, and a part is switched that torch does not know of."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-4, 5, (4, 6)) / 4)
        self.change = nn.Parameter(torch.randint(-4, 5, (4, 6)) / 4)
        self.hidden = [nn.Dropout(0.5)]

    def train(self, mode=True):  # noqa: FBT002
        if mode != self.training:
            with torch.no_grad():
                self.weight.add_(self.change, alpha=-1 if mode else 1)
        self.hidden[0].train(mode)
        return super().train(mode)

    def forward(self, x):
        weight = self.weight + self.change if self.training else self.weight
        loc, raw = self.hidden[0](x.flatten(1) @ weight.T).chunk(2, -1)
        return loc, nn.functional.softplus(raw) + 0.1


class Outer(nn.Module):
    """Switches its parts by a ``train()`` of its own, frozen ones too."""

    def __init__(self):
        super().__init__()
        self.free, self.frozen = Merging(), Merging().eval()
        self.fixed = nn.Linear(2, 2).eval()

    def train(self, mode=True):  # noqa: FBT002
        return super().train(mode)

    def forward(self, x):
        (one, scale), (two, _) = self.free(x), self.frozen(x)
        return self.fixed(one + two), scale


@pytest.mark.parametrize("kind", [Merging, Outer])
def test_a_train_method_of_a_users_own_is_called(kind):
    torch.manual_seed(0)
    vae = FlowVAE(kind(), Decoder(), DIM, 0, "planar*2")
    modes = state(vae)[0]
    weights = {key: value.clone() for key, value in vae.state_dict().items()}
    found = [compute(vae) for compute in CATALOGUE.values() for _ in range(2)]
    assert all(same(*found[i : i + 2]) for i in range(0, len(found), 2))
    assert state(vae)[0] == modes
    assert all(torch.equal(value, weights[key]) for key, value in vae.state_dict().items())
    assert (vae.encoder.free if kind is Outer else vae.encoder).hidden[0].training
    value = vae.nll(X, num_samples=20).value
    assert torch.equal(vae.eval().nll(X, num_samples=20).value, value)
