"""Stopping, Ctrl-C, NaN, checkpoints: what happens between the first and the last step."""

import dataclasses
import math
import time

import pytest
import torch
from infer.models import BrokenAfter, Y, conjugate, evidence

from pyro_nfvi import NFVI
from pyro_nfvi._optim.early_stopping import Plateau
from pyro_nfvi._optim.learning_curve import forecast
from pyro_nfvi._optim.learning_rate import Schedule, default_rate
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._train.recipe import TRAINING
from pyro_nfvi.errors import DivergedError, FileError, OptionError


def quick(model=conjugate, **options):
    # From where the guide starts: there would be little left for the loop to do.
    chosen = {
        "max_steps": 300,
        "seed": 0,
        "progress": False,
        "guide": "affine",
        "precondition": False,
        "explore": "off",
    } | options
    return NFVI(model, **chosen)


class StopAt:
    """A callback that interrupts, as Ctrl-C does."""

    def __init__(self, step, what=KeyboardInterrupt):
        self.step, self.what = step, what

    def __call__(self, info):
        if info.step == self.step:
            if self.what is None:
                return True
            raise self.what
        return None


# ------------------------------------------------------------------------------ schedule


def test_rate_warms_up_stays_and_goes_down():
    schedule = Schedule(1000)
    factors = []
    for step in range(1000):
        if step == 400:
            schedule.begin_decay(step, 0.0)
        if schedule.finished(step, 0.0):
            break
        factors.append(schedule.advance(step, 0.0))
    assert len(factors) == 600  # 400 and half as many
    assert factors[0] < 0.05
    assert factors[60] == factors[399] == 1.0
    assert all(b <= a for a, b in zip(factors[400:], factors[401:]))
    assert 0.0099 < factors[-1] < 0.011


@pytest.mark.parametrize("steps", [1, 7, 199, 400, 1000, 3000])
@pytest.mark.parametrize("early", [True, False])
def test_decay_always_ends_with_the_last_step(steps, early):
    schedule = Schedule(steps, early=early)
    taken, factor = 0, 0.0
    while not schedule.finished(taken, 0.0):
        factor = schedule.advance(taken, 0.0)
        taken += 1
    assert taken == steps
    if steps >= 400:
        assert factor < 0.02


def test_time_ends_the_constant_phase_and_the_fit():
    schedule = Schedule(10_000, max_seconds=10.0)
    assert schedule.advance(100, 5.0) == 1.0
    schedule.advance(120, 6.5)
    assert schedule.decay is not None
    assert schedule.advance(130, 9.9) < 0.02
    assert schedule.finished(130, 10.0)


def test_decay_that_time_began_lasts_until_time_is_over():
    # Steps so quick that 200 of them are over long before the time is.
    schedule = Schedule(10**6, early=False, max_seconds=1.0)
    schedule.advance(1000, 0.6)
    factors = [schedule.advance(step, 0.6 + 1e-4 * (step - 1000)) for step in range(1000, 5000)]
    assert not schedule.finished(4999, 0.9999)
    assert all(b <= a for a, b in zip(factors, factors[1:]))
    assert factors[1999] > 0.4
    assert factors[-1] < 0.011
    assert schedule.finished(5000, 1.0)


def test_default_rate():
    assert default_rate(1) == default_rate(20) == 0.01
    assert default_rate(10**6) == 0.002


def test_one_enormous_loss_does_not_make_a_rise_into_noise():
    generator = torch.Generator().manual_seed(3)
    losses = (50 - 0.02 * torch.arange(400.0) + torch.randn(400, generator=generator)).tolist()
    assert not Plateau().flat(losses)
    for place in (50, 350):
        wild = list(losses)
        wild[place] = 1e6
        assert not Plateau().flat(wild)


def test_plateau():
    torch.manual_seed(0)
    plateau = Plateau()
    noise = torch.randn(1000)
    flat = (5 + 0.1 * noise).tolist()
    steep = (5 - 0.01 * torch.arange(1000) + 0.1 * noise).tolist()
    assert plateau.flat(flat[:400])
    assert not plateau.flat(flat[:399])
    assert not plateau.flat(flat[:350])
    assert not any(plateau.flat(steep[:n]) for n in range(400, 1000, 50))
    gone = [math.nan] * 400
    assert not plateau.flat(gone)
    huge = [*steep[:399], 1e200]  # whose square is not finite
    assert not plateau.flat(huge)
    assert forecast(huge) is not None


