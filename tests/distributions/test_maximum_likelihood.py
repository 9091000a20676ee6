"""Maximum likelihood: it finds densities, keeps the best, and says what is wrong with data."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch.distributions import Dirichlet, Independent, Normal, Uniform

from pyro_nfvi import FlowDensity
from pyro_nfvi.distributions import _maximum_likelihood as fitting
from pyro_nfvi.distributions._data_checks import log_density_ceiling
from pyro_nfvi.errors import (
    DataError,
    DataWarning,
    DivergedError,
    OptionError,
    ShapeError,
)
from pyro_nfvi.flows import ActNorm, BatchNorm, Chain, Flow, make_flow

QUICK = {"progress": False, "seed": 0, "max_steps": 300}


def normal_rows(n=600, dim=2):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0))


def banana(n, seed):
    a, b = torch.randn(2, n, generator=torch.Generator().manual_seed(seed))
    return torch.stack([a, b / 2 + a.square() - 1], -1)


#: Entropy of the banana: of a, and of b / 2.
ENTROPY = 2 * 0.5 * math.log(2 * math.pi * math.e) - math.log(2)


def test_normal_data_reach_their_entropy():
    x = 3 + 2 * normal_rows(4000)
    density = FlowDensity(make_flow("affine", 2))
    report = density.fit(x, **{**QUICK, "max_steps": 800}, lr=0.05)
    entropy = math.log(2 * math.pi * math.e * 4)
    # sd of the mean over 400 rows is 0.05 nats: 4 of them, false-alarm rate 6e-5 (fixed seed).
    assert report.best == pytest.approx(entropy, abs=0.2)
    fitted = Normal(x.mean(0), x.std(0)).log_prob(x).sum(-1).mean()
    assert density.log_prob(x).mean().item() == pytest.approx(fitted.item(), abs=0.01)


@pytest.mark.parametrize(
    "name", ["maf*1", *(pytest.param(n, marks=pytest.mark.slow) for n in ("realnvp*4", "nsf*2"))]
)
def test_flows_learn_a_banana(name):
    density = FlowDensity(make_flow(name, 2))
    density.fit(banana(2000, 0), progress=False, seed=0, max_steps=700, lr=5e-3)
    with torch.no_grad():
        found = -density.log_prob(banana(4000, 1)).mean().item()
    # The affine fit has 3.24 nats, the truth 2.14; sd of the mean over 4000 rows: 0.016.
    assert ENTROPY - 0.07 < found < ENTROPY + 0.12


@pytest.mark.slow
def test_relu_stack_learns_the_banana():
    # The invertible net of the textbooks: K = 6.
    density = FlowDensity(make_flow("relu*6", 2))
    density.fit(banana(2000, 0), progress=False, seed=0, max_steps=1500, lr=1e-2)
    with torch.no_grad():
        found = -density.log_prob(banana(4000, 1)).mean().item()
    assert found < ENTROPY + 0.3


def test_conditional_density_follows_its_context():
    torch.manual_seed(0)
    context = torch.rand(2000, 1) * 4 - 2
    x = context + (0.5 * context).exp() * torch.randn(2000, 1) * 0.3
    density = FlowDensity(make_flow("affine", 1, context_dim=1))
    density.fit(x, context, progress=False, seed=0, max_steps=800, lr=0.02)
    with torch.no_grad():
        for c in (-1.5, 0.0, 1.5):
            z, _ = density.rsample_and_log_prob((4000,), torch.tensor([c]))
            assert z.mean().item() == pytest.approx(c, abs=0.12)
            assert z.std().item() == pytest.approx(0.3 * math.exp(c / 2), rel=0.15)


def test_actnorm_takes_its_numbers_from_data_in_other_units():
    x = torch.tensor([1e4, -3e-3]) + torch.tensor([50.0, 1e-4]) * normal_rows(1000)
    layer = ActNorm(2)
    density = FlowDensity(Chain(make_flow("realnvp*2", 2), layer))
    report = density.fit(x, **{**QUICK, "max_steps": 50})
    expected = Normal(x.mean(0), x.std(0)).entropy().sum().item()
    assert report.best == pytest.approx(expected, abs=0.3)
    # One that has been set is left alone.
    kept = layer.mean.clone()
    density.fit(1.5 * x, **{**QUICK, "max_steps": 1})
    assert torch.equal(layer.mean, kept)


def test_initialize_false_leaves_actnorm_alone():
    layer = ActNorm(2)
    FlowDensity(layer).fit(
        3 + normal_rows(), **{**QUICK, "max_steps": 1, "lr": 1e-9}, initialize=False
    )
    assert (layer.mean == 0).all()


def test_batchnorm_statistics_move_with_training_only():
    layer = BatchNorm(2)
    density = FlowDensity(Chain(make_flow("affine", 2), layer))
    x = 5 + 3 * normal_rows()
    density.fit(x, **QUICK)
    torch.testing.assert_close(layer.running_mean, x.mean(0), atol=0.6, rtol=0)
    kept = layer.running_mean.clone()
    density.log_prob(x - 100)
    assert torch.equal(layer.running_mean, kept)


def test_best_parameters_are_kept():
    # Few rows and a high rate: it overfits, and must come back from there.
    x = normal_rows(60)
    held = torch.randn(2000, 2, generator=torch.Generator().manual_seed(9))
    density = FlowDensity(make_flow("maf*3", 2, hidden_dim=(64, 64)))
    report = density.fit(x, valid=held, **{**QUICK, "max_steps": 1500}, lr=1e-2, patience=3)
    now = -density.log_prob(held).mean().item()
    assert now == pytest.approx(min(report.valid), abs=1e-4)
    assert report.best == min(report.valid)
    assert report.reason == "converged"
    assert report.steps < 1500


def test_same_seed_same_fit_and_global_state_untouched():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        density = FlowDensity(make_flow("realnvp*2", 2))
        state = torch.get_rng_state()
        density.fit(normal_rows(), **{**QUICK, "max_steps": 60})
        assert torch.equal(state, torch.get_rng_state())
        found.append(density.log_prob(normal_rows()))
    assert torch.equal(*found)


def test_without_validation():
    report = FlowDensity(make_flow("affine", 2)).fit(normal_rows(), valid=0, **QUICK)
    assert report.valid == []
    assert report.best == min(report.train)


class Moody(Flow):
    """Not finite on some calls; otherwise a shift."""

    def __init__(self, bad):
        super().__init__(2)
        self.shift = torch.nn.Parameter(torch.zeros(2))
        self.bad, self.calls = bad, 0

    def forward(self, x, context=None):
        return x + self.shift, x.new_zeros(x.shape[:-1])

    def inverse(self, y, context=None):
        self.calls += 1
        factor = math.nan if self.bad(self.calls) and torch.is_grad_enabled() else 1.0
        return (y - self.shift) * factor, y.new_zeros(y.shape[:-1])


def test_bad_steps_are_skipped():
    density = FlowDensity(Moody(lambda call: call % 7 == 0))
    report = density.fit(1 + normal_rows(), **QUICK, lr=0.02)
    assert 30 < report.skipped < 60
    assert report.restores == 0
    assert density.flow.shift.tolist() == pytest.approx([1.0, 1.0], abs=0.15)


def test_five_bad_steps_bring_the_best_state_back():
    density = FlowDensity(Moody(lambda call: 110 <= call < 115))
    report = density.fit(1 + normal_rows(), **QUICK, lr=0.02)
    assert (report.skipped, report.restores) == (5, 1)
    assert density.flow.shift.isfinite().all()


def test_it_gives_up_with_an_error_and_the_best_parameters():
    density = FlowDensity(Moody(lambda call: call > 150))
    with pytest.raises(DivergedError, match="gave up") as caught:
        density.fit(1 + normal_rows(), **QUICK, lr=0.02)
    assert caught.value.fit.skipped == 30
    assert density.flow.shift.isfinite().all()
    assert density.flow.shift.min() > 0.5


def rows_with(value):
    x = normal_rows(20)
    x[7, 1] = value
    return x


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (rows_with(math.nan), "row 7, column 1"),
        (rows_with(-math.inf), "not finite"),
        (torch.cat([normal_rows(20)[:, :1], torch.ones(20, 1)], -1), "Column 1 is constant"),
        (normal_rows(20, 3), r"\(n, 2\)"),
        (normal_rows(20)[0], r"\(n, 2\)"),
        (normal_rows(20).long(), "UniformDequantize"),
        (normal_rows(20) > 0, "floating-point"),
        (normal_rows(20).half(), "float32 or float64"),
        (normal_rows(20).bfloat16(), "float32 or float64"),
        (normal_rows(0), "no row"),
        (normal_rows(2), "at least 2 rows"),
        ([["a", "b"]] * 20, "no numbers"),
    ],
)
def test_bad_data_are_named(x, words):
    with pytest.raises(DataError, match=words):
        FlowDensity(make_flow("affine", 2)).fit(x, **QUICK)


@pytest.mark.parametrize(
    ("context_dim", "context", "words"),
    [
        (0, torch.zeros(20, 1), "context_dim=0"),
        (1, None, "context_dim=1"),
        (1, torch.zeros(20, 2), r"\(20, 1\)"),
        (1, torch.zeros(19, 1), r"\(20, 1\)"),
    ],
)
def test_bad_contexts_are_named(context_dim, context, words):
    density = FlowDensity(make_flow("affine", 2, context_dim=context_dim))
    with pytest.raises(ShapeError, match=words):
        density.fit(normal_rows(20), context, **QUICK)


def test_data_that_are_a_result_of_training_are_taken_as_numbers():
    x = normal_rows(50).requires_grad_()
    density = FlowDensity(make_flow("affine", 2))
    density.fit(2 * x, **QUICK)
    assert x.grad is None
    with pytest.raises(ShapeError, match="as_tensor"):
        density.log_prob(x.detach().numpy())


def test_tables_of_numbers_are_taken_and_shares_are_checked():
    class Frame:
        def to_numpy(self):
            return normal_rows(20).numpy()

    context = normal_rows(20)[:, :1]
    density = FlowDensity(make_flow("affine", 2, context_dim=1))
    assert density.fit(Frame(), context.numpy(), **QUICK).steps > 0
    for valid in ("0.1", None, [0.1], (normal_rows(5),)):
        with pytest.raises(OptionError, match="valid is"):
            density.fit(normal_rows(20), context, valid=valid, **QUICK)


def test_bad_context_values_are_named():
    density = FlowDensity(make_flow("affine", 2, context_dim=1))
    with pytest.raises(DataError, match="the context are not finite"):
        density.fit(normal_rows(20), torch.full((20, 1), math.nan), **QUICK)


@pytest.mark.parametrize(
    "options",
    [{"valid": 1.0}, {"valid": -0.1}, {"valid": True}, {"batch_size": 0}, {"max_steps": 0},
     {"lr": 0.0}, {"patience": 0}, {"lr": "a"}, {"seed": "a"}, {"seed": -1}, {"dequantize": 256},
     {"clip_norm": math.nan}],
)  # fmt: skip
def test_bad_options_are_named(options):
    with pytest.raises(OptionError):
        FlowDensity(make_flow("affine", 2)).fit(normal_rows(), **{**QUICK, **options})


def test_frozen_density_is_an_error():
    density = FlowDensity(make_flow("affine", 2)).requires_grad_(False)
    with pytest.raises(OptionError, match="nothing to fit"):
        density.fit(normal_rows(), **QUICK)


def test_other_units_are_announced():
    with pytest.warns(DataWarning, match="ActNorm"):
        FlowDensity(make_flow("affine", 2)).fit(100 + normal_rows(), **{**QUICK, "max_steps": 1})


def test_ties_are_announced():
    x = torch.randint(0, 5, (500, 2), generator=torch.Generator().manual_seed(0)).float()
    with pytest.warns(DataWarning, match="UniformDequantize"):
        FlowDensity(make_flow("affine", 2)).fit(x, **{**QUICK, "max_steps": 1})


def rounded_rows(levels=8, n=600):
    return (torch.rand(n, 2, generator=torch.Generator().manual_seed(0)) * levels).floor() / levels


@pytest.mark.parametrize("levels", [2, 256])
def test_rounded_data_are_announced_at_any_number_of_levels(levels):
    with pytest.warns(DataWarning, match="UniformDequantize"):
        FlowDensity(make_flow("affine", 2)).fit(rounded_rows(levels), **{**QUICK, "max_steps": 1})


def test_ceiling_of_rounded_data_is_infinite_where_a_column_is_not_rounded():
    assert log_density_ceiling(rounded_rows(4)) == pytest.approx(2 * math.log(4))
    x = torch.stack([rounded_rows()[:, 0], normal_rows()[:, 0]], -1)
    assert log_density_ceiling(x) == math.inf
    assert log_density_ceiling(rounded_rows(n=50)) == math.inf


def test_ordinary_data_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FlowDensity(make_flow("affine", 2)).fit(normal_rows(), **{**QUICK, "max_steps": 1})


def test_float64_data_are_taken_as_the_density_is():
    density = FlowDensity(make_flow("affine", 2))
    density.fit(normal_rows().double(), **{**QUICK, "max_steps": 5})
    assert next(density.parameters()).dtype == torch.float32


def test_bits_per_dim_are_nats_in_other_units():
    density = FlowDensity(make_flow("affine", 2))
    bits = density.bits_per_dim(torch.zeros(1, 2))
    assert bits.item() == pytest.approx(0.5 * math.log2(2 * math.pi))
    assert not bits.requires_grad


def test_half_precision_points_are_refused():
    with pytest.raises(ValueError, match="float32 or float64"):
        FlowDensity(make_flow("affine", 2)).log_prob(torch.zeros(1, 2).half())


def test_progress_bar_tells_the_nats(capsys):
    FlowDensity(make_flow("affine", 2)).fit(normal_rows(), seed=0, max_steps=120)
    assert "nats" in capsys.readouterr().err


def test_held_out_rows_without_a_density_do_not_undo_the_fit():
    x = normal_rows(300) + 3
    held = x[:50].clone()
    held[0, 0] = 1e25
    density = FlowDensity(make_flow("affine", 2))
    before = float(-density.log_prob(x).detach().mean())
    with pytest.warns(DataWarning, match="1 of 50 held-out rows have no finite density"):
        report = density.fit(x, valid=held, max_steps=400, seed=0, progress=False)
    assert report.reason == "max_steps"
    assert float(-density.log_prob(x).detach().mean()) < before - 1


def test_an_early_interrupt_keeps_what_was_learnt(monkeypatch):
    x = normal_rows(20_000) + 3
    density = FlowDensity(make_flow("affine", 2))
    before = float(-density.log_prob(x).detach().mean())
    step, taken = fitting._Loop.step, []

    def interrupted(loop, *args):
        if len(taken) == 100:
            raise KeyboardInterrupt
        taken.append(step(loop, *args))
        return taken[-1]

    monkeypatch.setattr(fitting._Loop, "step", interrupted)
    report = density.fit(x, batch_size=64, lr=1e-2, seed=0, progress=False)
    assert (report.reason, report.train) == ("interrupted", [])
    assert float(-density.log_prob(x).detach().mean()) < before - 1


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (1e8 + normal_rows().double(), "does not fit into torch.float32.*density.double"),
        (1e300 * normal_rows().double(), "does not fit into torch.float32"),
        (1e-40 * normal_rows().double(), "does not fit into torch.float32"),
    ],
)
def test_what_float32_does_not_hold_is_told_with_the_cure(x, words):
    density = FlowDensity(Chain(make_flow("affine", 2), ActNorm(2)))
    with pytest.raises(DataError, match=words):
        density.fit(x, **QUICK)
    if x.max() < 1e200:
        density.double().fit(x, **{**QUICK, "max_steps": 50})


def test_a_fit_inside_no_grad_trains_and_in_inference_mode_says_what_to_do():
    density = FlowDensity(make_flow("affine", 2))
    with torch.no_grad():
        assert density.fit(3 + normal_rows(), **QUICK, lr=0.05).best < 3.5
    with torch.inference_mode(), pytest.raises(OptionError, match=r"leave torch.inference_mode"):
        density.fit(normal_rows(), **QUICK)


def test_data_made_in_inference_mode_are_taken():
    with torch.inference_mode():
        x = 3 + normal_rows()
    assert FlowDensity(make_flow("affine", 2)).fit(x, **QUICK).steps == 300


def test_options_of_numpy_are_taken():
    options = {"batch_size": np.int64(32), "max_steps": np.int64(5), "lr": np.float32(1e-3)}
    FlowDensity(make_flow("affine", 2)).fit(normal_rows(), **options, progress=False)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_actnorm_leaves_no_trace_of_the_unit(unit):
    x = unit * (3 + normal_rows(2000))
    density = FlowDensity(Chain(make_flow("affine", 2), ActNorm(2)))
    report = density.fit(x, **QUICK)
    entropy = math.log(2 * math.pi * math.e) + 2 * math.log(unit)
    # sd of the mean over 200 rows: 0.07 nats; 4 of them, false-alarm rate 6e-5 (fixed seed).
    assert report.best == pytest.approx(entropy, abs=0.3)


@pytest.mark.parametrize("inverse", [False, True])
def test_normalising_layers_inside_an_inverse_are_set_too(inverse):
    x = torch.tensor([300.0, -7.0]) + torch.tensor([50.0, 0.1]) * normal_rows(1000)
    nvp = make_flow("realnvp*2", 2)
    flow = Chain(ActNorm(2), nvp.inv).inv if inverse else Chain(nvp, ActNorm(2).inv)
    density = FlowDensity(flow)
    report = density.fit(x, **{**QUICK, "max_steps": 50})
    assert report.best == pytest.approx(Normal(x.mean(0), x.std(0)).entropy().sum().item(), abs=0.3)


def test_batchnorm_inside_an_inverse_normalises():
    density = FlowDensity(Chain(make_flow("affine", 2), BatchNorm(2).inv))
    x = 5 + 3 * normal_rows()
    report = density.fit(x, **QUICK)
    assert report.best == pytest.approx(Normal(x.mean(0), x.std(0)).entropy().sum().item(), abs=0.3)


def test_flows_that_draw_noise_are_fitted_by_the_seed_alone():
    # Above D = 10 a continuous flow estimates its log-determinant with noise.
    found = []
    for global_seed in (1, 2):
        torch.manual_seed(0)
        density = FlowDensity(make_flow("ffjord*1", 12, hidden_dim=8))
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        density.fit(normal_rows(40, 12), **{**QUICK, "max_steps": 3})
        assert torch.equal(state, torch.get_rng_state())
        found.append([p.detach().clone() for p in density.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_a_fit_without_one_good_step_is_an_error():
    density = FlowDensity(Moody(lambda call: True))
    with pytest.raises(DivergedError, match="3 steps, 3 of them without"):
        density.fit(normal_rows(), **{**QUICK, "max_steps": 3})


@pytest.mark.parametrize("context", [1e4 * normal_rows(600, 1), 1 + 0 * normal_rows(600, 1)])
def test_contexts_in_other_units_are_announced(context):
    density = FlowDensity(make_flow("affine", 2, context_dim=1))
    with pytest.warns(DataWarning, match="Column 0 of the context"):
        density.fit(normal_rows(), context, **{**QUICK, "max_steps": 1})


def test_a_one_hot_context_is_not_announced():
    codes = torch.nn.functional.one_hot(torch.arange(600) % 500, 500).float()
    density = FlowDensity(make_flow("affine", 2, context_dim=500))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density.fit(normal_rows(), codes, **{**QUICK, "max_steps": 1, "valid": 0})


def test_numbers_of_a_distribution_that_want_a_gradient_are_announced():
    loc = torch.zeros(2, requires_grad=True)
    base = Independent(Normal(loc, torch.ones(2)), 1)
    density = FlowDensity(make_flow("affine", 2), base)
    with pytest.warns(DataWarning, match="which fit does not train"):
        density.fit(normal_rows(), **{**QUICK, "max_steps": 1})


def test_a_context_of_complex_numbers_is_named():
    density = FlowDensity(make_flow("affine", 2, context_dim=1))
    with pytest.raises(ShapeError, match="real numbers"):
        density.fit(normal_rows(20), torch.zeros(20, 1, dtype=torch.complex64), **QUICK)


def test_a_base_on_a_box_has_no_mass_outside():
    box = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
    density = FlowDensity(make_flow("affine", 2), box)
    x = torch.tensor([[0.5, 0.5], [0.5, 1.5], [math.nan, 0.5]])
    log_p = density.log_prob(x)
    assert log_p[:2].tolist() == [0.0, -math.inf]
    assert log_p[2].isnan()
    z, log_q = density.rsample_and_log_prob((20,))
    assert torch.equal(density.log_prob(z), log_q)
    with pytest.raises(OptionError, match="free numbers"):
        FlowDensity(make_flow("affine", 2), Dirichlet(torch.ones(2)))
