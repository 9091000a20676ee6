"""What a report of a problem needs, and nothing private."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyro_nfvi as nfvi


def lines(text):
    return {
        line.split("  ")[0].strip(): line.split("  ", 1)[1].strip() for line in text.splitlines()
    }


def test_the_text_is_printed_and_returned(capsys):
    text = nfvi.show_versions()
    assert capsys.readouterr().out == text + "\n"
    found = lines(text)
    assert found["pyro_nfvi"] == nfvi.__version__
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    named = {"pyro-ppl", "numpy", "arviz", "compiler", "cache folder", "CPUs", "GPU", "platform"}
    assert named <= set(found)


def test_the_home_folder_is_not_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    text = nfvi.show_versions()
    assert str(tmp_path) not in text
    assert lines(text)["cache folder"].startswith("~")


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("pyro_nfvi._show_versions._PACKAGES", ("no-such-package",))
    found = lines(nfvi.show_versions())
    assert found["compiler"].startswith("none (there is no C++ compiler")
    assert found["no-such-package"] == "not installed"


@pytest.mark.slow
def test_seldom_used_libraries_are_not_imported_with_the_package():
    code = (
        "import sys, pyro_nfvi; print({'loky', 'cloudpickle', 'platformdirs'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[1]
    ran = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root
    )
    assert ran.stdout.strip() == "set()", ran.stderr
