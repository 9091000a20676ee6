"""Findings: typed, kept by files, and read by the verdict for their values alone."""

import dataclasses

import pytest
import torch
from infer.models import Y, conjugate

from pyro_nfvi import NFVI, load
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi.diagnostics._verdict import VERDICTS
from pyro_nfvi.infer import _findings as findings
from pyro_nfvi.infer._findings import Finding, Level, MissedModes, find, from_json, to_json
from pyro_nfvi.infer._weighted_draws import WeighedDraws

KINDS = Finding.__subclasses__()


def filled(kind):
    """One finding of a kind, with made-up values."""
    made = {"int": 2, "float": 0.25, "float | None": 0.5, "bool": True, "str": "a"}
    made |= {"tuple[str, ...]": ("a", "b"), "tuple[float, ...]": (0.5, 1.5)}
    made |= {"tuple[int, ...]": (7, 3)}
    return kind(**{field.name: made[field.type] for field in dataclasses.fields(kind)})


@pytest.fixture(scope="module")
def fit():
    return NFVI(conjugate, "affine", seed=0, progress=False, max_steps=30).run(Y)


def with_findings(fit, *found):
    training = dataclasses.replace(fit.training, findings=found)
    return dataclasses.replace(fit, training=training)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_keeps_every_kind(kind, fit, tmp_path):
    found = filled(kind)
    assert from_json(to_json([found])) == (found,)
    with_findings(fit, found).save(tmp_path / "fit.nfvi")
    again = load(tmp_path / "fit.nfvi")
    assert again.training.findings == (found,)
    assert again.verdict == with_findings(fit, found).verdict


@pytest.mark.parametrize("kind", KINDS)
def test_the_level_of_a_finding_decides(kind, fit):
    found = filled(kind)
    most = {Level.REMARK: VERDICTS[0], Level.DOUBT: VERDICTS[1], Level.FAULT: VERDICTS[2]}
    assert with_findings(fit).verdict == "good"
    assert with_findings(fit, found).verdict == most[found.level]


@pytest.mark.parametrize("kind", KINDS)
def test_other_words_change_no_verdict(kind, fit, monkeypatch):
    found = filled(kind)
    before = with_findings(fit, found).verdict
    monkeypatch.setattr(kind, "sentence", lambda self: "still rising; would bring about; khat")
    assert with_findings(fit, found).verdict == before


def test_other_words_of_the_end_of_training_change_no_verdict(fit):
    def ended(detail, unfinished):
        reason = StopReason("max_steps", detail, unfinished)
        return dataclasses.replace(
            fit, training=dataclasses.replace(fit.training, why_stopped=reason)
        )

    assert any("cut short" in one for one in ended("some words", True).verdict.reasons)
    assert not any("cut short" in one for one in ended("still rising", False).verdict.reasons)


def test_a_file_of_version_0_1_is_read():
    settings = {"improper": ["a"], "missed_modes": 3, "starts": 9, "outside": [0.5, 0.01]}
    found = findings.from_settings(settings, 16)
    assert find(found, MissedModes) == MissedModes(3)
    assert sorted(one.level for one in found) == [Level.REMARK, *[Level.FAULT] * 3]


def test_weights_are_smoothed_once(fit, monkeypatch):
    """Verdict, report, k-hat and ESS read one result, however often they are asked."""
    calls = []

    def counted(log_w):
        calls.append(len(log_w))
        return smooth(log_w)

    from pyro_nfvi.infer import _weighted_draws as module

    smooth = module.psis
    monkeypatch.setattr(module, "psis", counted)
    draws = fit.draws
    fresh = WeighedDraws(draws.z, draws.log_p, draws.log_q)
    fresh = dataclasses.replace(fit, draws=fresh)
    for _ in range(3):
        assert len(fresh.report) > len(fresh.verdict)
        assert fresh.khat < 1 < fresh.ess
        fresh.resample(10)
    assert calls == [len(draws.z)]


def test_a_verdict_is_found_once(fit):
    assert fit.verdict is fit.verdict
    assert torch.isfinite(fit.draws.log_w).all()