def test_stop_reason_is_a_word_with_a_sentence():
    import pickle

    reason = StopReason("converged", "Flat.")
    again = pickle.loads(pickle.dumps(reason))
    assert again == "converged"
    assert again.detail == "Flat."


# ------------------------------------------------------------------------------- stopping


def test_stops_when_flat_and_says_so():
    fit = quick(max_steps=5000).run(Y)
    assert fit.why_stopped == "converged"
    assert len(fit.losses) < 2500
    assert str(len(fit.losses)) in fit.why_stopped.detail


def test_stop_false_takes_exactly_max_steps():
    fit = quick(max_steps=700, stop=False).run(Y)
    assert len(fit.losses) == 700
    assert fit.why_stopped == "max_steps"


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_very_short_fits_work(steps):
    fit = quick(max_steps=steps).run(Y)
    assert len(fit.losses) == steps
    assert math.isfinite(fit.elbo)


def test_max_seconds():
    begin = time.monotonic()
    fit = quick(max_steps=10**6, max_seconds=1.0, stop=False).run(Y)
    assert fit.why_stopped == "max_seconds"
    assert time.monotonic() - begin < 20
    assert 0.0 < fit.timing.training <= fit.timing.total < 10


def test_callbacks_are_told_and_may_stop():
    seen = []
    fit = quick(callbacks=[seen.append, StopAt(40, None)], stop=False).run(Y)
    assert fit.why_stopped == "callback"
    assert [info.step for info in seen] == list(range(1, 41))
    assert seen[3].loss == fit.losses[3]
    assert seen[-1].guide is fit.guide
    assert not seen[0].skipped
    assert seen[0].lr < seen[-1].lr <= 0.01


def test_ctrl_c_returns_the_best_fit_so_far():
    fit = quick(callbacks=[StopAt(250)], max_steps=5000, stop=False, optim=0.05).run(Y)
    assert fit.why_stopped == "interrupted"
    assert len(fit.losses) == 250
    assert abs(fit.elbo - evidence(Y)) < 0.3
    assert fit.sample(7)["mu"].shape == (7,)


def test_ctrl_c_at_the_first_step_is_a_fit_too():
    fit = quick(callbacks=[StopAt(1)]).run(Y)
    assert fit.why_stopped == "interrupted"
    assert math.isfinite(fit.elbo)


def test_errors_of_callbacks_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        quick(callbacks=[StopAt(3, ZeroDivisionError)]).run(Y)


def test_it_makes_no_difference_how_many_steps_are_taken_at_once():
    plain = quick(max_steps=1330, stop=False, seed=0).run(Y)
    singly = quick(max_steps=1330, stop=False, seed=0, callbacks=[lambda info: None]).run(Y)
    assert len(plain.losses) == 1330
    assert torch.equal(singly.losses, plain.losses)
    assert singly.elbo == plain.elbo


def test_the_best_state_is_kept():
    def spoil(info):
        if info.step == 299:
            with torch.no_grad():
                info.guide.loc.add_(50.0)

    fit = quick(callbacks=[spoil], max_steps=300, stop=False, optim=0.05).run(Y)
    assert fit.elbo > evidence(Y) - 1
    assert "earlier step was better" in fit.report


# --------------------------------------------------------------------------- large models


def test_particles_of_a_very_large_model_are_run_in_parts(monkeypatch):
    whole = quick(max_steps=30, stop=False).run(Y)
    small = dataclasses.replace(TRAINING, model_numbers=7 * 10)  # the model holds 7 numbers
    monkeypatch.setattr("pyro_nfvi._train.step.TRAINING", small)
    parts = quick(max_steps=30, stop=False).run(Y)
    torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------ NaN
# A model that breaks at its n-th run needs an engine that runs it n times.


def test_a_few_nan_steps_are_skipped():
    model = BrokenAfter(80, 3)
    fit = quick(model, max_steps=400, stop=False, engine="eager", callbacks=[model.watch]).run(Y)
    assert torch.isnan(fit.losses).nonzero().reshape(-1).tolist() == [80, 81, 82]
    assert abs(fit.elbo - evidence(Y)) < 0.1
    assert "3 steps were skipped" in fit.report


@pytest.mark.slow
def test_repeated_nan_goes_back_and_halves_the_rate():
    rates = {}
    model = BrokenAfter(250, 5)
    fit = quick(
        model,
        max_steps=400,
        stop=False,
        engine="eager",
        callbacks=[model.watch, lambda info: rates.__setitem__(info.step, info.lr)],
    ).run(Y)
    bad = torch.isnan(fit.losses).nonzero().reshape(-1).tolist()
    assert bad == [250, 251, 252, 253, 254]
    (note,) = [note for note in fit.training.notes if "went back" in note]
    assert "halved the learning rate" in note
    assert math.isfinite(fit.elbo)


