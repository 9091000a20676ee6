"""The public workflow and the hooks run the commands that developers run."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_workflow_has_every_stage_of_the_checks():
    stages = re.findall(r"^stage (make .+)$", (ROOT / ".ci/run").read_text("utf-8"), re.M)
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    steps = re.findall(r"^      - run: (make .+)$", workflow, re.M)
    assert stages
    assert [one for one in stages if not any(step.startswith(one) for step in steps)] == []
    assert '"3.10"' in workflow
    assert '"3.13"' in workflow


def test_targets_of_the_workflow_exist():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    assert set(re.findall(r"run: make ([\w-]+)", workflow)) <= targets


def test_the_hooks_check_what_the_checks_check():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    for command in ("ruff check", "ruff format", "mypy", "tests/test_architecture.py"):
        assert command in hooks


def test_the_files_that_newcomers_are_sent_to_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = set(re.findall(r"`((?:pyro_nfvi|tests|docs|\.github)/[\w./-]+)`", text))
    named -= {one for one in named if "_yours" in one}
    assert len(named) > 10
    assert [one for one in sorted(named) if not (ROOT / one).exists()] == []
    assert "_FAMILIES" in (ROOT / "pyro_nfvi/flows/_registry.py").read_text("utf-8")
    assert "_KNOWN" in (ROOT / "pyro_nfvi/objectives/_make_objective.py").read_text("utf-8")


def test_the_legs_of_versions_install_what_the_package_needs():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    tables = [text[text.index("\ndependencies = [") :].split("\n]")[0]]
    extras = text[text.index("[project.optional-dependencies]") :].split("\n[")[0]
    tables += [line for line in extras.splitlines() if re.match(r"(arviz|ode|vae)\b", line)]
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', "\n".join(tables)))
    assert {"torch", "loky", "arviz", "torchdiffeq"} <= set(bounds)
    lowest = (ROOT / "tests/versions/lowest.txt").read_text("utf-8")
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", lowest, re.M))
    padded = {name: (bound.split(".") + ["0"] * 3)[:3] for name, bound in bounds.items()}
    assert {name: (pins[name].split(".") + ["0"] * 3)[:3] for name in bounds} == padded
    newest = (ROOT / "tests/versions/newest.txt").read_text("utf-8")
    assert set(bounds) - set(newest.split()) == set()
