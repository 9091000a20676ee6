"""The API pages name everything that is public, and the table of flows every flow."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PACKAGES = [
    "arviz",
    "bases",
    "density",
    "diagnostics",
    "flows",
    "guides",
    "infer",
    "objectives",
    "plots",
    "testing",
    "vae",
]


def names_on(page: Path) -> set[str]:
    """Names that the page's autodoc directives cover."""
    text = page.read_text("utf-8")
    entry = re.compile(r"auto(?:class|function|data|exception):: [\w.]*?(\w+)(?:\(\))?$", re.M)
    found = set(entry.findall(text))
    for module, options in re.findall(r"automodule:: ([\w.]+)\n((?:   :.*\n)*)", text):
        members = re.search(r":members:(.*)", options)
        if members is None or ":no-members:" in options:
            continue
        listed = members.group(1).replace(" ", "")
        found |= set(listed.split(",")) if listed else set(importlib.import_module(module).__all__)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_its_entry(package):
    pytest.importorskip(f"pyro_nfvi.{package}")
    module = importlib.import_module(f"pyro_nfvi.{package}")
    text = "".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    covered = set().union(*map(names_on, (DOCS / "api").glob("*.md")))
    constants = {name for name in module.__all__ if name.isupper() and name in text}
    assert set(module.__all__) - covered - constants - {"LAWS"} == set()


def test_every_top_level_name_is_on_the_front_page():
    import pyro_nfvi

    text = (DOCS / "api" / "index.md").read_text("utf-8")
    missing = [name for name in pyro_nfvi.__all__ if name not in text and name[0] != "_"]
    assert missing == []


def test_the_choosing_page_knows_every_flow():
    from pyro_nfvi.flows import FLOW_NAMES

    text = (DOCS / "which_flow.md").read_text("utf-8")
    assert [name for name in FLOW_NAMES if f'"{name}' not in text] == []