def test_giving_up_names_site_layer_or_parameter_and_keeps_the_fit():
    model = BrokenAfter(300)
    with pytest.raises(DivergedError, match=r"gave up at step \d+: the model's site 'y'") as caught:
        quick(model, max_steps=1000, stop=False, engine="eager", callbacks=[model.watch]).run(Y)
    assert "init_loc_fn" in str(caught.value)
    # The model is still broken when the salvaged fit is judged, but its draws are there.
    fit = caught.value.fit
    assert fit.why_stopped == "not_finite"
    assert torch.isfinite(fit.draws.z).all()
    assert torch.isfinite(fit.losses[:100]).all()


def test_a_broken_parameter_of_the_guide_is_named():
    def spoil(info):
        with torch.no_grad():
            info.guide.loc.fill_(math.nan)

    with pytest.raises(DivergedError, match="the guide's parameter 'loc' is not finite"):
        quick(callbacks=[spoil], max_steps=200).run(Y)


def test_bad_particles_are_counted_and_the_rest_trains():
    import pyro
    import pyro.distributions as dist

    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
        # Impossible far out: some particles of a wide start fall there.
        pyro.factor("wall", torch.where(mu > -1.0, 0.0, -math.inf))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 2.0), obs=y)

    from pyro_nfvi import AutoFlow

    fit = quick(
        model,
        guide=lambda model: AutoFlow(
            model,
            None,
            init_scale=2.0,
            init_loc_fn=pyro.infer.autoguide.init_to_value(values={"mu": torch.tensor(0.0)}),
        ),
        max_steps=300,
        stop=False,
    ).run(Y)
    assert "particles were left out" in fit.report
    assert abs(fit.summary()["mu"].mean - 2.1) < 0.5


# ---------------------------------------------------------------------------- checkpoints


def test_a_resumed_fit_gives_the_numbers_of_an_uninterrupted_one(tmp_path):
    path = tmp_path / "fit.ckpt"
    options = {"guide": "iaf*2", "max_steps": 130, "stop": True}
    whole = quick(**options).run(Y)
    cut = quick(**options, checkpoint=path, callbacks=[StopAt(67)]).run(Y)
    assert cut.why_stopped == "interrupted"
    assert len(cut.losses) == 67
    resumed = quick(**options, checkpoint=path, resume=True).run(Y)
    assert torch.equal(whole.losses, resumed.losses)
    assert torch.equal(whole.draws.z, resumed.draws.z)


def test_checkpoints_are_written_on_the_way(tmp_path):
    path = tmp_path / "fit.ckpt"
    with pytest.raises(ZeroDivisionError):
        quick(checkpoint=path, checkpoint_every=20, callbacks=[StopAt(50, ZeroDivisionError)]).run(
            Y
        )
    assert path.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["fit.ckpt"]
    fit = quick(checkpoint=path, resume=True).run(Y)
    assert len(fit.losses) == 300


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    path = tmp_path / "fit.ckpt"
    quick(checkpoint=path, max_steps=20, checkpoint_every=10).run(Y)
    with pytest.raises(FileError, match="another fit: its arguments"):
        quick(checkpoint=path, max_steps=20, resume=True).run(Y + 1)


def test_resume_without_a_file_starts_from_the_beginning(tmp_path):
    fit = quick(checkpoint=tmp_path / "none.ckpt", resume=True, max_steps=20).run(Y)
    assert len(fit.losses) == 20


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    path = tmp_path / "fit.ckpt"
    quick(checkpoint=path, max_steps=20).run(Y)
    with pytest.raises(FileError, match="another fit: its guide is"):
        quick(checkpoint=path, resume=True, guide="planar*2").run(Y)
    with pytest.raises(FileError, match="its num_particles is 64, not 8"):
        quick(checkpoint=path, resume=True, num_particles=8).run(Y)


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_fit(tmp_path):
    with pytest.warns(UserWarning, match="Checkpoint not written"):
        fit = quick(checkpoint=tmp_path / "no folder" / "x", max_steps=20).run(Y)
    assert len(fit.losses) == 20


def test_checkpoint_every_is_checked():
    with pytest.raises(OptionError, match="checkpoint_every"):
        quick(checkpoint_every=0)
